"""The style of all figures, and their output: PNG, SVG, and SVG for a light or dark page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from sos_deap.files.atomic import make_subfolder, whole_file

#: Colour of text and axes; on a page it is replaced by the page's text colour.
INK = "#2b2b2c"
#: Okabe and Ito's colours, which colour-blind readers can distinguish. Black and yellow are left
#: out; the others are visible on white and on black.
COLOURS = ("#0a84d6", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#7f7fe0", "#7f7f7f")
MARKERS = "osD^vPX"

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text, in the page's font
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


def save(folder: Path, name: str, draw: Callable[[], Figure]) -> str:
    """Draw a figure and save it as ``name.png`` and ``name.svg``.

    :param folder: folder for the files; made if it does not exist.
    :param name: name of the files, without suffix.
    :param draw: makes the figure.
    :returns: the figure as an SVG element for a page.
    """
    make_subfolder(folder)
    with _style(name):
        figure = draw()
        for kind, how in (("png", {"dpi": 144}), ("svg", {"metadata": {"Date": None}})):
            with whole_file(folder / f"{name}.{kind}") as part:
                figure.savefig(part, format=kind, facecolor="white", **how)
            figure.set_layout_engine(None)  # keeps the layout, which takes long to compute
        return _for_page(figure)


def on_page(name: str, draw: Callable[[], Figure]) -> str:
    """Draw a figure without saving it, which is faster than :func:`save`.

    :param name: seed of the identifiers inside the SVG, which must differ between figures.
    :param draw: makes the figure.
    :returns: the figure as an SVG element for a page.
    """
    with _style(name):
        return _for_page(draw())


@contextmanager
def _style(name: str) -> Iterator[None]:
    style: Any = {**_STYLE, "svg.hashsalt": name}
    with matplotlib.rc_context(style):
        yield


def _for_page(figure: Figure) -> str:
    """Return a figure as an SVG element with the page's text colour and font, at most full size."""
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Names such as figure_1, which several figures share and nothing refers to.
    svg = re.sub(r' id="[a-z_.]+_?[0-9]*"', "", svg)
    svg = svg.replace("font-family:", "font-family: system-ui, ") if "font-family:" in svg else svg
    svg = re.sub(r' (width|height)="[0-9.]+pt"', "", svg, count=2)
    # So that the text of all figures has the same size where the page is wide enough.
    size = f"max-width: {figure.get_figwidth():.2f}in"
    return svg.replace("<svg", f'<svg role="img" style="{size}"', 1)
