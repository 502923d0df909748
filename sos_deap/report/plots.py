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

_MANY = 16  # points: fewer are larger, and their order is not shown

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
    points = [
        (i, float(row["sparsity"]), float(row[metric]))
        for i, row in enumerate(evaluations)
        if math.isfinite(float(row[metric]))
    ]
    held_out = _judged(front)
    figure = Figure(figsize=(7, 3.8 if held_out is None else 6.6), layout="constrained")
    axis, *more = figure.subplots(1 if held_out is None else 2, squeeze=False)[:, 0]
    many = len(points) >= _MANY
    if points:
        order, sparsities, values = zip(*points, strict=True)
        # Without the dark end of the map, which is invisible on a dark page.
        colours = ListedColormap(colormaps["viridis"](np.linspace(0.3, 0.95, 64)))
        style: Any = {"c": order, "cmap": colours} if many else {"c": COLOURS[0]}
        size = 10 if many else 30
        label = "sub-model" if len(points) > len(front) else None
        drawn = axis.scatter(sparsities, values, s=size, linewidths=0, label=label, **style)
        if many:
            figure.colorbar(drawn, label="order of evaluation")
    _front_line(axis, front, metric, "non-dominated", COLOURS[1])
    _dense_line(axis, dense[metric])
    axis.set_ylabel(metric)
    axis.legend()
    for below in more:
        assert held_out is not None
        _front_line(below, front, f"{held_out}_validation", "validation", COLOURS[0])
        _front_line(below, front, f"{held_out}_heldout", "held-out", COLOURS[1])
        below.set_ylabel(held_out)
        below.legend()
    figure.axes[len(more)].set_xlabel("sparsity (share removed)")
    return figure


def _judged(front: Sequence[Row]) -> str | None:
    """Return the metric of which the front has held-out values; ``None`` if it has none."""
    names = [name for row in front[:1] for name in row if name.endswith("_heldout")]
    return names[0].removesuffix("_heldout") if names else None


def _front_line(axis: Any, front: Sequence[Row], column: str, label: str, colour: str) -> None:
    """Draw a column of the front, where it has values, against the sparsity."""
    known = [row for row in front if row[column] not in ("", None)]
    axis.plot(
        [float(row["sparsity"]) for row in known],
        [float(row[column]) for row in known],
        color=colour,
        linewidth=1.2,
        marker="." if len(known) < _MANY else None,
        label=label,
    )


def _dense_line(axis: Any, level: float | None) -> None:
    if level is not None:
        axis.axhline(level, color=INK, linewidth=0.8, linestyle="--", label="dense model")


def by_generation(logbook: Sequence[Row]) -> Figure:
    """Draw fitness, sparsity (Figure 4 of the paper), diversity and cache hits by generation.

    :param logbook: rows of ``logbook.csv``.
    """
    numbers = [int(row["gen"]) for row in logbook]
    last = max(1, *numbers)
    figure = Figure(figsize=(8, 5.2), layout=ConstrainedLayoutEngine(h_pad=0.12))
    panels = (_fitness, _sparsity, _diversity, _hits)
    for axis, draw in zip(figure.subplots(2, 2).flat, panels, strict=True):
        draw(axis, numbers, logbook)
        axis.set_xlabel("generation")
        axis.set_xlim(-0.04 * last, 1.04 * last)
        axis.xaxis.get_major_locator().set_params(integer=True)
    return figure


def comparable(logbook: Sequence[Row]) -> bool:
    """Whether generations are scored on the same examples, so that their fitness can be compared.

    :param logbook: rows of ``logbook.csv``.
    """
    whole = [math.isfinite(number(row["best_metric"])) for row in logbook]
    return 2 * sum(whole) > len(whole)


def _column(logbook: Sequence[Row], name: str) -> list[float]:
    return [number(row.get(name)) for row in logbook]


def _line(
    axis: Any, numbers: list[int], logbook: Sequence[Row], name: str, *, best: bool = False
) -> None:
    """Draw a column of the logbook."""
    axis.plot(
        numbers,
        _column(logbook, name),
        color=COLOURS[1 if best else 0],
        linewidth=1.3,
        marker="o" if len(logbook) == 1 else None,  # one generation makes no line
        markersize=4,
        label="best" if best else "mean",
    )


def _fitness(axis: Any, numbers: list[int], logbook: Sequence[Row]) -> None:
    _line(axis, numbers, logbook, "fitness_avg")
    # Not the worst fitness: it may be far off and compress the axis.
    _line(axis, numbers, logbook, "fitness_max", best=True)
    axis.set_title("fitness: mean and best")
    axis.legend()


def _sparsity(axis: Any, numbers: list[int], logbook: Sequence[Row]) -> None:
    _line(axis, numbers, logbook, "sparsity_avg")
    least, most = _column(logbook, "sparsity_min"), _column(logbook, "sparsity_max")
    shade: Any = {"color": COLOURS[0], "alpha": 0.2, "linewidth": 0, "label": "range"}
    axis.fill_between(numbers, least, most, **shade)
    axis.set_title("sparsity: mean and range")
    axis.legend()


def _diversity(axis: Any, numbers: list[int], logbook: Sequence[Row]) -> None:
    _line(axis, numbers, logbook, "diversity_hamming")
    axis.set_ylim(0, 1.1 * max(0.01, *_column(logbook, "diversity_hamming")))
    axis.set_title("diversity: mean share of differing genes")


def _hits(axis: Any, numbers: list[int], logbook: Sequence[Row]) -> None:
    _line(axis, numbers, logbook, "cache_hits")
    axis.set_title("cache hits so far")
    axis.set_ylim(0, 1.1 * max(1, *_column(logbook, "cache_hits")))
    axis.yaxis.get_major_locator().set_params(integer=True)
