"""The figures of a comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.variants.results import Group
from benchmarks.variants.statistics import Ranks, runtime
from benchmarks.variants.tables import hits
from sos_deap.report.figures import COLOURS, INK, MARKERS

STYLES = ("-", "--", ":")


@dataclass(frozen=True)
class Look:
    """Colour, marker and line style of a variant in all figures."""

    colour: str
    marker: str
    style: str


def looks(variants: Sequence[str]) -> dict[str, Look]:
    """Return a look for each variant."""
    return {
        name: Look(
            COLOURS[i % len(COLOURS)],
            MARKERS[i % len(MARKERS)],
            STYLES[i // len(COLOURS) % len(STYLES)],
        )
        for i, name in enumerate(variants)
    }


def _figure(width: float, height: float, panels: int = 1, **options: Any) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, panels, squeeze=False, **options)[0]


def anytime(group: Group, of: dict[str, Look]) -> Figure:
    """Plot median and quartiles of the incumbents' metrics over the budget, for both parts."""
    figure, axes = _figure(9.4, 3.7 if len(of) <= len(COLOURS) else 5.4, 2)
    for axis, part in zip(axes, ("heldout", "calibration"), strict=True):
        for variant, look in of.items():
            costs, values = _curve(group, variant, part)
            if not len(costs):
                continue
            low, middle, high = numpy.nanpercentile(values, (25, 50, 75), axis=0)
            if len(of) <= len(COLOURS):  # more bands overlap
                axis.fill_between(costs, low, high, color=look.colour, alpha=0.18, linewidth=0)
            axis.plot(
                costs,
                middle,
                look.style,
                color=look.colour,
                marker=look.marker,
                markersize=4,
                label=variant,
            )
        _dense_line(axis, group.value(group.any, "1" * group.any["genes"], part))
        _log_axis(axis)
        axis.set_xlabel(f"budget spent, {_cost_name(group)}")
        axis.set_title(f"{group.metric}, {'held-out' if part == 'heldout' else 'calibration'}")
    _legend(figure, axes[0])
    return figure


def _curve(group: Group, variant: str, part: str) -> tuple[Any, Any]:
    """Return the budgets of common checkpoints, and the metrics there, one row per run."""
    runs = group.results[variant].values()
    by_run = [{row["share"]: row["equal"] for row in result["checkpoints"]} for result in runs]
    shares = sorted(set.intersection(*map(set, by_run))) if by_run else []
    values = [
        [group.value(result, row[share], part) for share in shares]
        for result, row in zip(runs, by_run, strict=True)
    ]
    return numpy.array(shares) * group.problem.budget, numpy.array(values)


def fixed_budget(group: Group, of: dict[str, Look]) -> Figure:
    """Plot the winners' metrics of all seeds, with median and quartiles."""
    figure, (axis,) = _figure(9.4, 1.2 + 0.42 * len(of))
    for i, (variant, look) in enumerate(of.items()):
        values = [value for value in group.finals(variant) if not math.isnan(value)]
        if not values:
            continue
        axis.boxplot(
            values,
            orientation="horizontal",
            positions=[i],
            widths=0.6,
            showfliers=False,
            boxprops={"color": look.colour},
            medianprops={"color": look.colour, "linewidth": 2},
            whiskerprops={"color": look.colour},
            capprops={"color": look.colour},
        )
        # A fixed pattern instead of random jitter, so that the figure is reproducible.
        jitter = [0.2 * ((k * 0.618) % 1 - 0.5) for k in range(len(values))]
        axis.scatter(
            values, [i + j for j in jitter], s=16, color=look.colour, marker=look.marker, alpha=0.7
        )
    axis.set_yticks(range(len(of)), list(of))
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    axis.set_title(
        f"{group.metric}, held-out, of the winners at equal sparsity (dense {group.dense:.4g})"
    )
    return figure


