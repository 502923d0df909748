"""The HTML page of a comparison, with tables and figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.variants import plots, tables
from benchmarks.variants import statistics as st
from benchmarks.variants.plan import CHECKPOINTS, FRONT
from benchmarks.variants.results import Group
from benchmarks.variants.settings import Settings
from benchmarks.variants.tables import Tested
from sos_deap.files.atomic import write_text
from sos_deap.report.figures import COLOURS, save
from sos_deap.report.formats import counted
from sos_deap.report.page import TEMPLATES


def write(
    settings: Settings,
    results: list[Tested],
    ranks: st.Ranks,
    failed: Sequence[str],
    files: Sequence[str],
) -> Path:
    """Draw all figures and write ``index.html``; return its path."""
    of = plots.looks(list(settings.variants))
    folder = settings.output_dir / "plots"
    overall = ""
    if len(results) > 1 and ranks.average:
        overall = save(folder, "ranks", lambda: plots.average_ranks(ranks, of, "problems"))
    pages = Environment(
        loader=FileSystemLoader([Path(__file__).parent, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    text = pages.get_template("page.html").render(
        runs=sum(len(runs) for result in results for runs in result.group.results.values()),
        variants=list(settings.variants),
        seeds=_seeds(settings),
        failed=failed,
        overall=overall,
        groups=[_group(settings, result, of, folder) for result in results],
        bands=len(of) <= len(COLOURS),
        checkpoints=len(CHECKPOINTS),
        front_points=FRONT,
        facts=_facts(settings, results[0].group),
        files=files,
    )
    path = settings.output_dir / "index.html"
    write_text(path, text)
    return path


def _seeds(settings: Settings) -> str:
    first, last = settings.seeds[0], settings.seeds[-1]
    return f"{first} to {last}" if last > first else str(first)


def _group(
    settings: Settings, result: Tested, of: dict[str, plots.Look], folder: Path
) -> dict[str, Any]:
    """Return the values that the page shows for a problem."""
    group, slug = result.group, result.group.problem.slug
    target = tables.target_of(settings, group)
    some = group.any
    return {
        "title": group.problem.title,
        "metric": group.metric,
        "removed": some["removed"],
        "genes": some["genes"],
        "dense": number(group.dense),
        "dense_calibration": number(group.value(some, "1" * some["genes"], "calibration")),
        "first_seed": some["seed"],
        "columns": _COLUMNS,
        "rows": summary(group, result.ranks),
        "anytime": save(folder, f"{slug}_anytime", lambda: plots.anytime(group, of)),
        "budget": save(folder, f"{slug}_budget", lambda: plots.fixed_budget(group, of)),
        "target": target is not None
        and save(folder, f"{slug}_target", lambda: plots.fixed_target(group, of, target or 0.0)),
        "target_text": "" if target is None else _target_text(settings, group, target),
        "ranks": result.ranks.average
        and len(result.ranks.average) > 1
        and save(folder, f"{slug}_ranks", lambda: plots.average_ranks(result.ranks, of, "seeds")),
        "friedman": _friedman(result.ranks),
        "nemenyi": result.ranks.nemenyi is not None,
        "tests": [_comparison(one, group) for one in result.comparisons],
        "notes": notes(result),
        "fronts": _fronts(group),
        "front_reference": _front_reference(group),
    }


_COLUMNS = (
    "variant", "runs", "held-out", "over dense", "calibration", "average rank",
    "as found", "genes removed", "evaluations", "search, s",
)  # fmt: skip


def summary(group: Group, ranks: st.Ranks) -> list[list[str]]:
    """Return one row of formatted cells per variant, with the columns :data:`_COLUMNS`."""
    rows = []
    for variant, runs in group.results.items():
        if not runs:
            rows.append([variant, "0", *["-"] * (len(_COLUMNS) - 2)])
            continue
        middle = float(numpy.median(group.finals(variant)))
        last = [result["checkpoints"][-1] for result in runs.values()]
        rows.append(
            [
                variant,
                str(len(runs)),
                _spread(group.finals(variant)),
                f"{middle / group.dense - 1:+.1%}" if group.dense else "-",
                number(float(numpy.median(group.finals(variant, "equal", "calibration")))),
                f"{ranks.average[variant]:.2f}" if variant in ranks.average else "-",
                number(float(numpy.median(group.finals(variant, "raw")))),
                f"{numpy.median([row['raw'].count('0') for row in last]):g}",
                f"{numpy.median([group.spent(row) for row in last]):,.0f}",
                f"{numpy.median([result['seconds'] for result in runs.values()]):,.0f}",
            ]
        )
    return rows


def table(group: Group, ranks: st.Ranks) -> str:
    """Format the summary as a text table for a terminal."""
    rows = [list(_COLUMNS), *summary(group, ranks)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join(lines)


def number(value: float | None, digits: int = 4) -> str:
    """Format a number with four significant digits."""
    if value is None or math.isnan(value):
        return "-"
    whole = abs(value) >= 10**digits
    return f"{value:,.0f}" if whole else f"{value:#.{digits}g}".rstrip(".")


def _spread(values: Sequence[float]) -> str:
    low, middle, high = numpy.percentile(values, (25, 50, 75))
    return f"{number(middle)} ({number(low)} to {number(high)})"


def p_value(p: float | None) -> str:
    """Format a p-value with two significant digits."""
    if p is None:
        return "-"
    return f"{p:.2f}" if p >= 0.1 else f"{p:.3f}" if p >= 0.001 else f"{p:.1e}"


def _target_text(settings: Settings, group: Group, target: float) -> str:
    text = f"held-out {group.metric} {number(target)}"
    if settings.target is None:
        text += f", the median of the winners of {settings.reference}"
    return text


def _friedman(ranks: st.Ranks) -> str:
    if ranks.statistic is None:
        return (
            f"Friedman's test needs 3 variants with {st.LEAST_PAIRS} common seeds; there are "
            f"{len(ranks.average)} variants and {ranks.blocks} seeds."
        )
    return f"Friedman's test: chi-square = {ranks.statistic:.2f}, p = {p_value(ranks.p)}."


def reach(seeds: int, comparisons: int) -> str:
    """Return a sentence about the smallest p-value that Holm's correction allows.

    :param seeds: number of seeds that both variants of a comparison have.
    :param comparisons: number of comparisons that are corrected together, at least 1.
    """
    least, needed = st.least_p(seeds, comparisons), st.least_pairs(comparisons)
    text = (
        f"With {counted(seeds, 'seed')} and {counted(comparisons, 'comparison')} "
        f"the smallest possible p-value is {least:.3g}"
    )
    if seeds >= needed:
        return text
    return f"{text}: no difference can be significant; give --seeds {needed} or more"


def completion(group: Group) -> list[str]:
    """Return a warning for each variant of whose removed genes the search chose less than half.

    The others were chosen by :func:`benchmarks.variants.heldout.completed`.
    """
    found = []
    for variant, runs in group.results.items():
        last = [result["checkpoints"][-1] for result in runs.values()]
        chosen = [row["raw"].count("0") for row in last]
        removed = [row["equal"].count("0") for row in last]
        if last and numpy.median(2 * numpy.array(chosen) - removed) < 0:
            found.append(
                f"{variant}: the search chose {numpy.median(chosen):g} of "
                f"{numpy.median(removed):g} removed genes (medians), the completion to equal "
                "sparsity the others: the result is mostly that of the completion"
            )
    return found


def notes(result: Tested) -> list[str]:
    """Return the lines to print under the table of a problem."""
    family = max((one.family for one in result.comparisons), default=0)
    pairs = max((one.pairs for one in result.comparisons), default=0)
    return [*([reach(pairs, family)] if family else []), *completion(result.group)]


def _comparison(one: st.Comparison, group: Group) -> dict[str, Any]:
    sign = -1 if group.greater else 1
    return {
        "a": one.a,
        "b": one.b,
        "pairs": one.pairs,
        "difference": "-" if one.difference is None else f"{sign * one.difference:+.4g}",
        "a12": "-" if one.a12 is None else f"{one.a12:.2f}",
        "effect": "-" if one.a12 is None else st.effect(one.a12),
        "p": p_value(one.p),
        "p_holm": p_value(one.p_holm),
        "verdict": one.verdict,
    }


def _front_reference(group: Group) -> str:
    if group.greater:
        return f"a {group.metric} of 0"
    return "log 2" if group.metric == "kl" else f"twice the dense {group.metric}"


def _fronts(group: Group) -> list[dict[str, str]]:
    rows = tables.fronts([group])
    found = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        parts = {}
        for part in ("heldout", "calibration"):
            mine = [r for r in rows if r["variant"] == variant and r["part"] == part]
            values = [row["hypervolume"] for row in mine if row["hypervolume"] is not None]
            parts[part] = f"{numpy.median(values):.3f}" if values else "-"
        found.append({"variant": variant, **parts})
    return found


def _facts(settings: Settings, group: Group) -> Mapping[str, Any]:
    """Return settings, data and versions."""
    some = group.any
    variants = {
        f"variant {name}": ", ".join(f"{flag} {value}" for flag, value in flags.items())
        for name, flags in settings.variants.items()
    }
    return {
        **variants,
        "for all variants": ", ".join(f"{k} {v}" for k, v in settings.common.items()),
        "held-out": _data(some["data"]["heldout"]),
        f"calibration, seed {some['seed']}": _data(some["data"]["calibration"]),
        "dtype": some["dtype"],
        "versions": ", ".join(f"{name} {value}" for name, value in some["versions"].items()),
    }


def _data(described: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in described.items())
