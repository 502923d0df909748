"""Runs that refit their winner, and the comparison on other data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sos_deap import Evaluator, load
from sos_deap.report.refit_lines import refit_lines
from sos_deap.run import main


def run(flags: list[str], folder: Path) -> dict[str, Any]:
    assert main([*flags, f"--output_dir={folder}"]) == 0
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def value_of(flags: list[str], name: str) -> str:
    return next(flag for flag in flags if flag.startswith(f"--{name}=")).partition("=")[2]


@pytest.mark.parametrize("task", ["perplexity", "kl"])
def test_a_winner_is_refitted_on_examples_of_its_own(
    refit_flags: list[str], tmp_path: Path, capsys: Any, task: str
) -> None:
    flags = refit_flags + (["--task=kl", "--metric=perplexity"] if task == "kl" else [])
    plain = run(flags, tmp_path / "plain")
    capsys.readouterr()
    found = run([*flags, "--refit=after", "--refit_samples=30"], tmp_path / "refitted")
    printed = capsys.readouterr().out
    # The search is the same; only the winner's weights differ.
    same = [(tmp_path / name / "evaluations.csv").read_bytes() for name in ("plain", "refitted")]
    assert same[0] == same[1]
    assert found["best"]["chromosome"] == plain["best"]["chromosome"]
    assert "refit" not in plain
    for part in ("heldout", "probe"):
        assert found["refit"]["without"][part] == pytest.approx(plain["best"][part])
        assert found["best"][part] != plain["best"][part]
    assert "perplexity, probe, no refit" in printed and "refit: after, 960 tokens" in printed
    data = found["data"]
    assert data["refit"]["sequences"] == 30 and "other" in data["probe"]["split"]
    hashes = [part["token_hash"] for part in data.values()]
    assert len(set(hashes)) == len(hashes) == 4
    # What was saved is what was measured.
    evaluator = Evaluator.from_pretrained(
        value_of(flags, "model"),
        dataset=value_of(flags, "dataset"),
        heldout_samples=4,
        seqlen=32,
        device="cpu",
    )
    assert evaluator.heldout is not None
    again = evaluator.metrics_of(load(tmp_path / "refitted" / "pruned"), evaluator.heldout)
    expected = found["best"]["heldout"]["perplexity"]
    assert again["perplexity"] == pytest.approx(expected, rel=1e-5)
    page = (tmp_path / "refitted" / "report.html").read_text()
    assert "perplexity, held-out, no refit" in page


def test_half_of_the_refit_examples_are_of_another_data_set(refit_flags: list[str]) -> None:
    dataset, other = (value_of(refit_flags, name) for name in ("dataset", "probe_dataset"))

    def evaluator(dataset: str, samples: int, **more: Any) -> Any:
        model = value_of(refit_flags, "model")
        return Evaluator.from_pretrained(
            model, dataset=dataset, samples=samples, seqlen=32, device="cpu", **more
        )

    mixed = evaluator(dataset, 2, refit_samples=7, refit_dataset=other).refit_task.sequences
    own = evaluator(dataset, 2, refit_samples=4).refit_task.sequences
    foreign = evaluator(other, 3).task.sequences
    assert mixed.split == f"{own.split} and {foreign.split}"
    assert mixed.input_ids[0::2].tolist() == own.input_ids.tolist()
    assert mixed.input_ids[1::2].tolist() == foreign.input_ids.tolist()


def test_without_further_examples_those_of_the_search_are_used(
    refit_flags: list[str], tmp_path: Path, capsys: Any
) -> None:
    found = run([*refit_flags, "--refit=after", "--samples=400"], tmp_path / "run")
    count = found["data"]["calibration"]["sequences"]
    assert count < 400 and "refit" not in found["data"]
    # One of five parts chose the damping.
    assert 0.7 * count * 32 <= found["refit"]["tokens"] <= count * 32
    assert "so the refit used these, too: give more data" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--refit=yes"], "unknown refit 'yes'"),
        (["--refit_samples=9"], "refit_samples is 9 without a refit: give --refit after"),
        (["--refit_damping=0.1"], "refit_damping is 0.1 without a refit"),
        (["--refit=after", "--refit_damping=-1"], "the damping of the refit is -1.0"),
        (["--refit=after", "--refit_samples=3"], "a refit on 3 examples cannot choose its damping"),
        (["--refit=during", "--refit_damping=0"], "refit during the search is 0: give a number"),
        (["--refit=bias"], "a llama model have no biases"),
        (["--refit_dataset=builtin:pydoc"], "refit_dataset is builtin:pydoc without a refit"),
        (["--refit=after", "--refit_dataset=no.txt"], "no.txt"),
        (["--refit=after", "--refit_dataset=builtin:self"], "refit_dataset is builtin:self"),
        (
            [
                "--refit=after",
                "--task=sos_deap:Chromosome",
                "--samples=4",
                "--refit_dataset={probe}",
            ],
            "refit_dataset is only for kl, perplexity: leave it out",
        ),
        (
            ["--refit=after", "--samples=400", "--refit_dataset={probe}"],
            "no example is left for refit: there are",
        ),
        (["--refit=after", "--refit_dataset={dataset}"], "the data set of the search: give"),
        (["--probe_dataset=no.txt"], "no.txt"),
        (["--probe_dataset=builtin:self"], "probe_dataset is builtin:self"),
    ],
)
def test_bad_input(
    refit_flags: list[str], tmp_path: Path, capsys: Any, given: list[str], message: str
) -> None:
    paths = {name: value_of(refit_flags, name) for name in ("dataset", "probe_dataset")}
    given = [one.format(dataset=paths["dataset"], probe=paths["probe_dataset"]) for one in given]
    assert main([*refit_flags, *given, f"--output_dir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_warnings_for_few_tokens_and_for_a_gain_on_one_text_only() -> None:
    def result(tokens: int, probe: float) -> dict[str, Any]:
        parts = {"heldout": {"perplexity": 24.0}, "probe": {"perplexity": probe}}
        before = {"heldout": {"perplexity": 25.0}, "probe": {"perplexity": 210.0}}
        refit = {"how": "after", "tokens": tokens, "inputs": 100, "seconds": 3.0}
        refit["greater_is_better"] = False
        data: dict[str, Any] = {"calibration": {}, "refit": {}}
        return {"best": parts, "data": data, "refit": {**refit, "without": before}}

    assert refit_lines({"best": {}}) == []
    assert len(refit_lines(result(1600, 205.0))) == 1
    few = refit_lines(result(1599, 205.0))
    assert "1,599 tokens for 100 inputs of a projection: at least 16 per input" in few[1]
    worse = refit_lines(result(1600, 211.0))
    assert "improved the metric on held-out text and worsened it on the probe data" in worse[1]
