"""The table of a study by `benchmarks.real`, in Markdown, from the files that it wrote.

python -m benchmarks.real_table runs/real/gemma-3-270m
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.real import METHODS
from sos_deap.cli import Parser, run_with_exit_status
from sos_deap.errors import InputError
from sos_deap.report.formats import change, percent

#: What a method is called in the table.
TITLES = {
    "best": "`best`: heads and channels",
    "evopress": "EvoPress, heads and channels",
    "knapsack": "knapsack, heads and channels",
    "2ssp": "2SSP",
    "flap": "FLAP",
    "wanda": "Wanda, heads and channels",
    "heads-best": "`best-heads`: heads only",
    "heads-paper": "the paper's algorithm, heads only",
    "heads-repaired": "the paper's algorithm, repaired, heads only",
}

_SCORED = {"pruned": "", "refitted": ", refitted"}

#: A search that removed less of its budget than this share has it named in the table.
_USED = 0.9

Row = dict[str, Any]


def table(folder: Path) -> str:
    """Return the table: a row for each method, by shares of the layers' parameters.

    A cell has the median over the seeds and, of several, the lowest and the highest value. It is
    empty if it was not run.

    :param folder: the folder of the study.
    :raises InputError: if it has no results.
    """
    found: dict[tuple[str, float], list[Row]] = {}
    for path in sorted(folder.glob("*.json")):
        row = json.loads(path.read_text(encoding="utf-8"))
        found.setdefault((row["method"], row["share"]), []).append(row)
    if not found:
        raise InputError(f"{folder} has no results of benchmarks.real: run it first")
    columns = sorted(
        {
            (share, key)
            for (_, share), rows in found.items()
            for row in rows
            for key in _SCORED
            if row.get(key)
        }
    )
    titles = (f"{100 * share:.0f} %{_SCORED[key]}" for share, key in columns)
    lines = [f"| search | {' | '.join(titles)} |", f"|---|{'--:|' * len(columns)}"]
    for method in METHODS:
        cells = [_cell(found.get((method, share), []), key) for share, key in columns]
        if any(cells):
            lines.append(f"| {TITLES[method]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(rows: list[Row], key: str) -> str:
    """The change of the held-out perplexity over the seeds; empty if it was not measured."""
    rows = [row for row in rows if row.get(key)]
    if not rows:
        return ""
    factors = sorted(row[key]["perplexity"] / row["dense"]["perplexity"] for row in rows)
    text = change(1, median(factors))
    if len(factors) > 1:
        lowest, highest = (change(1, f).removesuffix(" %") for f in (factors[0], factors[-1]))
        text += f" ({lowest} to {highest}, {len(factors)} seeds)"
    used = median(row["sparsity"] / row["max_sparsity"] for row in rows)
    if used < _USED:
        text += f" (only {percent(used * rows[0]['share'])} removed)"
    return text


def main() -> None:
    """Print the table."""
    parser = Parser(description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="the folder of the study")
    given = parser.parse_args()
    print(table(given.folder))


if __name__ == "__main__":
    sys.exit(run_with_exit_status(main))
