"""A run as one self-contained page, from the files in its folder."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from sos_deap.files.atomic import write_text
from sos_deap.files.run_folder import PAGE, UNFINISHED
from sos_deap.report.comparison import corrupt_files_as_input_error, read_result
from sos_deap.report.figures import on_page, save
from sos_deap.report.formats import format_value, search_end, title_of
from sos_deap.report.genes_figure import genes_figure
from sos_deap.report.headline import headline
from sos_deap.report.losses_figure import losses_figure
from sos_deap.report.parts import Part, parts_of, removal
from sos_deap.report.plots import Row, by_generation, comparable, scatter
from sos_deap.report.refit_lines import refit_lines
from sos_deap.report.tables import bound_lines, cells, inline
from sos_deap.report.timings import measured_cells

_FEWEST = 3  # sub-models to draw

TEMPLATES = Path(__file__).parent

Draw = Callable[[str, Callable[[], Figure]], str]  # (name, make the figure) -> SVG


@dataclass(frozen=True)
class RunTables:
    """The tables of a run that its figures are drawn from.

    :param evaluations: rows of ``evaluations.csv``.
    :param logbook: rows of ``logbook.csv``.
    :param front: rows of ``pareto.csv``.
    :param genes: rows of ``genes.csv``; empty if it is not written yet.
    """

    evaluations: Sequence[Row]
    logbook: Sequence[Row]
    front: Sequence[Row]
    genes: Sequence[Row] = ()


def write_page(folder: Path) -> Path:
    """Write ``report.html`` into a run folder, and its figures, PNG and SVG, into ``plots/``.

    :param folder: folder of a complete run.
    :returns: path of the page.
    :raises InputError: if a file of the run is missing or cannot be read.
    """
    with corrupt_files_as_input_error(folder):
        result, measured = read_result(folder)
        config = _json(folder / "config.json")
        samples = _json(folder / "samples.json") if (folder / "samples.json").exists() else []
        names = ["evaluations", "logbook", "pareto"]
        # A run of an earlier version has no rows of genes.
        names += ["genes"] if (folder / "genes.csv").exists() else []
        tables = RunTables(*(_rows(folder / f"{name}.csv") for name in names))
        text = _rendered(
            config["model"],
            result,
            tables,
            partial(save, folder / "plots"),
            measured=measured,
            samples=samples,
        )
    write_text(folder / PAGE, text)
    return folder / PAGE


def write_unfinished(
    folder: Path,
    model: str,
    result: Mapping[str, Any],
    tables: RunTables,
    status: Sequence[str],
    reload: bool,
) -> None:
    """Write ``report.html`` of a search that has not ended, without files for its figures.

    The file is not synced to the disk, since it is replaced often and losing it is harmless.

    :param folder: the run folder.
    :param model: name of the model.
    :param result: what is known of ``result.json``; ``best`` may be empty.
    :param tables: the tables so far.
    :param status: sentences on the state of the search.
    :param reload: whether the page reloads itself, every 30 s.
    """
    text = _rendered(model, result, tables, on_page, status=status, reload=reload)
    write_text(folder / PAGE, text, durable=False)


def _rendered(
    model: str,
    result: Mapping[str, Any],
    tables: RunTables,
    draw: Draw,
    *,
    measured: Sequence[Any] = (),
    samples: Sequence[Any] = (),
    status: Sequence[str] = (),
    reload: bool = False,
) -> str:
    """Return the page as HTML; ``status`` is empty for a complete run."""
    best, search = result["best"], result["search"]
    parts = parts_of(search, best["chromosome"]) if best else []
    pages = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return pages.get_template("page.html").render(
        model=title_of(model),
        status=status,
        reload=reload,
        unfinished=UNFINISHED,
        headline=None if status else headline(result, measured),
        removed=removal(parts) if parts else "nothing",
        algorithm=search["algorithm"],
        metric=_metric(result),
        rows=cells(result) if best else (),
        notes=[*refit_lines(result), *bound_lines(result)] if best else (),
        speeds=[measured_cells(row) for row in measured],
        samples=samples,
        figures=_figures(result, parts, tables, draw),
        counts=_counts(search),
        command=result["command"],
        facts=_facts(result),
    )


def _metric(result: Mapping[str, Any]) -> str:
    """Return the name of the metric that counts, which is the first."""
    return str(next(iter(result["dense"]["calibration"])))


def _figures(
    result: Mapping[str, Any], parts: Sequence[Part], tables: RunTables, draw: Draw
) -> dict[str, str]:
    """Return the figures by name, as SVG, as far as there is something to draw."""
    dense, metric = result["dense"]["calibration"], _metric(result)
    figures = {}
    if len(tables.evaluations) >= _FEWEST:
        figures["sub_models"] = draw(
            "sub_models", lambda: scatter(tables.evaluations, tables.front, metric, dense)
        )
    if comparable(tables.logbook):
        figures["generations"] = draw("generations", lambda: by_generation(tables.logbook))
    losses = [float(row["loss"]) for row in tables.genes if row["loss"] != ""]
    if parts and losses:
        figures["losses"] = draw("losses", lambda: losses_figure(parts, losses))
    if parts:
        figures["genes"] = draw("genes", lambda: genes_figure(parts))
    return figures


def _counts(search: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the settings and counts of a search, and how it ended, by label."""
    counts = [
        (name.replace("_", " "), format_value(value))
        for name, value in search.items()
        if name != "stopped_by" and not isinstance(value, list | dict)
    ]
    return [*counts, ("end", search_end(search))] if "stopped_by" in search else counts


def _facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the data, dtype and versions of a run by label."""
    return [
        *((f"{part} data", inline(described)) for part, described in result["data"].items()),
        ("dtype", result["dtype"]),
        *result["versions"].items(),
    ]


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _rows(path: Path) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
