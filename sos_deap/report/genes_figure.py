"""The map of a sub-model: for each layer its heads, feed-forward width and sub-layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from sos_deap.report.figures import COLOURS, INK
from sos_deap.report.formats import percent
from sos_deap.report.parts import Part, columns

#: Label of the horizontal axis by kind, for the kinds with many genes in a layer.
_LABELS = {
    "heads": "head",
    "groups": "key/value group",
    "experts": "expert",
    "channels": "feed-forward channels kept",
}
#: Label of a column of cells by kind, for the kinds with one gene in a layer.
_NAMES = {"attention": "attention", "ffn": "feed-forward", "layers": "layer"}

_ROW = 0.28  # inches
_MOST_LABELS = 40  # rows that can have a text of their own


@dataclass(frozen=True)
class _Panel:
    """A part of the figure: cells or bars, with a row per layer.

    :param kind: a kind of gene, or ``"whole"`` for the sub-layers and layers of all kinds.
    :param label: label of the horizontal axis.
    :param columns: parts by layer: one mapping, or one for each name.
    :param names: labels of the columns of ``"whole"``.
    """

    kind: str
    label: str
    columns: list[Mapping[int, Part]]
    names: list[str]

    @property
    def size(self) -> int:
        """The number of cells in the longest row."""
        if self.kind == "whole":
            return len(self.columns)
        return max(len(part.genes) for part in self.columns[0].values())

    @property
    def inches(self) -> float:
        """The width of the panel."""
        if self.kind == "channels":
            return 2.9
        return 0.8 * self.size if self.names else max(1.0, 0.32 * self.size)


def genes_figure(parts: Sequence[Part]) -> Figure:
    """Draw what a sub-model keeps: a row per layer, and side by side its heads and channels.

    Heads, groups and whole sub-layers are cells, filled if kept. Channels are a bar, as long as the
    share that is kept; its blocks are in order of importance, the most important first and darkest.

    :param parts: the genes of the sub-model, of at least one kind.
    """
    layers = sorted({part.layer for part in parts})
    panels = _panels(parts)
    widths = [panel.inches for panel in panels]
    most = 9 if len(panels) == 1 else 11
    figure = Figure(
        figsize=(min(most, 1.3 + 0.3 * len(panels) + sum(widths)), min(9, 1 + _ROW * len(layers))),
        layout=ConstrainedLayoutEngine(wspace=0.05),
    )
    every = max(1, len(layers) // 16)
    axes = figure.subplots(1, len(panels), squeeze=False, width_ratios=_limited(widths, most))[0]
    for axis, panel in zip(axes, panels, strict=True):
        axis.set_ylim(len(layers), 0)
        axis.grid(visible=False)
        axis.set_xlabel(panel.label)
        axis.set_yticks([])
        if panel.kind == "channels":
            _draw_bars(axis, panel.columns[0], layers)
        else:
            _draw_cells(axis, panel, layers)
    axes[0].set_yticks([row + 0.5 for row in range(0, len(layers), every)], layers[::every])
    axes[0].set_ylabel("layer")
    return figure


def _limited(widths: Sequence[float], most: float) -> list[float]:
    """Return widths for which the narrow panels keep theirs if all together are too wide."""
    spare = most - 2 - sum(widths)
    widest = max(widths)
    return [max(2.0, width + spare) if width == widest and spare < 0 else width for width in widths]


def _panels(parts: Sequence[Part]) -> list[_Panel]:
    """Return the panels from left to right: heads and groups, whole sub-layers, channels."""
    panels: list[_Panel] = []
    whole = _Panel("whole", "", [], [])
    counts: Counter[str] = Counter()
    for kind, column in columns(parts):
        counts[kind] += 1
        number = f" {counts[kind]}" if counts[kind] > 1 else ""
        if kind in _LABELS:
            label = _LABELS[kind] + (f", attention{number}" if number else "")
            panels.append(_Panel(kind, label, [column], []))
        else:
            whole.columns.append(column)
            whole.names.append(_NAMES.get(kind, kind) + number)
    panels += [whole] if whole.columns else []
    return sorted(panels, key=lambda panel: panel.kind == "channels")


def _draw_cells(axis: Axes, panel: _Panel, layers: Sequence[int]) -> None:
    """Draw a cell for each gene, filled if it is 1."""
    boxes, fills = [], []
    for row, layer in enumerate(layers):
        for left, column in enumerate(panel.columns):
            genes = column[layer].genes if layer in column else ()
            boxes += [_box(row, left + i, left + i + 1) for i in range(len(genes))]
            # A removed gene is transparent, so that the page's background shows.
            fills += [COLOURS[0] if gene else "none" for gene in genes]
    _fill(axis, boxes, fills)
    size = panel.size
    axis.set_xlim(0, size)
    axis.set_title("filled: kept")
    ticks = range(0, size, 1 if panel.names else max(1, size // 16))
    axis.set_xticks([tick + 0.5 for tick in ticks], panel.names or list(map(str, ticks)))


def _draw_bars(axis: Axes, column: Mapping[int, Part], layers: Sequence[int]) -> None:
    """Draw a bar for each layer: its kept blocks of channels from the left, then an empty rest."""
    boxes: list[Any] = []
    fills: list[Any] = []
    for row, layer in enumerate(layers):
        genes = column[layer].genes if layer in column else ()
        kept = [rank for rank, gene in enumerate(genes) if gene]
        for place, rank in enumerate(kept):
            boxes.append(_box(row, place / len(genes), (place + 1) / len(genes), 0.12))
            fills.append(_paler(COLOURS[0], 0.75 * rank / len(genes)))
        if genes:
            boxes.append(_box(row, len(kept) / len(genes), 1, 0.12))
            fills.append("none")
        if genes and len(layers) <= _MOST_LABELS:
            share = percent(len(kept) / len(genes))
            axis.annotate(share, (1.03, row + 0.55), va="center", size=7.5, annotation_clip=False)
    _fill(axis, boxes, fills)
    end = 1.25 if len(layers) <= _MOST_LABELS else 1.0
    axis.set_xlim(0, end)
    axis.spines["bottom"].set_bounds(0, 1)
    axis.set_xticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    axis.set_title("stronger colour: more important")


def _fill(axis: Axes, boxes: Sequence[Any], fills: Sequence[Any]) -> None:
    """Draw boxes with edges; the outermost edges lie on the border of the axes, unclipped."""
    style: Any = {"edgecolors": INK, "linewidths": 0.4, "clip_on": False}
    axis.add_collection(PolyCollection(boxes, facecolors=fills, **style), autolim=False)


def _box(row: int, left: float, right: float, gap: float = 0) -> list[tuple[float, float]]:
    top, bottom = row + gap, row + 1 - gap
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _paler(colour: str, share: float) -> tuple[float, ...]:
    """Mix a colour with white, which is opaque so that it looks the same on a dark page."""
    return tuple(part + (1 - part) * share for part in to_rgb(colour))
