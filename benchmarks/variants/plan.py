"""The jobs of a comparison, and the settings stored in its output folder."""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.variants.settings import Settings
from sos_deap.config import RunConfig, parse
from sos_deap.errors import InputError
from sos_deap.files.atomic import make_folder, make_subfolder, write_json
from sos_deap.plan import Plan, plan_of
from sos_deap.tasks.settings import TaskSettings

#: Proportions of the budget after which the incumbent is measured.
CHECKPOINTS = tuple(0.02 ** (1 - i / 8) for i in range(9))

#: Maximum number of chromosomes of a front to measure.
FRONT = 8


@dataclass(frozen=True)
class Problem:
    """A problem to compare variants on; the budget is in evaluations, or in tokens."""

    model: str
    dataset: str
    sparsity: float
    budget: int
    in_tokens: bool

    @property
    def unit(self) -> str:
        """The unit of the budget."""
        return "tokens" if self.in_tokens else "evaluations"

    def named(self) -> dict[str, Any]:
        """Return the columns of the problem in every table."""
        return {
            "model": label(self.model),
            "dataset": label(self.dataset),
            "target_sparsity": self.sparsity,
            "budget": self.budget,
            "budget_unit": self.unit,
        }

    @property
    def title(self) -> str:
        """A title for the page and the console."""
        return (
            f"{label(self.model)} on {label(self.dataset)}, {self.sparsity:.3g} removed, "
            f"{self.budget:,} {self.unit}"
        )

    @property
    def slug(self) -> str:
        """A unique name for files."""
        unit = "t" if self.in_tokens else ""
        parts = (label(self.model), label(self.dataset), self.sparsity, f"{self.budget}{unit}")
        text = "_".join(re.sub(r"[^A-Za-z0-9.]+", "-", str(part)).strip("-.") for part in parts)
        return f"{text}_{zlib.crc32(repr(self).encode()):08x}"


@dataclass(frozen=True)
class Job:
    """One run of one variant.

    :param flags: the flags of the run: those for all variants, overridden by the variant's.
    :param common: the flags for all variants, for measuring the results.
    :param heldout_task: the task of the held-out metrics.
    :param store: the SQLite file of evaluations.
    """

    problem: Problem
    variant: str
    seed: int
    flags: dict[str, str]
    common: dict[str, str]
    heldout_task: str
    store: Path

    @property
    def name(self) -> str:
        """The name of the job's file without suffix."""
        return f"{self.problem.slug}_{self.variant}_seed{self.seed}"

    def plan(self) -> Plan:
        """Return the plan of the run without its budget, which depends on the data.

        :raises InputError: for a bad setting.
        """
        return plan_of(*_parsed(self, self.flags))

    def yardstick(self) -> tuple[RunConfig, TaskSettings]:
        """Return the settings for measuring the results, which are the same for all variants."""
        config, settings = _parsed(self, self.common)
        return replace(config, task=self.heldout_task), settings


def _parsed(job: Job, flags: dict[str, str]) -> tuple[RunConfig, TaskSettings]:
    problem = job.problem
    own = {
        "model": problem.model,
        "dataset": problem.dataset,
        "max_sparsity": problem.sparsity,
        "seed": job.seed,
    }
    return parse([f"--{name}={value}" for name, value in {**flags, **own}.items()])


def label(name: str) -> str:
    """Return a short name of a model or data set: the last two parts of a path."""
    return "/".join(Path(name).parts[-2:]) if Path(name).exists() else name


def problems(settings: Settings) -> list[Problem]:
    """Return every combination of models, data sets, sparsities and budgets."""
    combinations = product(
        settings.models, settings.datasets, settings.sparsities, settings.budgets
    )
    return [Problem(m, d, s, b, settings.in_tokens) for m, d, s, b in combinations]


