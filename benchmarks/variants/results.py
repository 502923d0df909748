"""What the jobs left, by problem, and the metric that is compared."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from benchmarks.variants.plan import Job, Problem
from benchmarks.variants.settings import Settings
from benchmarks.variants.work import result_path
from sos_deap.errors import InputError, unknown

Row = dict[str, Any]

#: In the place of a metric that is not finite: worse than any.
_WORST = 1e300


@dataclass(frozen=True)
class Group:
    """The runs of all variants on one problem.

    :param results: the content of the jobs' files, by variant and seed.
    :param metric: the held-out metric that is compared.
    :param greater: whether a greater one is better.
    """

    problem: Problem
    results: dict[str, dict[int, Row]]
    metric: str
    greater: bool

    @property
    def any(self) -> Row:
        """One of the results, for what is the same in all."""
        return next(result for runs in self.results.values() for result in runs.values())

    @property
    def evaluation_tokens(self) -> int:
        """Of an evaluation on the calibration examples that all share."""
        tokens: int = self.any["evaluation_tokens"]
        return tokens

    @property
    def dense(self) -> float:
        """The dense model's held-out metric."""
        return self.value(self.any, "1" * self.any["genes"])

    def value(self, result: Row, chromosome: str, part: str = "heldout") -> float:
        """The compared metric of a chromosome; NaN where it is not finite."""
        value = result["measured"][chromosome][part][self.metric]
        return float("nan") if value is None else float(value)

    def cost(self, value: float) -> float:
        """A metric as what is to be small."""
        if math.isnan(value):
            return _WORST
        return -value if self.greater else value

    def final(self, result: Row, form: str = "equal", part: str = "heldout") -> float:
        """The winner's metric."""
        return self.value(result, result["checkpoints"][-1][form], part)

    def finals(self, variant: str, form: str = "equal", part: str = "heldout") -> list[float]:
        """The winners' metrics, seed by seed."""
        return [self.final(result, form, part) for result in self.results[variant].values()]

    def costs(self) -> dict[str, dict[Any, float]]:
        """What is tested: the winners' costs at equal sparsity, by variant and seed."""
        return {
            variant: {seed: self.cost(self.final(result)) for seed, result in runs.items()}
            for variant, runs in self.results.items()
        }

    def spent(self, row: Row) -> float:
        """What a row of a result had spent, in units of the budget."""
        if self.problem.in_tokens:
            return float(row["tokens"])
        each = self.evaluation_tokens
        return float(row["tokens"] / each if each else row["evaluations"])


def groups(settings: Settings, planned: Iterable[Job]) -> list[Group]:
    """The results that are there, by problem.

    :raises InputError: for a held-out metric that they do not have.
    """
    by_problem: dict[Problem, dict[str, dict[int, Row]]] = {}
    for job in planned:
        path = result_path(settings.output_dir, job)
        if path.exists():
            runs = by_problem.setdefault(job.problem, {name: {} for name in settings.variants})
            runs[job.variant][job.seed] = json.loads(path.read_text(encoding="utf-8"))
    found = []
    for problem, results in by_problem.items():
        some = next(iter(next(runs for runs in results.values() if runs).values()))
        metric, greater = compared(settings, some)
        found.append(Group(problem, results, metric, greater))
    return found


def compared(settings: Settings, result: Row) -> tuple[str, bool]:
    """The held-out metric that is compared, and whether a greater one is better."""
    known = next(iter(result["measured"].values()))["heldout"]
    metric: str = result["metric"]["name"]
    greater: bool = result["metric"]["greater_is_better"]
    if settings.heldout_metric is None:
        # Of the divergence's metrics the one that the paper reports.
        return ("perplexity" if metric == "kl" else metric), greater
    if settings.heldout_metric not in known:
        raise unknown("heldout_metric", settings.heldout_metric, known)
    return settings.heldout_metric, greater


def check(found: list[Group]) -> None:
    """Raise :class:`InputError` where there is nothing to show."""
    if not found:
        raise InputError("no run came to an end: see the .error.txt files in the folder jobs")
