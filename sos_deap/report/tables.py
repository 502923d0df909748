"""Tables of runs: those that are printed, and the CSV files in the run folder."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import moocore

from sos_deap.files.atomic import write_csv
from sos_deap.report.formats import change, counted, format_value, measurement, search_end, signed
from sos_deap.report.refit_lines import refit_lines
from sos_deap.search.chromosome import WORST_FITNESS
from sos_deap.search.statistics import flat_row
from sos_deap.tasks.objectives import OBJECTIVES
from sos_deap.tasks.task import SHARES

if TYPE_CHECKING:  # these import torch, which `report` must not wait for
    from sos_deap.evaluation.evaluator import Evaluator
    from sos_deap.tasks.task import Task


def winner(halloffame: Any, metric: str = "") -> Any:
    """Return the best chromosome: the first of a hall of fame, or the best of a Pareto front.

    On a Pareto front, the paper's Equation 1 decides.

    :param halloffame: a hall of fame, or a front with the fitness values (score, sparsity).
    :param metric: name of the metric; for ``"kl"``, Equation 1 is applied to ``exp(kl)``.
    :returns: the chromosome, or ``None`` if there is none.
    """
    if not len(halloffame):
        return None
    if len(halloffame[0].fitness.weights) == 1:
        return halloffame[0]
    prefers = OBJECTIVES["kl" if metric == "kl" else "paper"]
    return max(halloffame, key=lambda chromosome: prefers(*chromosome.fitness.values))


def write_logbook(path: Path, logbook: Any, rows: Iterable[dict[str, Any]]) -> None:
    """Write the rows of :func:`generations` as CSV."""
    table = generations(logbook, rows)
    write_csv(path, list(table[0]), (list(row.values()) for row in table))


def generations(logbook: Any, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the row of every generation; see :func:`generation`."""
    return [generation(logbook, i, row) for i, row in enumerate(rows)]


def generation(logbook: Any, number: int, row: dict[str, Any]) -> dict[str, Any]:
    """Return DEAP's statistics of a generation and its accounting as one row.

    :param logbook: DEAP's logbook; a value ``max`` of its chapter ``fitness`` becomes
        ``fitness_max``.
    :param number: number of the generation; 0 is the initial population.
    :param row: the generation's row in :class:`sos_deap.report.console.Progress`.
    """
    return {**flat_row(logbook, number), **row}


def number(given: str | float | None) -> float:
    """Return a value of a logbook row; NaN if it is missing, or includes the worst fitness."""
    value = math.nan if given in (None, "") else float(given)
    return value if value > WORST_FITNESS / 1e6 else math.nan


def write_evaluations(path: Path, evaluator: Evaluator) -> None:
    """Write every chromosome computed, in order, with its metric and sparsity, as CSV."""
    _write_chromosomes(path, evaluator, chromosomes(evaluator, evaluator.history()))


def write_front(
    path: Path, evaluator: Evaluator, columns: Sequence[Mapping[str, float | None]] = ()
) -> None:
    """Write the non-dominated ones of all chromosomes computed as CSV; see :func:`front`.

    :param path: the file.
    :param evaluator: the evaluator of the search.
    :param columns: further columns of each row, by name.
    """
    rows = chromosomes(evaluator, front(evaluator))
    if not columns:
        _write_chromosomes(path, evaluator, rows)
        return
    wider = ({**row, **more} for row, more in zip(rows, columns, strict=True))
    _write_chromosomes(path, evaluator, wider, tuple(columns[0]))


def write_genes(
    path: Path, evaluator: Evaluator, chromosome: Sequence[int], losses: Sequence[float] | None
) -> None:
    """Write a row for each gene as CSV: what it stands for, its cost, loss, and whether it is kept.

    :param path: the file.
    :param evaluator: the evaluator of the search.
    :param chromosome: the winner.
    :param losses: the loss in fitness from the removal of each gene; ``None`` if not measured.
    """
    parts = evaluator.gene_map.parts
    places = [(part.layer, part.kind, i) for part in parts for i in range(part.size)]
    costs = evaluator.sparsity.costs
    known: Sequence[float | None] = [None] * len(places) if losses is None else losses
    write_csv(
        path,
        ["layer", "kind", "gene", "kept", "cost", "loss"],
        ([*place, *row] for place, *row in zip(places, chromosome, costs, known, strict=True)),
    )


def front(evaluator: Evaluator) -> list[tuple[list[int], float]]:
    """Return the chromosomes that no other dominates in metric and sparsity, by sparsity."""
    sign = 1 if evaluator.task.greater_is_better else -1
    found: list[tuple[list[int], float]] = []
    finite = [(genes, metric) for genes, metric in evaluator.history() if math.isfinite(metric)]
    for genes, metric in sorted(
        finite, key=lambda one: (evaluator.sparsity(one[0]), sign * one[1]), reverse=True
    ):
        if not found or sign * metric > sign * found[-1][1]:
            found.append((genes, metric))
    return found[::-1]


def front_hypervolume(task: Task, halloffame: Any, dense: float) -> dict[str, Any]:
    """Return the hypervolume of a Pareto front (Zitzler and Thiele, 1998), in units of the metric.

    :param task: the task whose metric is the score.
    :param halloffame: the front, with the fitness values (score, sparsity).
    :param dense: the dense model's metric on the same data.
    :returns: ``value``, and the ``reference`` point: sparsity 0, and as metric twice the dense one
        where lower is better (log 2 for ``kl``, which doubles the perplexity), else 0.
    """
    worst = 0.0 if task.greater_is_better else math.log(2) if task.name == "kl" else 2 * dense
    score = worst if task.greater_is_better else -worst
    points = [list(chromosome.fitness.values) for chromosome in halloffame]
    return {
        "value": float(moocore.hypervolume(points, ref=[score, 0.0], maximise=True)),
        "reference": {task.name: worst, "sparsity": 0.0},
    }


