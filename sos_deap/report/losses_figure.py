"""The loss from the removal of each gene, as a search has measured it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from sos_deap.report.figures import INK
from sos_deap.report.parts import Part, columns, unit

_ROW = 0.24  # inches
_CLIPPED = 97  # percentile of the losses from which all have the same colour


def losses_figure(parts: Sequence[Part], losses: Sequence[float]) -> Figure:
    """Draw the loss of each gene: a row per layer, and side by side the kinds of genes.

    :param parts: the genes of the winner; those that it removes are marked with a cross.
    :param losses: the loss in fitness from removing each gene.
    """
    layers = sorted({part.layer for part in parts})
    panels = list(columns(parts))
    ends = [0, *accumulate(len(part.genes) for part in parts)]
    own = {id(part): losses[a:b] for part, (a, b) in zip(parts, pairwise(ends), strict=True)}
    widths = [max(len(part.genes) for part in column.values()) for _, column in panels]
    figure = Figure(
        figsize=(min(9, 2.2 + 0.26 * sum(widths)), min(9, 1 + _ROW * len(layers))),
        layout="constrained",
    )
    axes = figure.subplots(1, len(panels), squeeze=False, width_ratios=[max(3, w) for w in widths])
    # Without the dark end of the map, on which the crosses are invisible.
    colours = ListedColormap(colormaps["viridis"](np.linspace(0.3, 1.0, 64)))
    limits = float(min(losses)), float(np.percentile(losses, _CLIPPED))
    for axis, (kind, column), width in zip(axes[0], panels, widths, strict=True):
        values = np.full((len(layers), width), np.nan)
        for row, layer in enumerate(layers):
            if layer in column:
                part = column[layer]
                values[row, : len(part.genes)] = own[id(part)]
                gone = part.removed
                axis.plot(gone, [row] * len(gone), "x", color=INK, markersize=4)
        drawn = axis.imshow(values, cmap=colours, aspect="auto", vmin=limits[0], vmax=limits[1])
        axis.set_title(unit(kind))
        axis.grid(visible=False)
        axis.set_yticks(range(len(layers)), [str(layer) for layer in layers])
        axis.set_xticks(range(0, width, 1 if width < 20 else 4))
    axes[0][0].set_ylabel("layer")
    bar: Any = figure.colorbar(drawn, ax=list(axes[0]), extend="max")
    bar.set_label("loss in fitness")
    return figure
