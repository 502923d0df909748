"""Writes the runs as files for IOHanalyzer, with its package `ioh`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.variants.results import Group
from sos_deap.errors import InputError
from sos_deap.files.atomic import make_empty_subfolder


def checked() -> Any:
    """Import the package `ioh`.

    :raises InputError: if it is not installed.
    """
    try:
        return import_module("ioh")
    except ImportError as error:
        raise InputError(
            "--ioh needs the package ioh, which supports Python up to 3.12: pip install ioh, "
            "or remove --ioh"
        ) from error


def write(folder: Path, groups: Sequence[Group]) -> None:
    """Write ``folder/VARIANT/`` as data folders of IOHanalyzer, replacing existing ones.

    Each problem is a function, and each run has its seed as an attribute. The value of a run after
    a number of evaluations is the held-out metric of its incumbent at equal sparsity; IOHanalyzer
    keeps the best so far. A budget in tokens is converted to evaluations on the shared calibration
    examples.
    """
    ioh = checked()
    make_empty_subfolder(folder)
    replays = [_Replay(ioh, group) for group in groups]
    for variant in dict.fromkeys(name for group in groups for name in group.results):
        logger = ioh.logger.Analyzer(
            root=str(folder), folder_name=variant, algorithm_name=variant, store_positions=False
        )
        for replay in replays:
            replay.log(logger, variant)
        logger.close()


class _Replay:
    """An `ioh` problem whose values are the recorded metrics of runs; ``seed`` is logged."""

    def __init__(self, ioh: Any, group: Group) -> None:
        self.seed = 0
        self._group = group
        self._genes: int = group.any["genes"]
        self._values: Iterator[float] = iter(())
        kinds = ioh.OptimizationType
        self._problem = ioh.wrap_problem(
            lambda _: next(self._values),
            name=group.problem.slug,
            optimization_type=kinds.MAX if group.greater else kinds.MIN,
            problem_class=ioh.ProblemClass.INTEGER,
            dimension=self._genes,
            instance=1,
            lb=0,
            ub=1,
        )

    def log(self, logger: Any, variant: str) -> None:
        """Log a variant's runs."""
        logger.add_run_attributes(self, ["seed"])
        self._problem.attach_logger(logger)
        for seed, result in self._group.results[variant].items():
            self.seed = seed
            values = list(self._by_evaluation(result))
            self._values = iter(values)
            for _ in values:
                self._problem([1] * self._genes)
            self._problem.reset()
        self._problem.detach_logger()

    def _by_evaluation(self, result: dict[str, Any]) -> Iterator[float]:
        """Yield the incumbent's metric after each evaluation; the worst before any checkpoint."""
        group, each = self._group, self._group.evaluation_tokens or 1
        known = {}
        for row in result["checkpoints"]:
            spent = row["tokens"] / each if group.problem.in_tokens else group.spent(row)
            known[max(1, round(spent))] = group.cost(group.value(result, row["equal"]))
        now = max(known.values())
        for evaluation in range(1, max(known) + 1):
            now = known.get(evaluation, now)
            yield -now if group.greater else now
