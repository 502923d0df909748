"""Tables of runs: those that are printed, and the CSV files in the run folder."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import moocore

from sos_deap.files.atomic import write_csv
from sos_deap.report.formats import change, format_value, measurement, percent, search_end
from sos_deap.report.refit_lines import refit_lines
from sos_deap.search.chromosome import WORST_FITNESS
from sos_deap.tasks.objectives import OBJECTIVES

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
    chapters = {
        f"{name}_{key}": value
        for name, chapter in logbook.chapters.items()
        for key, value in chapter[number].items()
        if key not in ("gen", "nevals")
    }
    return {**logbook[number], **chapters, **row}


def number(given: str | float | None) -> float:
    """Return a value of a logbook row; NaN if it is missing, or includes the worst fitness."""
    value = math.nan if given in (None, "") else float(given)
    return value if value > WORST_FITNESS / 1e6 else math.nan


def write_evaluations(path: Path, evaluator: Evaluator) -> None:
    """Write every chromosome computed, in order, with its metric and sparsity, as CSV."""
    _write_chromosomes(path, evaluator, chromosomes(evaluator, evaluator.history()))


def write_front(path: Path, evaluator: Evaluator) -> None:
    """Write the non-dominated ones of all chromosomes computed as CSV; see :func:`front`."""
    _write_chromosomes(path, evaluator, chromosomes(evaluator, front(evaluator)))


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


def _write_chromosomes(path: Path, evaluator: Evaluator, rows: Iterator[dict[str, Any]]) -> None:
    header = ["chromosome", evaluator.task.name, "sparsity"]
    write_csv(path, header, (list(row.values()) for row in rows))


def table(result: Mapping[str, Any]) -> str:
    """Return the table of the dense and the pruned model, as text.

    :param result: the content of a ``result.json``.
    """
    lines = [f"{'':34}{'dense':>14}{'pruned':>14}{'change':>10}"]
    lines += [f"{row[0]:34}{row[1]:>14}{row[2]:>14}{row[3]:>10}" for row in cells(result)]
    if bad := result["search"]["non_finite"]:
        metric = next(iter(result["dense"]["calibration"]))
        lines.append(f"{bad} sub-models had no finite {metric} and got the worst fitness")
    lines += refit_lines(result)
    lines += [f"{part}: {inline(described)}" for part, described in result["data"].items()]
    return "\n".join([*lines, f"dtype: {result['dtype']}"])


def cells(result: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return rows of text: label, dense value, pruned value, change in percent.

    :param result: the content of a ``result.json``; during a search, ``best`` lacks some values,
        and these have no row.
    """
    dense, best = result["dense"], result["best"]
    rows = [
        comparison_row(label, dense[key], best[key])
        for label, key in (
            ("attention heads", "heads"),
            ("feed-forward channels", "channels"),
            ("parameters", "parameters"),
            ("bytes of weights", "bytes"),
        )
        if key in dense and key in best
    ]
    without = result.get("refit", {}).get("without", {})
    labels = {"calibration": "calibration", "heldout": "held-out", "probe": "probe"}
    for part, label in labels.items():
        for name, value in dense.get(part, {}).items():
            if name in best.get(part, ()):
                rows.append(comparison_row(f"{name}, {label}", value, best[part][name]))
            if part in without:
                before = without[part][name]
                rows.append(comparison_row(f"{name}, {label}, no refit", value, before))
    return rows


def comparison_row(
    label: str, dense: float | None, pruned: float | None
) -> tuple[str, str, str, str]:
    """Return a row of text; ``None`` stands for a metric that was not finite."""
    before, after = ("-" if value is None else format_value(value) for value in (dense, pruned))
    changed = change(dense, pruned) if dense and pruned is not None else "-"
    return label, before, after, changed


def inline(described: dict[str, Any]) -> str:
    """Return a task's description of its data on one line."""
    return ", ".join(
        str(value) if name == "split" else f"{name} {format_value(value)}"
        for name, value in described.items()
    )


def measured_table(rows: Iterable[dict[str, Any]]) -> str:
    """Return the rows of :func:`sos_deap.models.measure.measure` as tables of text."""
    return "\n\n".join(map(_measured, rows))


def _measured(row: dict[str, Any]) -> str:
    shown = measured_cells(row)
    names = shown["names"]
    lines = [f"{shown['title']:34}" + "".join(f"{name:>14}" for name in names)]
    if len(names) > 1:
        lines[0] += f"{'saved':>10}{'bound':>8}"
    for label, *values, saved, bound in shown["rows"]:
        line = f"{label:34}" + "".join(f"{value:>14}" for value in values)
        lines.append((line + f"{saved:>10}{bound:>8}").rstrip())
    return "\n".join(lines)


def measured_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table of one batch size and length, as text.

    :param row: a row of :func:`sos_deap.models.measure.measure`.
    :returns: ``title``; ``names`` of the models; ``rows``, each of a label, a value per model, the
        share that the second model saves, and the saving predicted from operations or bytes.
    """
    names = list(row["models"])
    rows = []
    for label, key, scale, gain in (
        ("prefill, ms", "prefill_seconds", 1e3, "prefill"),
        ("decoding, ms per token", "decode_seconds", 1e3, "decode"),
        ("decoding, tokens per second", "decode_tokens_per_second", 1, None),
        ("peak memory of a prefill, MB", "peak_bytes", 1e-6, None),
        ("weights, MB", "weight_bytes", 1e-6, None),
        ("key/value cache, bytes per token", "kv_bytes_per_token", 1, None),
    ):
        values = [row["models"][name][key] for name in names]
        if None in values:
            continue
        saved = bound = ""
        if len(names) == 2 and values[0] and key != "decode_tokens_per_second":
            saved = percent(1 - values[1] / values[0])
            bound = percent(row["gains"][names[1]][f"{gain}_bound"]) if gain else ""
        # A count, though stored as a quotient; all others are measurements.
        scaled = (
            round(value) if key == "kv_bytes_per_token" else value * scale for value in values
        )
        rows.append([label, *map(format_value, scaled), saved, bound])
    title = f"{row['batch_size']} x {row['length']} tokens, medians of {row['rounds']}"
    return {"title": title, "names": names, "rows": rows}