def front_line(hypervolume: dict[str, Any]) -> str:
    """Return what :func:`front_hypervolume` found as a sentence."""
    points = hypervolume["reference"].items()
    reference = " and ".join(f"{name} {measurement(value)}" for name, value in points)
    value = measurement(hypervolume["value"])
    return f"hypervolume of the Pareto front: {value} (reference point: {reference})"


def bound_lines(result: Mapping[str, Any]) -> list[str]:
    """Return a sentence on the choice by the loss; none if the run has no bound on it.

    :param result: the content of a ``result.json``.
    """
    if "bound" not in result:
        return []
    bound = result["bound"]
    unit = "points" if bound["metric"] in SHARES else "%"
    return [
        f"chosen: the smallest of {counted(bound['sub_models'], 'sub-model')} with a loss of at "
        f"most {bound['max_loss']:g} {unit} of {bound['metric']} on validation examples "
        f"({measurement(bound['loss'])} {unit})"
    ]


def search_lines(search: Mapping[str, Any]) -> str:
    """Return lines on how a search ended.

    :param search: the ``search`` part of a ``result.json``.
    """
    lines = [search_end(search)]
    if "validated" in search:
        lines.append(f"the winner is the best of {search['validated']} on the validation examples")
    if "hypervolume" in search:
        lines.append(front_line(search["hypervolume"]))
    return "\n".join(lines)


def chromosomes(
    evaluator: Evaluator, evaluated: Iterable[tuple[list[int], float]]
) -> Iterator[dict[str, Any]]:
    """Yield chromosomes as rows: ``chromosome`` (0s and 1s), metric and ``sparsity``."""
    for genes, metric in evaluated:
        yield {
            "chromosome": "".join(map(str, genes)),
            evaluator.task.name: metric,
            "sparsity": evaluator.sparsity(genes),
        }


def _write_chromosomes(
    path: Path, evaluator: Evaluator, rows: Iterable[dict[str, Any]], more: Sequence[str] = ()
) -> None:
    header = ["chromosome", evaluator.task.name, "sparsity", *more]
    write_csv(path, header, (list(row.values()) for row in rows))


def table(result: Mapping[str, Any]) -> str:
    """Return the table of the dense and the pruned model, as text.

    :param result: the content of a ``result.json``.
    """
    lines = [columns(cells(result))]
    if bad := result["search"]["non_finite"]:
        metric = next(iter(result["dense"]["calibration"]))
        lines.append(f"{bad} sub-models had no finite {metric} and got the worst fitness")
    lines += refit_lines(result)
    lines += [f"{part}: {inline(described)}" for part, described in result["data"].items()]
    return "\n".join([*lines, f"dtype: {result['dtype']}"])


def columns(rows: Iterable[Sequence[str]]) -> str:
    """Return rows of :func:`cells` as lines of text, under a header."""
    every = [("", "dense", "pruned", "change"), *rows]
    return "\n".join(f"{row[0]:34}{row[1]:>14}{row[2]:>14}{row[3]:>14}" for row in every)


def cells(result: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return rows of text: label, dense value, pruned value, change in percent or points.

    :param result: the content of a ``result.json``; during a search, ``best`` lacks some values,
        and these have no row.
    """
    both = dense, best = result["dense"], result["best"]
    rows = [
        comparison_row(label, *(model[key] * scale if scale else model[key] for model in both))
        for label, key, scale in (
            ("attention heads", "heads", None),
            ("feed-forward channels", "channels", None),
            ("experts", "experts", None),
            ("parameters", "parameters", None),
            ("weights, MB", "bytes", 1e-6),
        )
        if all(key in model for model in both)
    ]
    without = result.get("refit", {}).get("without", {})
    labels = {"calibration": "calibration", "heldout": "held-out", "probe": "probe"}
    for part, label in labels.items():
        changes = result.get("change", {}).get(part, {})
        for name, value in dense.get(part, {}).items():
            points = changes.get(name, {}).get("kind") == "points"
            if name in best.get(part, ()):
                after = best[part][name]
                rows.append(comparison_row(f"{name}, {label}", value, after, points))
            if part in without:
                before = without[part][name]
                rows.append(comparison_row(f"{name}, {label}, no refit", value, before, points))
    return rows


def comparison_row(
    label: str, dense: float | None, pruned: float | None, points: bool = False
) -> tuple[str, str, str, str]:
    """Return a row of text.

    :param label: its label.
    :param dense: value of the dense model; ``None`` for a metric that is not finite.
    :param pruned: value of the pruned model.
    :param points: whether the values are shares to show in percent, with their difference in
        points.
    """
    if points and dense is not None and pruned is not None:
        before, after = (f"{measurement(100 * value)} %" for value in (dense, pruned))
        return label, before, after, f"{signed(100 * (pruned - dense))} points"
    before, after = ("-" if value is None else format_value(value) for value in (dense, pruned))
    changed = change(dense, pruned) if dense and pruned is not None else "-"
    return label, before, after, changed


def inline(described: dict[str, Any]) -> str:
    """Return a task's description of its data on one line."""
    return ", ".join(
        str(value) if name == "split" else f"{name} {format_value(value)}"
        for name, value in described.items()
    )
