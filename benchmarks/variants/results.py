"""Results of the jobs by problem, and the metric to compare."""

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

#: The cost of a metric that is not finite: worse than any other.
_WORST = 1e300


@dataclass(frozen=True)
class Group:
    """The runs of all variants on one problem.

    :param results: contents of the jobs' files, by variant and seed.
    :param metric: name of the held-out metric to compare.
    :param greater: whether higher is better.
    """

    problem: Problem
    results: dict[str, dict[int, Row]]
    metric: str
    greater: bool

    @property
    def any(self) -> Row:
        """One of the results, for values that are equal in all."""
        return next(result for runs in self.results.values() for result in runs.values())

    @property
    def evaluation_tokens(self) -> int:
        """Tokens of an evaluation on the shared calibration examples."""
        tokens: int = self.any["evaluation_tokens"]
        return tokens

    @property
    def dense(self) -> float:
        """The dense model's held-out metric."""
        return self.value(self.any, "1" * self.any["genes"])

    def value(self, result: Row, chromosome: str, part: str = "heldout") -> float:
        """Return the compared metric of a chromosome; NaN if it is not finite."""
        value = result["measured"][chromosome][part][self.metric]
        return float("nan") if value is None else float(value)

    def cost(self, value: float) -> float:
        """Convert a metric to a cost, where lower is better."""
        if math.isnan(value):
            return _WORST
        return -value if self.greater else value

    def final(self, result: Row, form: str = "equal", part: str = "heldout") -> float:
        """Return the winner's metric."""
        return self.value(result, result["checkpoints"][-1][form], part)

    def finals(self, variant: str, form: str = "equal", part: str = "heldout") -> list[float]:
        """Return the winners' metrics in the order of seeds."""
        return [self.final(result, form, part) for result in self.results[variant].values()]

    def costs(self) -> dict[str, dict[Any, float]]:
        """Return the winners' costs at equal sparsity by variant and seed, for the tests."""
        return {
            variant: {seed: self.cost(self.final(result)) for seed, result in runs.items()}
            for variant, runs in self.results.items()
        }

    def spent(self, row: Row) -> float:
        """Return the cost up to a row of a result, in units of the budget."""
        if self.problem.in_tokens:
            return float(row["tokens"])
        each = self.evaluation_tokens
        return float(row["tokens"] / each if each else row["evaluations"])


def groups(settings: Settings, planned: Iterable[Job]) -> list[Group]:
    """Read the existing results, by problem.

    :raises InputError: if they do not have the held-out metric to compare.
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
    """Return the name of the held-out metric to compare, and whether higher is better."""
    known = next(iter(result["measured"].values()))["heldout"]
    metric: str = result["metric"]["name"]
    greater: bool = result["metric"]["greater_is_better"]
    if settings.heldout_metric is None:
        # For the task kl, perplexity is compared, as in the paper.
        return ("perplexity" if metric == "kl" else metric), greater
    if settings.heldout_metric not in known:
        raise unknown("heldout_metric", settings.heldout_metric, known)
    return settings.heldout_metric, greater


def check(found: list[Group]) -> None:
    """Raise :class:`InputError` if there are no results."""
    if not found:
        raise InputError("all runs failed: see the .error.txt files in the folder jobs")
