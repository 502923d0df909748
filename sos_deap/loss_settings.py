"""The setting of a run that bounds the loss of quality, and what follows from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sos_deap.errors import InputError
from sos_deap.tasks.settings import TaskSettings, setting

#: Maximum sparsity where the loss decides.
WIDEST = 0.5

#: Sparsities, besides the maximum, of which presets evaluate a sub-model where the loss decides.
CURVE = 12

#: Default number of validation examples, if that of the calibration examples is not given.
SAMPLES = 128


@dataclass(frozen=True)
class LossSettings:
    """Bound on the loss of a run; the field is a flag and a key of a configuration file."""

    max_loss: float | None = setting(
        None,
        "genes",
        "Largest loss of quality on validation examples, in percent of the perplexity or in points "
        "of accuracy: the pruned model is the smallest within it that the search met, of at most "
        "the maximum sparsity, whose default is then 0.5.",
        unset="the maximum sparsity alone decides",
        common=True,
    )


def check_max_loss(most: float | None, name: str, strategy: bool, given: Mapping[str, Any]) -> None:
    """Refuse a bound that is out of range, or for which the algorithm has too few sub-models.

    :param most: the setting.
    :param name: name of the algorithm.
    :param strategy: whether it searches at constant sparsity.
    :param given: its parameters.
    :raises InputError: in these cases.
    """
    if most is None:
        return
    if not 0 <= most < math.inf:
        raise InputError(f"max_loss is {most}: give 0 or more percent or points")
    if strategy and not given.get("curve"):
        raise InputError(
            f"max_loss chooses among sub-models of several sparsities, and {name} evaluates one: "
            f"use sweep,curve={CURVE} or an algorithm with a population"
        )


def with_validation_samples(most: float | None, settings: TaskSettings) -> TaskSettings:
    """Return the settings of a task with validation examples, if the loss has a bound.

    :param most: the bound.
    :param settings: settings of the task.
    """
    if most is None or settings.validation_samples is not None:
        return settings
    return replace(settings, validation_samples=settings.samples or SAMPLES)
