"""What a run shows and leaves behind: a progress line, a table, and its CSV files."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import moocore
from jinja2 import TemplateError

from sos_deap.errors import InputError, first_line
from sos_deap.evaluation.evaluator import Evaluator
from sos_deap.files.atomic import write_csv
from sos_deap.search.chromosome import WORST_FITNESS
from sos_deap.tasks.objectives import OBJECTIVES
from sos_deap.tasks.task import Task

#: What reading a file raises, with a key error, that says other things than it should.
_DAMAGE = (
    ArithmeticError,
    AttributeError,
    IndexError,
    RecursionError,
    StopIteration,
    TypeError,
    ValueError,
    csv.Error,
    TemplateError,
    MemoryError,
)


def winner(halloffame: Any, metric: str = "") -> Any:
    """The best chromosome; of a Pareto front the one that Equation 1 prefers; ``None`` if empty.

    :param halloffame: a hall of fame or a Pareto front.
    :param metric: its metric; for ``"kl"`` Equation 1 is over the factor that perplexity grows by.
    """
    if not len(halloffame):
        return None
    if len(halloffame[0].fitness.weights) == 1:
        return halloffame[0]
    prefers = OBJECTIVES["kl" if metric == "kl" else "paper"]
    return max(halloffame, key=lambda chromosome: prefers(*chromosome.fitness.values))


def write_logbook(path: Path, logbook: Any, rows: Iterable[dict[str, Any]]) -> None:
    """Write what :func:`generations` gives."""
    table = generations(logbook, rows)
    write_csv(path, list(table[0]), (list(row.values()) for row in table))


def generations(logbook: Any, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """What :func:`generation` gives, of each."""
    return [generation(logbook, i, row) for i, row in enumerate(rows)]


def generation(logbook: Any, number: int, row: dict[str, Any]) -> dict[str, Any]:
    """A row of DEAP's logbook, its chapters flattened (``fitness_max``), and the accounts' beside.

    :param logbook: with that row.
    :param number: of the generation.
    :param row: its figures from :class:`sos_deap.report.console.Progress`.
    """
    chapters = {
        f"{name}_{key}": value
        for name, chapter in logbook.chapters.items()
        for key, value in chapter[number].items()
        if key not in ("gen", "nevals")
    }
    return {**logbook[number], **chapters, **row}


def number(given: str | float | None) -> float:
    """A figure of such a row; NaN for none, and for the worst fitness or a mean with one."""
    value = math.nan if given in (None, "") else float(given)
    return value if value > WORST_FITNESS / 1e6 else math.nan


def write_evaluations(path: Path, evaluator: Evaluator) -> None:
    """Every chromosome computed, in order, with its metric and sparsity."""
    _write_chromosomes(path, evaluator, chromosomes(evaluator, evaluator.history()))


def write_front(path: Path, evaluator: Evaluator) -> None:
    """The archive: of all chromosomes computed those that none beats in metric and sparsity."""
    _write_chromosomes(path, evaluator, chromosomes(evaluator, front(evaluator)))


def front(evaluator: Evaluator) -> list[tuple[list[int], float]]:
    """Chromosomes that no other is better than in metric and sparsity, by growing sparsity."""
    sign = 1 if evaluator.task.greater_is_better else -1
    found: list[tuple[list[int], float]] = []
    everyone = [(genes, metric) for genes, metric in evaluator.history() if math.isfinite(metric)]
    for genes, metric in sorted(
        everyone, key=lambda one: (evaluator.sparsity(one[0]), sign * one[1]), reverse=True
    ):
        if not found or sign * metric > sign * found[-1][1]:
            found.append((genes, metric))
    return found[::-1]


def front_hypervolume(task: Task, halloffame: Any, dense: float) -> dict[str, Any]:
    """The area that a Pareto front dominates (Zitzler and Thiele, 1998), in units of the metric.

    :param task: which says the metric that counts.
    :param halloffame: the front, of fitness values score and sparsity.
    :param dense: the metric of the whole model on the same data.
    :returns: ``value``, and the ``reference`` point where it begins: no sparsity, and twice the
        dense metric for costs, log 2 for a divergence (which doubles the perplexity), 0 for gains.
    """
    worst = 0.0 if task.greater_is_better else math.log(2) if task.name == "kl" else 2 * dense
    score = worst if task.greater_is_better else -worst
    points = [list(chromosome.fitness.values) for chromosome in halloffame]
    return {
        "value": float(moocore.hypervolume(points, ref=[score, 0.0], maximise=True)),
        "reference": {task.name: worst, "sparsity": 0.0},
    }


def front_line(hypervolume: dict[str, Any]) -> str:
    """What :func:`front_hypervolume` found, for people."""
    at = " and ".join(f"{name} {worst:.4g}" for name, worst in hypervolume["reference"].items())
    return f"hypervolume of the Pareto front {hypervolume['value']:.5g}, from {at}"


def search_lines(search: Mapping[str, Any]) -> str:
    """How a search ended, of the ``search`` part of ``result.json``."""
    lines = [f"ended after {search['generations']} generations, stopped by {search['stopped_by']}"]
    if "validated" in search:
        lines.append(f"the winner is the best of {search['validated']} on the validation examples")
    if "hypervolume" in search:
        lines.append(front_line(search["hypervolume"]))
    return "\n".join(lines)


def chromosomes(
    evaluator: Evaluator, evaluated: Iterable[tuple[list[int], float]]
) -> Iterator[dict[str, Any]]:
    """Chromosomes as a table: genes, metric and sparsity by name."""
    for genes, metric in evaluated:
        yield {
            "chromosome": "".join(map(str, genes)),
            evaluator.task.name: metric,
            "sparsity": evaluator.sparsity(genes),
        }


def _write_chromosomes(path: Path, evaluator: Evaluator, rows: Iterator[dict[str, Any]]) -> None:
    header = ["chromosome", evaluator.task.name, "sparsity"]
    write_csv(path, header, (list(row.values()) for row in rows))


def table(result: dict[str, Any]) -> str:
    """Dense beside pruned, from a ``result.json``'s content."""
    lines = [f"{'':34}{'dense':>14}{'pruned':>14}{'change':>10}"]
    lines += [f"{row[0]:34}{row[1]:>14}{row[2]:>14}{row[3]:>10}" for row in cells(result)]
    if bad := result["search"]["non_finite"]:
        metric = next(iter(result["dense"]["calibration"]))
        lines.append(f"{bad} sub-models had no finite {metric} and got the worst fitness")
    lines += [f"{part}: {inline(described)}" for part, described in result["data"].items()]
    return "\n".join([*lines, f"dtype: {result['dtype']}"])


