"""The runs as files for IOHanalyzer, written by the package `ioh` of its own project."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.variants.tables import Group
from sos_deap.errors import InputError


def checked() -> Any:
    """The package.

    :raises InputError: if it is not installed.
    """
    try:
        return import_module("ioh")
    except ImportError as error:
        raise InputError(
            "--ioh needs the package ioh, which is there for Python up to 3.12: pip install ioh, "
            "or leave --ioh out"
        ) from error


def write(folder: Path, groups: Iterable[Group]) -> None:
    """Write ``folder/VARIANT/``, each a data folder of IOHanalyzer; what was there is replaced.

    A function is a problem, an instance a seed. Its value after a number of evaluations is the
    held-out metric at equal sparsity of the incumbent then, of which IOHanalyzer keeps the best so
    far; a budget in tokens is counted in evaluations of the calibration examples that all share.
    """
    ioh = checked()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number, group in enumerate(groups, 1):
        for variant, runs in group.results.items():
            for seed, result in runs.items():
                _replay(ioh, folder, (number, group), variant, (seed, result))


def _replay(
    ioh: Any,
    folder: Path,
    numbered: tuple[int, Group],
    variant: str,
    run: tuple[int, dict[str, Any]],
) -> None:
    """Let the package log a run's values at the evaluations they were reached at."""
    (number, group), (seed, result) = numbered, run
    each = group.evaluation_tokens or 1
    values: dict[int, float] = {}
    for row in result["checkpoints"]:
        spent = row["tokens"] / each if group.problem.in_tokens else group.spent(row)
        values[max(1, round(spent))] = group.cost(group.value(result, row["equal"]))
    calls = iter(range(1, max(values) + 1))
    now = max(values.values())  # until the first checkpoint nothing better is known

    def value(_: Any) -> float:
        nonlocal now
        now = values.get(next(calls), now)
        return now

    problem = ioh.wrap_problem(
        value,
        name=group.problem.slug,
        problem_class=ioh.ProblemClass.INTEGER,
        dimension=result["genes"],
        instance=seed,
        lb=0,
        ub=1,
    )
    logger = ioh.logger.Analyzer(
        root=str(folder),
        folder_name=variant,
        algorithm_name=variant,
        algorithm_info=f"problem {number}",
        store_positions=False,
    )
    problem.attach_logger(logger)
    for _ in range(max(values)):
        problem([1] * result["genes"])
    problem.detach_logger()
    logger.close()
