"""The table of the study on a real model."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.real_table import table
from sos_deap.errors import InputError

ROOT = Path(__file__).parents[1]


def row(method: str, seed: int, dense: float, **found: float) -> dict[str, Any]:
    scores = {name: {"perplexity": value} for name, value in found.items()}
    removed = {"sparsity": 0.1, "max_sparsity": 0.1}
    about = {"method": method, "share": 0.27, "seed": seed, "dense": {"perplexity": dense}}
    return about | removed | scores


def test_the_table_has_medians_and_ranges_over_seeds(tmp_path: Path) -> None:
    rows = [row("best", seed, 40.0, pruned=p) for seed, p in enumerate((60.0, 90.0, 80.0))]
    rows[0] |= {"refitted": {"perplexity": 42.0}}
    rows.append(row("flap", 0, 40.0, pruned=4000.0))
    rows.append(row("best", 0, 40.0, pruned=41.0) | {"share": 0.1})  # nothing is refitted at 10 %
    rows.append(row("heads-paper", 0, 40.0, pruned=44.0) | {"sparsity": 0.005})
    for number, one in enumerate(rows):
        (tmp_path / f"{number}.json").write_text(json.dumps(one))
    head, _, *lines = table(tmp_path).splitlines()
    assert head == "| search | 10 % | 27 % | 27 %, refitted |"
    assert [line.split(" | ")[1:] for line in lines] == [
        ["+2.50 %", "+100 % (+50.0 to +125, 3 seeds)", "+5.00 % |"],
        ["", "+9,900 %", " |"],
        ["", "+10.0 % (only 1.35 % removed)", " |"],
    ]


def test_the_readme_has_the_table_of_the_committed_files() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = text.split("<!-- real model -->\n")[1].split("\n<!-- end -->")[0]
    assert shown == table(ROOT / "runs/real/gemma-3-270m")


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no results"):
        table(tmp_path)
