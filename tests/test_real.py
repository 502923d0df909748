"""The study on a real model, on a small one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import real
from sos_deap import InputError

Study = Callable[..., dict[str, Any]]


@pytest.fixture
def study(
    model_folder: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Study:
    """Runs the study with some flags into a folder, and returns its rows by file."""
    monkeypatch.setattr(real, "measure", lambda *_, **__: [])
    small = {
        "seqlen": 32,
        "channel_blocks": 4,
        "heldout_samples": 2,
        "heldout_split": "train",
        "max_evaluations": 6,
    }
    given = {"model": model_folder, "dataset": text_file, "shares": 0.27, **small}
    flags = [f"--{name}={value}" for name, value in given.items()]

    def run(name: str, *more: str) -> dict[str, Any]:
        folder = tmp_path / name
        monkeypatch.setattr("sys.argv", ["real", f"--output_dir={folder}", *flags, *more])
        real.main()
        return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}

    return run


def found(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "seconds"}


def computed(folder: Path) -> int:
    """The number of sums in a journal, each of a sub-model over some examples."""
    [journal] = folder.glob("*.jsonl")
    lines = (json.loads(line[9:]) for line in journal.read_text().splitlines())
    return sum(len(line.get("sums", ())) for line in lines)


def test_searches_share_what_they_compute_and_each_pays_for_it(
    study: Study, tmp_path: Path
) -> None:
    together = study("together", "--no_refit", "--methods=best,knapsack")
    assert set(together) == {"best_0.27_0", "knapsack_0.27_0"}
    apart = study("best", "--no_refit", "--methods=best")
    apart |= study("knapsack", "--no_refit", "--methods=knapsack")
    assert all(found(apart[name]) == found(row) for name, row in together.items())
    parts = [computed(tmp_path / name) for name in ("best", "knapsack")]
    assert computed(tmp_path / "together") < sum(parts) - 24  # the model without each gene, once

    refitted = study("together", "--refit_found", "--refit_samples=5", "--methods=best")
    best = refitted["best_0.27_0"]
    assert best["refitted"] != best["pruned"] and best["refit"]["tokens"] == 160
    assert together["best_0.27_0"].items() <= best.items()
    assert refitted["knapsack_0.27_0"] == together["knapsack_0.27_0"]


@pytest.mark.parametrize("kept", ["best_0.27_0", "best_0.27_0_refitted"])
def test_models_are_not_overwritten_nor_refused_after_the_work(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    refits = ["--refit_found"] if kept.endswith("refitted") else []
    if refits:
        study("run", "--no_refit", "--methods=best")
    (tmp_path / "models" / kept).mkdir(parents=True)
    (tmp_path / "models" / kept / "model.safetensors").touch()
    monkeypatch.setattr(real, "evaluator_of", lambda _: pytest.fail("work begins"))
    with pytest.raises(InputError, match=f"{kept} is not an empty folder"):
        study("run", *refits, "--methods=best", f"--models_dir={tmp_path / 'models'}")


def test_a_stopped_study_of_refits_continues(study: Study, tmp_path: Path) -> None:
    study("run", "--no_refit", "--methods=best,knapsack")
    refits = ["--refit_found", "--refit_samples=5", f"--models_dir={tmp_path / 'models'}"]
    first = study("run", *refits, "--methods=best")
    both = study("run", *refits, "--methods=best,knapsack")
    assert both["best_0.27_0"] == first["best_0.27_0"]
    assert both["knapsack_0.27_0"]["refitted"]
