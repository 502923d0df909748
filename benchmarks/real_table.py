"""The table of a study by `benchmarks.real`, in Markdown, from the files that it wrote.

python -m benchmarks.real_table runs/real/gemma-3-270m
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.real import METHODS
from sos_deap.cli import Parser, run_with_exit_status
from sos_deap.errors import InputError
from sos_deap.report.formats import change

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


def table(folder: Path) -> str:
    """Return the table: a row for each method, by shares of the layers' parameters.

    :param folder: the folder of the study.
    :raises InputError: if it has no results.
    """
    found: dict[tuple[str, float], list[Any]] = defaultdict(list)
    for path in sorted(folder.glob("*.json")):
        row = json.loads(path.read_text(encoding="utf-8"))
        found[row["method"], row["share"]].append(row)
    if not found:
        raise InputError(f"{folder} has no results of benchmarks.real: run it first")
    shares = sorted({share for _, share in found})
    columns = [f"{100 * share:.0f} %{which}" for share in shares for which in ("", ", refitted")]
    lines = [
        f"| search | {' | '.join(columns)} | seeds |",
        f"|---|{'--:|' * (len(columns) + 1)}",
    ]
    for method in METHODS:
        counts = {len(found[method, share]) for share in shares if (method, share) in found}
        if counts:
            cells = [
                _cell(found.get((method, share), []), key)
                for share in shares
                for key in ("pruned", "refitted")
            ]
            seeds = "-".join(map(str, sorted({min(counts), max(counts)})))
            lines.append(f"| {TITLES[method]} | {' | '.join(cells)} | {seeds} |")
    return "\n".join(lines)


def _cell(rows: list[Any], key: str) -> str:
    """The median change of the held-out perplexity; empty if it was not measured."""
    changes = [
        row[key]["perplexity"] / row["dense"]["perplexity"] - 1 for row in rows if row.get(key)
    ]
    return change(1, 1 + median(changes)) if changes else ""


def main() -> None:
    """Print the table."""
    parser = Parser(description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="the folder of the study")
    print(table(parser.parse_args().folder))


if __name__ == "__main__":
    sys.exit(run_with_exit_status(main))
