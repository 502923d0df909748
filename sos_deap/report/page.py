"""A run as one self-contained page, from the files in its folder."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib import colormaps
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from sos_deap.files.atomic import write_text
from sos_deap.files.run_folder import PAGE, UNFINISHED
from sos_deap.report.figures import COLOURS, INK, on_page, save
from sos_deap.report.tables import (
    cells,
    corrupt_files_as_input_error,
    inline,
    measured_cells,
    number,
)

TEMPLATES = Path(__file__).parent

Row = dict[str, Any]  # of a table: as text from a file, as it is from memory

Draw = Callable[[str, Callable[[], Figure]], str]  # a figure by its name; returns its SVG


def write_page(folder: Path) -> Path:
    """Write ``report.html`` into a run folder, and its figures, PNG and SVG, into ``plots/``.

    :param folder: of a run that is complete.
    :returns: the path of the page.
    :raises InputError: for a folder without a run's result, or whose files cannot be read.
    """
    with corrupt_files_as_input_error(folder):
        result, config = (_json(folder / name) for name in ("result.json", "config.json"))
        measured, samples = (
            _json(folder / name) if (folder / name).exists() else []
            for name in ("measured.json", "samples.json")
        )
        evaluations, logbook, front = (
            _rows(folder / f"{name}.csv") for name in ("evaluations", "logbook", "pareto")
        )
        text = _rendered(
            config["model"],
            result,
            evaluations,
            logbook,
            front,
            partial(save, folder / "plots"),
            measured=measured,
            samples=samples,
        )
    write_text(folder / PAGE, text)
    return folder / PAGE


def write_unfinished(
    folder: Path,
    model: str,
    result: dict[str, Any],
    evaluations: Sequence[Row],
    logbook: Sequence[Row],
    front: Sequence[Row],
    going_on: Sequence[str],
    reload: bool,
) -> None:
    """Write ``report.html`` of a search that has not ended, alone.

    It is written often, and lost without harm, so that it is not synced to the disk.

    :param folder: the run folder.
    :param model: its name.
    :param result: what is known so far of a ``result.json``; ``best`` may be empty.
    :param evaluations: as in ``evaluations.csv``.
    :param logbook: as in ``logbook.csv``.
    :param front: as in ``pareto.csv``.
    :param going_on: sentences on where the search is.
    :param reload: whether the page reloads itself, every 30 s.
    """
    text = _rendered(
        model, result, evaluations, logbook, front, on_page, going_on=going_on, reload=reload
    )
    write_text(folder / PAGE, text, durable=False)


def _rendered(
    model: str,
    result: Any,
    evaluations: Sequence[Row],
    logbook: Sequence[Row],
    front: Sequence[Row],
    draw: Draw,
    *,
    measured: Any = (),
    samples: Any = (),
    going_on: Sequence[str] = (),
    reload: bool = False,
) -> str:
    dense, best, search = result["dense"], result["best"], result["search"]
    metric = next(iter(dense["calibration"]))
    shown: dict[str, Callable[[], Figure]] = {
        "sub_models": lambda: scatter(evaluations, front, metric, dense["calibration"]),
        "generations": lambda: by_generation(logbook),
    }
    if best:
        genes_per_layer = search["genes_per_layer"]
        shown["heads"] = lambda: heads_figure(best["chromosome"], genes_per_layer)
    pages = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return pages.get_template("page.html").render(
        model=model,
        going_on=going_on,
        reload=reload,
        unfinished=UNFINISHED,
        heads=dense["heads"],
        removed=dense["heads"] - best["heads"] if best else 0,
        algorithm=search["algorithm"],
        metric=metric,
        rows=cells(result) if best else (),
        speeds=[measured_cells(row) for row in measured],
        samples=samples,
        figures={name: draw(name, figure) for name, figure in shown.items()},
        accounts=[
            (name.replace("_", " "), _told(value))
            for name, value in search.items()
            if not isinstance(value, list | dict)
        ],
        command=result["command"],
        facts=[
            *((f"{part} data", inline(described)) for part, described in result["data"].items()),
            ("dtype", result["dtype"]),
            *result["versions"].items(),
        ],
    )


def heads_figure(chromosome: Sequence[int], genes_per_layer: Sequence[int]) -> Figure:
    """Which heads stay and which go: a row a layer, a column a gene."""
    widest = max(genes_per_layer)
    if sum(genes_per_layer) != len(chromosome):
        raise ValueError(f"{len(chromosome)} genes for {sum(genes_per_layer)} heads")
    figure = Figure(
        figsize=(min(9, 1.6 + 0.32 * widest), min(9, 1 + 0.28 * len(genes_per_layer))),
        layout="constrained",
    )
    axis = figure.subplots()
    genes = iter(chromosome)
    table = [
        [float(next(genes)) for _ in range(count)] + [math.nan] * (widest - count)
        for count in genes_per_layer
    ]
    # Removed ones are of no colour, so that the page's paper shows.
    colours = ListedColormap(["none", COLOURS[0]])
    edges: Any = {"edgecolors": INK, "linewidth": 0.4}
    axis.pcolormesh(table, cmap=colours, vmin=0, vmax=1, **edges)
    axis.set_ylim(len(genes_per_layer), 0)
    axis.set_xlabel("head")
    axis.set_ylabel("layer")
    for size, place in ((widest, axis.set_xticks), (len(genes_per_layer), axis.set_yticks)):
        ticks = range(0, size, max(1, size // 16))
        place([i + 0.5 for i in ticks], list(map(str, ticks)))
    axis.grid(visible=False)
    axis.set_title("filled: kept")
    return figure


def scatter(
    evaluations: Sequence[Row], front: Sequence[Row], metric: str, dense: dict[str, float | None]
) -> Figure:
    """The metric against sparsity, of all chromosomes (Figure 3 of the paper)."""
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axis = figure.subplots()
    points = [
        (i, float(row["sparsity"]), float(row[metric]))
        for i, row in enumerate(evaluations)
        if math.isfinite(float(row[metric]))
    ]
    if points:
        order, sparsities, values = zip(*points, strict=True)
        # Without its dark end, which a dark page would swallow.
        colours = ListedColormap(colormaps["viridis"](np.linspace(0.3, 0.95, 64)))
        drawn = axis.scatter(sparsities, values, c=order, s=10, cmap=colours, linewidths=0)
        figure.colorbar(drawn, label="order of evaluation")
    axis.plot(
        [float(row["sparsity"]) for row in front],
        [float(row[metric]) for row in front],
        color=COLOURS[1],
        linewidth=1.2,
    )
    whole = dense[metric]
    if whole is not None:
        axis.axhline(whole, color=INK, linewidth=0.8, linestyle="--")
        axis.annotate(
            "dense", (1, whole), xycoords=("axes fraction", "data"), ha="right", va="bottom"
        )
    axis.set_xlabel("sparsity, share removed")
    axis.set_ylabel(metric)
    return figure


def by_generation(logbook: Sequence[Row]) -> Figure:
    """Fitness, sparsity (Figure 4 of the paper), diversity and known chromosomes, by generation."""
    figure = Figure(figsize=(8, 5.2), layout=ConstrainedLayoutEngine(h_pad=0.12))
    fitness, sparsity, diversity, hits = figure.subplots(2, 2).flat

    def column(name: str) -> list[float]:
        return [number(row.get(name)) for row in logbook]

    def line(axis: Any, name: str, colour: str = COLOURS[0]) -> None:
        # A marker, so that the first generation, which is no line yet, is seen.
        mark = "o" if len(logbook) == 1 else None
        axis.plot(numbers, column(name), color=colour, linewidth=1.3, marker=mark, markersize=4)
        axis.set_xlabel("generation")
        axis.set_xlim(-0.04 * last, 1.04 * last)
        axis.xaxis.get_major_locator().set_params(integer=True)

    numbers = [int(row["gen"]) for row in logbook]
    last = max(1, *numbers)
    line(fitness, "fitness_avg")
    # The worst of a generation may be far off, and would hide all others.
    line(fitness, "fitness_max", COLOURS[1])
    fitness.set_title("fitness: mean and best")
    line(sparsity, "sparsity_avg")
    least, most = column("sparsity_min"), column("sparsity_max")
    sparsity.fill_between(numbers, least, most, color=COLOURS[0], alpha=0.2, linewidth=0)
    sparsity.set_title("sparsity: mean and range")
    line(diversity, "diversity_hamming")
    diversity.set_ylim(0, 1.1 * max(0.01, *column("diversity_hamming")))
    diversity.set_title("diversity: share of genes that two differ in")
    line(hits, "cache_hits")
    hits.set_title("evaluations saved by the cache so far")
    hits.set_ylim(0, 1.1 * max(1, *column("cache_hits")))
    hits.yaxis.get_major_locator().set_params(integer=True)
    return figure


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _rows(path: Path) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _told(value: Any) -> str:
    """A value of the accounts, for people."""
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