def fixed_target(group: Group, of: dict[str, Look], target: float) -> Figure:
    """Plot the proportion of runs that reached a target, and the expected running time."""
    figure, (left, right) = _figure(9.4, max(3.0, 1.4 + 0.3 * len(of)), 2)
    most, labels = float(group.problem.budget), []
    for i, (variant, look) in enumerate(of.items()):
        runs = hits(group, variant, target)
        time = runtime(runs)
        labels.append(f"{variant}  {time.reached}/{time.runs}")
        if not runs:
            continue
        costs = sorted(spent for hit, spent in runs if hit)
        steps = [k / len(runs) for k in range(len(costs) + 1)]
        left.step(
            [0.02 * most, *costs, most],
            [0.0, *steps[1:], steps[-1]],
            look.style,
            where="post",
            color=look.colour,
            label=variant,
        )
        if time.expected is not None:
            right.plot(time.expected, i, look.marker, color=look.colour, markersize=7)
            right.annotate(
                f"{time.expected:,.0f}",
                (time.expected, i),
                xytext=(0, 7),
                textcoords="offset points",
                ha="center",
                fontsize=8.5,
            )
        else:
            right.text(
                0.5, i, "not reached", ha="center", va="center", transform=_row_transform(right)
            )
    _log_axis(left)
    left.set_ylim(-0.03, 1.03)
    left.set_xlabel(f"budget spent, {_cost_name(group)}")
    left.set_title(f"proportion of runs that reached held-out {group.metric} {target:.4g}")
    _log_axis(right)
    right.set_ylim(len(of) - 0.5, -0.6)
    right.set_yticks(range(len(of)), labels)
    right.set_title(f"expected {group.problem.unit} to the target; runs that reached it")
    _legend(figure, left)
    return figure


def average_ranks(ranks: Ranks, of: dict[str, Look], blocks: str) -> Figure:
    """Plot average ranks, with half the critical difference to each side."""
    ordered = sorted(ranks.average, key=ranks.average.__getitem__)
    half = (ranks.critical or 0.0) / 2
    figure, (axis,) = _figure(9.4, 1.3 + 0.34 * len(ordered))
    for i, variant in enumerate(ordered):
        look, value = of[variant], ranks.average[variant]
        axis.errorbar(
            value,
            i,
            xerr=half or None,
            color=look.colour,
            marker=look.marker,
            markersize=7,
            capsize=3,
        )
        axis.annotate(
            f"{value:.2f}",
            (value, i),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
        )
    axis.set_yticks(range(len(ordered)), ordered)
    axis.set_ylim(len(ordered) - 0.5, -0.7)
    axis.grid(visible=False, axis="y")
    worst = max(2.0, *ranks.average.values())
    axis.set_xlim(min(0.8, min(ranks.average.values()) - half - 0.1), worst + half + 0.2)
    note = "bars without overlap: significant (Nemenyi)" if ranks.critical else "not tested"
    axis.set_title(f"average rank over {ranks.blocks} {blocks}, 1 is best; {note}")
    return figure


def _log_axis(axis: Any) -> None:
    """Set a logarithmic axis with labels 1, 2, 5, 10, ..."""
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(_thousands)
    axis.xaxis.set_minor_formatter(NullFormatter())


def _dense_line(axis: Any, value: float) -> None:
    if not math.isnan(value):
        axis.axhline(value, color=INK, linewidth=0.9, linestyle=(0, (2, 2)))
        axis.annotate(
            f"dense {value:.4g}",
            (1, value),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8.5,
        )


def _legend(figure: Figure, axis: Any) -> None:
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=_columns(labels))


def _columns(labels: Sequence[str]) -> int:
    """Return the number of columns of labels that fit under a figure."""
    return min(len(labels), max(1, 105 // (max(map(len, labels)) + 7)))


def _row_transform(axis: Any) -> Any:
    return axis.get_yaxis_transform()


def _cost_name(group: Group) -> str:
    if group.problem.in_tokens:
        return "tokens"
    return f"evaluations of {group.evaluation_tokens:,} tokens"


def _thousands(value: float, _: Any = None) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"
