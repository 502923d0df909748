"""The table of a study by `benchmarks.real`, in Markdown, from the files that it wrote.

python -m benchmarks.real_table runs/real/gemma-3-270m [--seed 1]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
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

_SCORED = {"pruned": "", "refitted": ", refitted"}


def table(folder: Path, seed: int = 0) -> str:
    """Return the table: a row for each method, by shares of the layers' parameters.

    A cell is empty if it was not run.

    :param folder: the folder of the study.
    :param seed: the seed of the searches; others may have been run for some methods only.
    :raises InputError: if it has no results of that seed.
    """
    rows = (json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json"))
    found = {(row["method"], row["share"]): row for row in rows if row["seed"] == seed}
    if not found:
        raise InputError(f"{folder} has no results of benchmarks.real of seed {seed}: run it first")
    columns = [
        (share, key)
        for share in sorted({share for _, share in found})
        for key in _SCORED
        if any(key in row for (_, other), row in found.items() if other == share)
    ]
    titles = (f"{100 * share:.0f} %{_SCORED[key]}" for share, key in columns)
    lines = [f"| search | {' | '.join(titles)} |", f"|---|{'--:|' * len(columns)}"]
    for method in METHODS:
        cells = [_cell(found.get((method, share), {}), key) for share, key in columns]
        if any(cells):
            lines.append(f"| {TITLES[method]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: dict[str, Any], key: str) -> str:
    """The change of the held-out perplexity; empty if it was not measured."""
    return change(row["dense"]["perplexity"], row[key]["perplexity"]) if row.get(key) else ""


def main() -> None:
    """Print the table."""
    parser = Parser(description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="the folder of the study")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(table(given.folder, given.seed))


if __name__ == "__main__":
    sys.exit(run_with_exit_status(main))