def cells(result: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """The rows of that table: what, dense, pruned, and the change.

    What is not known of the best yet, while a search goes on, has no row.
    """
    dense, best = result["dense"], result["best"]
    rows = [
        _row(label, dense[key], best[key], ",d")
        for label, key in (
            ("attention heads", "heads"),
            ("parameters", "parameters"),
            ("bytes of weights", "bytes"),
        )
        if key in best
    ]
    for part, label in (("calibration", "calibration"), ("heldout", "held-out")):
        for name, value in dense[part].items():
            if name in best.get(part, ()):
                rows.append(_row(f"{name}, {label}", value, best[part][name], ",.3f"))
    return rows


def _row(
    label: str, dense: float | None, pruned: float | None, style: str
) -> tuple[str, str, str, str]:
    """A row of the table; ``None`` is a metric that was not finite."""
    before, after = ("-" if value is None else format(value, style) for value in (dense, pruned))
    change = f"{pruned / dense - 1:+.1%}" if dense and pruned is not None else "-"
    return label, before, after, change


@contextmanager
def corrupt_files_as_input_error(folder: Path) -> Iterator[None]:
    """Raise :class:`InputError` where a run's files are missing, or not as a run writes them."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} is no folder of a complete run: {Path(error.filename).name} is missing"
        ) from error
    except (IsADirectoryError, NotADirectoryError) as error:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}") from error
    except KeyError as error:
        raise InputError(f"a file of the run in {folder} is damaged: it has no {error}") from error
    except _DAMAGE as error:
        raise InputError(
            f"a file of the run in {folder} is damaged: {first_line(error)}"
        ) from error


def comparison(folders: Iterable[Path]) -> str:
    """Complete runs beside each other, a line each."""
    titles = "run", "algorithm", "heads removed", "metric", "dense", "pruned", "change", "seconds"
    rows: list[tuple[str, ...]] = [titles]
    for folder in folders:
        with corrupt_files_as_input_error(folder):
            result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
            rows += _compared(folder.name, result["dense"], result["best"], result["search"])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    shapes = [f"{side}{width}" for side, width in zip("<<><>>>>", widths, strict=True)]
    return "\n".join("  ".join(map(format, row, shapes)) for row in rows)


def _compared(run: str, dense: Any, best: Any, search: Any) -> Iterator[tuple[str, ...]]:
    """The lines of a run, one for each metric."""
    gone = f"{dense['heads'] - best['heads']} of {dense['heads']}"
    for name, value in dense["heldout"].items():
        metric, *figures = _row(f"{name}, held-out", value, best["heldout"][name], ",.3f")
        yield run, str(search["algorithm"]), gone, metric, *figures, f"{search['seconds']:.0f}"


def inline(described: dict[str, Any]) -> str:
    """What a task tells of its data, on one line."""
    return ", ".join(
        str(value) if name == "split" else f"{name} {value}" for name, value in described.items()
    )


def measured_table(rows: Iterable[dict[str, Any]]) -> str:
    """What :func:`sos_deap.models.measure.measure` found, for people."""
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


def measured_cells(row: dict[str, Any]) -> dict[str, Any]:
    """The table of what was measured at one size.

    :returns: ``title``; ``names`` of the models; ``rows``: what, a figure a model, what the second
        saves of the first, and the bound of that, each as text.
    """
    names = list(row["models"])
    rows = []
    for label, key, scale, gain in (
        ("prefill, ms", "prefill_seconds", 1e3, "prefill"),
        ("decoding, ms a token", "decode_seconds", 1e3, "decode"),
        ("decoding, tokens a second", "decode_tokens_per_second", 1, None),
        ("peak memory of a prefill, MB", "peak_bytes", 1e-6, None),
        ("weights, MB", "weight_bytes", 1e-6, None),
        ("key/value cache, bytes a token", "kv_bytes_per_token", 1, None),
    ):
        values = [row["models"][name][key] for name in names]
        if None in values:
            continue
        saved = bound = ""
        if len(names) == 2 and values[0] and key != "decode_tokens_per_second":
            saved = f"{1 - values[1] / values[0]:.1%}"
            bound = f"{row['gains'][names[1]][f'{gain}_bound']:.1%}" if gain else ""
        rows.append([label, *(f"{value * scale:,.6g}" for value in values), saved, bound])
    title = f"{row['batch_size']} x {row['length']} tokens, medians of {row['rounds']}"
    return {"title": title, "names": names, "rows": rows}