def jobs(settings: Settings) -> list[Job]:
    """Return all runs, ordered by seed, so that partial results compare all variants."""
    return [
        Job(
            problem,
            variant,
            seed,
            {**settings.common, **flags},
            settings.common,
            settings.heldout_task,
            settings.store,
        )
        for problem in problems(settings)
        for seed in settings.seeds
        for variant, flags in settings.variants.items()
    ]


def check(planned: list[Job]) -> None:
    """Check everything that needs no model; :func:`.job.try_out` checks the rest.

    :raises InputError: for settings with which a run could not start.
    """
    _check_labels([job.problem.model for job in planned])
    _check_labels([job.problem.dataset for job in planned])
    for job in _first_seeds(planned):
        try:
            plan = job.plan()
        except InputError as error:
            raise InputError(f"variant {job.variant}: {error}") from error
        size = plan.config.population_size
        if not job.problem.in_tokens and size > job.problem.budget:
            raise InputError(
                f"variant {job.variant} has a population of {size}, more than the budget of "
                f"{job.problem.budget} evaluations: give a larger --budget"
            )


def _check_labels(names: list[str]) -> None:
    """Raise :class:`InputError` for two names that are equal in the tables."""
    known: dict[str, str] = {}
    for name in names:
        if (other := known.setdefault(label(name), name)) != name:
            raise InputError(
                f"{other} and {name} are both {label(name)} in the tables: rename or link one"
            )


def _first_seeds(planned: list[Job]) -> list[Job]:
    """Return the job of the first seed for each variant of each problem."""
    return list({(job.problem, job.variant): job for job in reversed(planned)}.values())[::-1]


def remembered(settings: Settings) -> dict[str, Any]:
    """Return the settings on which existing results depend."""
    return {
        "heldout_task": settings.heldout_task,
        "common": settings.common,
        "variants": settings.variants,
    }


def check_folder(settings: Settings) -> dict[str, Any] | None:
    """Return the settings stored in the output folder, if any.

    :raises InputError: if the folder contains something else, or results of other settings.
    """
    folder, path = settings.output_dir, settings.output_dir / "settings.json"
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not path.exists())):
        raise InputError(f"output folder {folder} has other content: give another --output_dir")
    if not path.exists():
        return None
    try:
        before: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        pairs = list(_differences(before, remembered(settings)))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: give another --output_dir") from error
    for name, old, new in pairs:
        raise InputError(
            f"the results in {folder} are for {name} {old}, not {new}: "
            "give another --output_dir, or the same settings"
        )
    return before


def _differences(before: dict[str, Any], now: dict[str, Any]) -> Any:
    """Yield settings that differ; a variant that is only in one of both does not count."""
    if before["heldout_task"] != now["heldout_task"]:
        yield "heldout_task", before["heldout_task"], now["heldout_task"]
    groups = [("", before["common"], now["common"])]
    for name in before["variants"].keys() & now["variants"].keys():
        groups.append((f"variant {name}, ", before["variants"][name], now["variants"][name]))
    for where, old, new in groups:
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                pair = (old.get(name, "the default"), new.get(name, "the default"))
                yield f"{where}{name}", *pair


def remember(settings: Settings, before: dict[str, Any] | None) -> None:
    """Store the settings on which results depend, together with earlier variants."""
    now = remembered(settings)
    if before is not None:
        now["variants"] = {**before["variants"], **now["variants"]}
    make_folder(settings.output_dir)
    make_subfolder(settings.output_dir / "jobs")
    write_json(settings.output_dir / "settings.json", now)


def identity(job: Job) -> dict[str, Any]:
    """Return the fields that identify the job in its file."""
    return {**job.problem.named(), "variant": job.variant, "seed": job.seed}


def kinds(planned: list[Job]) -> list[list[Job]]:
    """Group the first job of each problem and variant by the model, data and task it loads."""
    found: dict[str, list[Job]] = {}
    for job in _first_seeds(planned):
        plan = job.plan()
        config = plan.config
        loaded = (config.model, config.dataset, config.task, plan.objective, plan.settings)
        found.setdefault(repr(loaded), []).append(job)
    return list(found.values())
