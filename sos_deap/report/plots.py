"""The figures of a search: all sub-models, and its course by generation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from sos_deap.report.figures import COLOURS, INK
from sos_deap.report.tables import number

Row = dict[str, Any]  # a table's row: text if read from a file, else numbers


def scatter(
    evaluations: Sequence[Row], front: Sequence[Row], metric: str, dense: dict[str, float | None]
) -> Figure:
    """Draw the metric of all sub-models against their sparsity (Figure 3 of the paper).

    :param evaluations: rows of ``evaluations.csv``.
    :param front: rows of ``pareto.csv``, joined by a line.
    :param metric: name of the metric, a column of both.
    :param dense: the dense model's metrics by name.
    """
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axis = figure.subplots()
    points = [
        (i, float(row["sparsity"]), float(row[metric]))
        for i, row in enumerate(evaluations)
        if math.isfinite(float(row[metric]))
    ]
    if points:
        order, sparsities, values = zip(*points, strict=True)
        # Without the dark end of the map, which is invisible on a dark page.
        colours = ListedColormap(colormaps["viridis"](np.linspace(0.3, 0.95, 64)))
        drawn = axis.scatter(sparsities, values, c=order, s=10, cmap=colours, linewidths=0)
        figure.colorbar(drawn, label="order of evaluation")
    axis.plot(
        [float(row["sparsity"]) for row in front],
        [float(row[metric]) for row in front],
        color=COLOURS[1],
        linewidth=1.2,
    )
    level = dense[metric]
    if level is not None:
        axis.axhline(level, color=INK, linewidth=0.8, linestyle="--")
        axis.annotate(
            "dense", (1, level), xycoords=("axes fraction", "data"), ha="right", va="bottom"
        )
    axis.set_xlabel("sparsity (share removed)")
    axis.set_ylabel(metric)
    return figure


def by_generation(logbook: Sequence[Row]) -> Figure:
    """Draw fitness, sparsity (Figure 4 of the paper), diversity and cache hits by generation.

    :param logbook: rows of ``logbook.csv``.
    """
    figure = Figure(figsize=(8, 5.2), layout=ConstrainedLayoutEngine(h_pad=0.12))
    fitness, sparsity, diversity, hits = figure.subplots(2, 2).flat

    def column(name: str) -> list[float]:
        return [number(row.get(name)) for row in logbook]

    def line(axis: Any, name: str, colour: str = COLOURS[0]) -> None:
        # One generation makes no line, so it gets a marker.
        mark = "o" if len(logbook) == 1 else None
        axis.plot(numbers, column(name), color=colour, linewidth=1.3, marker=mark, markersize=4)
        axis.set_xlabel("generation")
        axis.set_xlim(-0.04 * last, 1.04 * last)
        axis.xaxis.get_major_locator().set_params(integer=True)

    numbers = [int(row["gen"]) for row in logbook]
    last = max(1, *numbers)
    line(fitness, "fitness_avg")
    # Not the worst fitness: it may be far off and compress the axis.
    line(fitness, "fitness_max", COLOURS[1])
    fitness.set_title("fitness: mean and best")
    line(sparsity, "sparsity_avg")
    least, most = column("sparsity_min"), column("sparsity_max")
    sparsity.fill_between(numbers, least, most, color=COLOURS[0], alpha=0.2, linewidth=0)
    sparsity.set_title("sparsity: mean and range")
    line(diversity, "diversity_hamming")
    diversity.set_ylim(0, 1.1 * max(0.01, *column("diversity_hamming")))
    diversity.set_title("diversity: mean share of differing genes")
    line(hits, "cache_hits")
    hits.set_title("cache hits so far")
    hits.set_ylim(0, 1.1 * max(1, *column("cache_hits")))
    hits.yaxis.get_major_locator().set_params(integer=True)
    return figure
