"""A run as one self-contained page, from the files in its folder."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib import colormaps
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from sos_deap.figures import COLOURS, INK, save
from sos_deap.files import write_text
from sos_deap.report import cells, damage_told, inline, measured_cells
from sos_deap.search.chromosome import WORST_FITNESS

TEMPLATES = Path(__file__).parent

Row = dict[str, str]


def write_page(folder: Path) -> Path:
    """Write ``report.html`` into a run folder, and its figures, PNG and SVG, into ``plots/``.

    :param folder: of a run that is complete.
    :returns: the path of the page.
    :raises InputError: for a folder without a run's result, or whose files cannot be read.
    """
    with damage_told(folder):
        result, config = (_json(folder / name) for name in ("result.json", "config.json"))
        measured = _json(folder / "measured.json") if (folder / "measured.json").exists() else []
        evaluations, logbook = (_rows(folder / name) for name in ("evaluations.csv", "logbook.csv"))
        front = _rows(folder / "pareto.csv")
        text = _rendered(folder, result, config, measured, evaluations, logbook, front)
    path = folder / "report.html"
    write_text(path, text)
    return path


def _rendered(
    folder: Path,
    result: Any,
    config: Any,
    measured: Any,
    evaluations: Sequence[Row],
    logbook: Sequence[Row],
    front: Sequence[Row],
) -> str:
    dense, best, search = result["dense"], result["best"], result["search"]
    metric = next(iter(dense["calibration"]))
    plots = folder / "plots"
    pages = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return pages.get_template("page.html").render(
        model=config["model"],
        heads=dense["heads"],
        removed=dense["heads"] - best["heads"],
        algorithm=search["algorithm"],
        metric=metric,
        rows=cells(result),
        speeds=[measured_cells(row) for row in measured],
        heads_figure=save(
            plots, "heads", lambda: heads_figure(best["chromosome"], search["genes_per_layer"])
        ),
        scatter=save(
            plots, "sub_models", lambda: scatter(evaluations, front, metric, dense["calibration"])
        ),
        generations=save(plots, "generations", lambda: by_generation(logbook)),
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
    """Fitness, sparsity (Figure 4 of the paper) and known chromosomes, by generation."""
    figure = Figure(figsize=(9, 2.9), layout="constrained")
    fitness, sparsity, hits = figure.subplots(1, 3)
    numbers = [int(row["gen"]) for row in logbook]
    for axis, name in ((fitness, "fitness"), (sparsity, "sparsity")):
        least, mean, most = (
            [_number(row.get(f"{name}_{which}")) for row in logbook]
            for which in ("min", "avg", "max")
        )
        axis.plot(numbers, mean, color=COLOURS[0], linewidth=1.3)
        if name == "sparsity":
            axis.fill_between(numbers, least, most, color=COLOURS[0], alpha=0.2, linewidth=0)
        else:  # the worst of a generation may be far off, and would hide all others
            axis.plot(numbers, most, color=COLOURS[1], linewidth=1.3)
        axis.set_title(f"{name}: mean and " + ("range" if name == "sparsity" else "best"))
    known = [int(row["cache_hits"]) for row in logbook]
    hits.plot(numbers, known, color=COLOURS[0], linewidth=1.3)
    hits.set_title("evaluations saved by the cache")
    for axis in (fitness, sparsity, hits):
        axis.set_xlabel("generation")
    return figure


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _rows(path: Path) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _number(text: str | None) -> float:
    """A figure of the logbook; what was not finite, or the worst fitness, is no point."""
    value = float(text) if text else math.nan
    return value if value > WORST_FITNESS / 1e6 else math.nan  # the mean with one is as bad


def _told(value: Any) -> str:
    """A value of the accounts, for people."""
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
