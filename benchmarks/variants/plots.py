"""The figures, as PNG and SVG files, and as SVG for a page that may be light or dark."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.variants.results import Group
from benchmarks.variants.statistics import Ranks, runtime
from benchmarks.variants.tables import hits

#: Text and axes; the page puts its own colour in the place of it.
INK = "#2b2b2c"
#: Okabe and Ito's colours, which the colour-blind can tell apart, but for black and yellow: the
#: others can be seen on white and on black.
COLOURS = ("#0a84d6", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#7f7fe0", "#7f7f7f")
MARKERS = "osD^vPX"
STYLES = ("-", "--", ":")

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # letters stay letters, in the page's font
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "axes.grid": True,
    "axes.axisbelow": True,
}


@dataclass(frozen=True)
class Look:
    """How a variant is drawn, in all figures alike."""

    colour: str
    marker: str
    style: str


def looks(variants: Sequence[str]) -> dict[str, Look]:
    """A look for each variant."""
    return {
        name: Look(
            COLOURS[i % len(COLOURS)],
            MARKERS[i % len(MARKERS)],
            STYLES[i // len(COLOURS) % len(STYLES)],
        )
        for i, name in enumerate(variants)
    }


def save(folder: Path, name: str, draw: Callable[[], Figure]) -> str:
    """Draw a figure into ``name.png`` and ``name.svg``; returns the SVG for a page."""
    folder.mkdir(parents=True, exist_ok=True)
    style: Any = {**_STYLE, "svg.hashsalt": name}
    with matplotlib.rc_context(style):
        figure = draw()
        figure.savefig(folder / f"{name}.png", dpi=144, facecolor="white")
        figure.savefig(folder / f"{name}.svg", facecolor="white", metadata={"Date": None})
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return _for_page(text.getvalue())


def _for_page(svg: str) -> str:
    """An SVG as an element of a page: its ink is the page's, and its names are no other's."""
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r' id="[a-z_.]+_?[0-9]*"', "", svg
    )  # figure_1, axes_1, ...: nothing refers to them
    svg = svg.replace("font-family:", "font-family: system-ui, ") if "font-family:" in svg else svg
    width = re.search(r' width="([0-9.]+)pt" height="[0-9.]+pt"|height="[0-9.]+pt"', svg)
    if width:
        svg = re.sub(r' (width|height)="[0-9.]+pt"', "", svg, count=2)
    return svg.replace("<svg", '<svg role="img"', 1)


def _figure(width: float, height: float, panels: int = 1, **options: Any) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, panels, squeeze=False, **options)[0]


def anytime(group: Group, of: dict[str, Look]) -> Figure:
    """Median and quartiles of the incumbents over what has been spent, both parts side by side."""
    figure, axes = _figure(9.4, 3.7 if len(of) <= len(COLOURS) else 5.4, 2)
    for axis, part in zip(axes, ("heldout", "calibration"), strict=True):
        for variant, look in of.items():
            costs, values = _curve(group, variant, part)
            if not len(costs):
                continue
            low, middle, high = numpy.nanpercentile(values, (25, 50, 75), axis=0)
            if len(of) <= len(COLOURS):  # more bands hide each other
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
    """Budgets at the checkpoints that all runs have, and their incumbents' metric, a row a run."""
    runs = group.results[variant].values()
    by_run = [{row["share"]: row["equal"] for row in result["checkpoints"]} for result in runs]
    shares = sorted(set.intersection(*map(set, by_run))) if by_run else []
    values = [
        [group.value(result, row[share], part) for share in shares]
        for result, row in zip(runs, by_run, strict=True)
    ]
    return numpy.array(shares) * group.problem.budget, numpy.array(values)


def fixed_budget(group: Group, of: dict[str, Look]) -> Figure:
    """The winners of all seeds, with median and quartiles; those of a seed on one line."""
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
        # A pattern rather than chance: the same figure each time.
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
    """The share of runs that had reached a target by what was spent; the expected running time."""
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
    left.set_title(f"share of runs with held-out {group.metric} {target:.4g}")
    _log_axis(right)
    right.set_ylim(len(of) - 0.5, -0.6)
    right.set_yticks(range(len(of)), labels)
    right.set_title(f"expected {group.problem.unit} to it, and runs that reached it")
    _legend(figure, left)
    return figure


def average_ranks(ranks: Ranks, of: dict[str, Look], blocks: str) -> Figure:
    """Average ranks, each with half the critical difference to both sides."""
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
    note = "bars that do not overlap differ by Nemenyi's test" if ranks.critical else "not tested"
    axis.set_title(f"average rank over {ranks.blocks} {blocks}, 1 is best; {note}")
    return figure


def _log_axis(axis: Any) -> None:
    """A logarithmic axis labelled 1, 2, 5, 10, ..."""
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
    """How many columns of labels fit under a figure, by their letters."""
    return min(len(labels), max(1, 105 // (max(map(len, labels)) + 7)))


def _row_transform(axis: Any) -> Any:
    return axis.get_yaxis_transform()


def _cost_name(group: Group) -> str:
    if group.problem.in_tokens:
        return "tokens"
    return f"evaluations of {group.evaluation_tokens:,} tokens"


def _thousands(value: float, _: Any = None) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"
