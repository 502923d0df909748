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
    return {"method": method, "share": 0.27, "seed": seed, "dense": {"perplexity": dense}, **scores}


def test_the_table_has_the_increases_of_one_seed(tmp_path: Path) -> None:
    for seed, pruned in enumerate((60.0, 80.0)):
        found = row("best", seed, 40.0, pruned=pruned, refitted=42.0)
        (tmp_path / f"best_{seed}.json").write_text(json.dumps(found))
    (tmp_path / "flap.json").write_text(json.dumps(row("flap", 0, 40.0, pruned=4000.0)))
    other = row("best", 0, 40.0, pruned=41.0) | {"share": 0.1}  # nothing is refitted at 10 %
    (tmp_path / "best.json").write_text(json.dumps(other))
    head, _, *lines = table(tmp_path).splitlines()
    assert head == "| search | 10 % | 27 % | 27 %, refitted |"
    assert [line.split(" | ")[1:] for line in lines] == [
        ["+2.50 %", "+50.0 %", "+5.00 % |"],
        ["", "+9,900 %", " |"],
    ]
    assert "| +100 % | +5.00 % |" in table(tmp_path, 1)


def test_the_readme_has_the_table_of_the_committed_files() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = text.split("<!-- real model -->\n")[1].split("\n<!-- end -->")[0]
    assert shown == table(ROOT / "runs/real/gemma-3-270m")


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no results"):
        table(tmp_path)
