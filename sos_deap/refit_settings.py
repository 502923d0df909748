"""The settings of a run that state how its winner is repaired."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sos_deap.errors import InputError, unknown
from sos_deap.tasks.settings import TaskSettings, setting

#: What is fitted: nothing; the biases of the winner's output projections; its weights and biases;
#: or these of each sub-model in the search, and of the winner.
REFITS = ("none", "bias", "after", "during")

#: Default number of refit examples.
SAMPLES = 128


@dataclass(frozen=True)
class RefitSettings:
    """Refit of a run; every field is a flag and a key of a configuration file."""

    refit: str = setting(
        "none",
        "refit",
        "Fit the winner's output projections to the dense model's outputs, by least squares on "
        "calibration text, without gradients: none; after (weights and biases); bias; or during "
        "(each sub-model is evaluated with its weights refitted, and the winner is refitted).",
        common=True,
    )
    refit_damping: float | None = setting(
        None,
        "refit",
        "How strongly a refit keeps the present weights, as a share of the mean square of a "
        "projection's inputs.",
        unset="chosen for each projection on a fifth of the refit examples",
    )


def with_refit_samples(config: RefitSettings, settings: TaskSettings) -> TaskSettings:
    """Return the settings of a task with the number of refit examples, if there is a refit.

    :param config: settings of the run.
    :param settings: settings of its task.
    :raises InputError: for an unknown refit, and for settings of a refit without one.
    """
    if config.refit not in REFITS:
        raise unknown("refit", config.refit, REFITS)
    if config.refit != "none":
        return replace(settings, refit_samples=settings.refit_samples or SAMPLES)
    for name, value in (
        ("refit_damping", config.refit_damping),
        ("refit_samples", settings.refit_samples),
        ("refit_dataset", settings.refit_dataset),
    ):
        if value is not None:
            raise InputError(
                f"{name} is {value} without a refit: give --refit after, or leave --{name} out"
            )
    return settings
