"""The command `eval`, and the benchmark of zero-shot accuracies, on local questions."""

from __future__ import annotations

import io
import json
import math
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks import zero_shot as benchmark
from sos_deap import Evaluator, load
from sos_deap.__main__ import main
from sos_deap.zero_shot import _cell, side_by_side
from tests.test_multiple_choice import rows


def run(*arguments: Any) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for name, kind in (("asked", "query"), ("either", "options"), ("last", "context")):
        lines = [json.dumps(row) for row in rows(9, kind)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def pruned(tmp_path: Path, model_folder: Path) -> Path:
    """In the sliced layout, with a layer without heads."""
    folder = tmp_path / "pruned"
    assert run("prune", model_folder, "--heads", "0:1;1:0,1,2,3", "--output_dir", folder) == 0
    return folder


def test_dense_and_pruned_side_by_side(
    data: Path, pruned: Path, model_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    """The same values as those of the task multiple-choice, which is tested item by item."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'sos_deap[eval]'")
    out = tmp_path / "out.json"
    flags = ["--against", model_folder, "--data", data, "--limit", 8, "--batch_size", 3]
    assert run("eval", pruned, *flags, "--output", out) == 0
    found = json.loads(out.read_text())
    assert found["models"] == {"dense": str(model_folder), "pruned": str(pruned)}
    assert list(found["tasks"]) == ["asked", "either", "last"]
    folders = [f"dense={model_folder}", f"pruned={pruned}"]
    ours = own_results(data, folders, tmp_path / "ours.json", "--limit=8")
    for name, about in found["tasks"].items():
        assert about["examples"] == 8
        mine = [ours[model][name] for model in ("dense", "pruned")]
        assert (about["chance"] or 0) == pytest.approx(mine[0]["chance"], abs=1e-4)
        names = {"acc": "accuracy", "acc_norm": "accuracy_norm", "perplexity": "answer_perplexity"}
        assert (
            set(about["metrics"])
            == {
                "asked": {"acc", "acc_norm"},
                "either": {"acc"},
                "last": {"acc", "perplexity"},
            }[name]
        )
        for metric, columns in about["metrics"].items():
            for model, expected in zip(("dense", "pruned"), mine, strict=True):
                value = columns[model]["value"]
                assert value == pytest.approx(expected[names[metric]], rel=1e-3)
            change = columns["change"]
            assert change["value"] == columns["pruned"]["value"] - columns["dense"]["value"]
            if metric != "perplexity":
                first, second = (one["right"][names[metric]] for one in mine)
                each = [b - a for a, b in zip(first, second, strict=True)]
                stderr = statistics.stdev(each) / math.sqrt(8)
                assert change["stderr"] == pytest.approx(stderr)
            else:
                assert change["stderr"] is None
    table = capsys.readouterr().out
    chance = 100 * found["tasks"]["asked"]["chance"]
    assert f"  {chance:.1f} %  " in table and " points\n" in table


def own_results(data: Path, models: list[str], out: Path, *flags: str) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        tasks = ["--tasks", *(path.stem for path in data.iterdir())]
        arguments = [*models, *tasks, f"--data={data}", f"--output={out}", *flags]
        patch.setattr(sys, "argv", ["zero_shot", *arguments])
        benchmark.main()
    return json.loads(out.read_text())["models"]


def test_the_benchmark_continues_where_it_stopped(
    data: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out, calls = tmp_path / "out.json", []
    real = benchmark.evaluated

    def stopping(loaded: Any, path: Path, *rest: Any) -> dict[str, Any]:
        calls.append(path.stem)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(loaded, path, *rest)

    monkeypatch.setattr(benchmark, "evaluated", stopping)
    with pytest.raises(KeyboardInterrupt):
        own_results(data, [f"dense={model_folder}"], out)
    first = json.loads(out.read_text())["models"]["dense"]
    found = own_results(data, [f"dense={model_folder}"], out)["dense"]
    assert len(calls) == 4 and len(set(calls)) == 3 and list(first) == calls[:1]
    assert found[calls[0]] == first[calls[0]]
    assert own_results(data, [f"dense={model_folder}"], out)["dense"] == found
    with pytest.raises(ValueError, match="was made with another limit: give another --output"):
        own_results(data, [f"dense={model_folder}"], out, "--limit=3")
    # The same as the run's task, one example after the other.
    evaluator = Evaluator.from_pretrained(
        str(model_folder), dataset=str(data / "asked.jsonl"), task="multiple-choice", samples=4
    )
    assert evaluator.heldout is not None
    metrics = evaluator.metrics_of(load(model_folder), evaluator.heldout)
    right = found["asked"]["right"]
    assert metrics["accuracy"] == pytest.approx(sum(right["accuracy"][4:]) / 5)
    assert metrics["accuracy_norm"] == pytest.approx(sum(right["accuracy_norm"][4:]) / 5)


def test_changes_by_hand() -> None:
    def result(value: float | None, each: list[float] | None) -> dict[str, Any]:
        metrics = {"acc": {"value": value, "stderr": 0.1, "each": each}}
        return {"x": {"chance": 0.5, "examples": 4, "metrics": metrics}}

    before, after = [1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0]
    both = {"dense": result(0.75, before), "pruned": result(0.25, after)}
    change = side_by_side(both)["x"]["metrics"]["acc"]["change"]
    # The differences -1, 0, 0, -1 have the standard deviation sqrt(1 / 3).
    assert change == {"value": -0.5, "stderr": pytest.approx(math.sqrt(1 / 3) / 2)}
    groups = {"dense": result(0.75, None), "pruned": result(0.25, None)}
    assert side_by_side(groups)["x"]["metrics"]["acc"]["change"]["stderr"] is None
    nothing = {"dense": result(0.75, None), "pruned": result(None, None)}
    assert side_by_side(nothing)["x"]["metrics"]["acc"]["change"]["value"] is None


def test_a_terminal_without_the_sign_of_a_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"value": 0.5, "stderr": 0.25}
    for encoding, expected in (("ascii", "50.0 +- 25.0 %"), ("utf-8", "50.0 ± 25.0 %")):
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
        assert _cell(values, True, False) == expected
    assert _cell({"value": -0.125, "stderr": None}, True, True) == "-12.5 points"


TASK = """
task: NAME
dataset_path: json
dataset_kwargs:
  data_files:
    test: FILE
test_split: test
output_type: multiple_choice
doc_to_text: query
doc_to_target: gold
doc_to_choice: choices
metric_list:
  - metric: acc
"""
GROUP = """
group: both
task: [first, second]
aggregate_metric_list:
  - metric: acc
"""


@pytest.fixture
def own(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks of lm-eval in a folder of few files: it reads its own folder for a minute."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'sos_deap[eval]'")
    from lm_eval import tasks

    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, file in (("first", "asked"), ("second", "asked"), ("lost", "lost")):
        text = TASK.replace("NAME", name).replace("FILE", str(data / f"{file}.jsonl"))
        (folder / f"{name}.yaml").write_text(text)
    (folder / "both.yaml").write_text(GROUP)
    manager = partial(tasks.TaskManager, include_defaults=False, include_path=folder)
    monkeypatch.setattr(tasks, "TaskManager", manager)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("first,secand", "unknown task 'secand': did you mean 'second'? lm-eval ls tasks lists al"),
        ("lost", "cannot load the data of lost: "),
    ],
)
def test_tasks_that_lm_eval_lacks(
    names: str, message: str, model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("sos_deap.models.loading.load", None)  # not called
    assert run("eval", model_folder, "--tasks", names) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {message}")


@pytest.mark.usefixtures("own")
def test_a_group_and_its_tasks(data: Path, model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert run("eval", model_folder, "--tasks", "both", "--output", out) == 0
    found = json.loads(out.read_text())["tasks"]
    assert set(found) == {"both", "first", "second"}
    values = [about["metrics"]["acc"]["model"]["value"] for about in found.values()]
    assert values[0] == values[1] == values[2]
    assert found["both"]["examples"] is None and found["first"]["examples"] == 9
    assert found["first"]["chance"] == pytest.approx(
        sum(1 / len(row["choices"]) for row in rows(9, "query")) / 9
    )


def test_without_the_extra(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert run("eval", model_folder, "--tasks", "arc_easy") == 2
    assert capsys.readouterr().err == ("error: eval needs lm_eval: pip install 'sos_deap[eval]'\n")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks", "other"], "did you mean 'either'? known are asked, either, last"),
        (["--tasks", "mixed"], "mixed.jsonl has rows of several formats: give a file for each"),
        (["--tasks", "broken"], "cannot load the data set"),
        (["--tasks", ""], "--tasks names no task"),
        (["--limit", "0"], "--limit is 0: give at least 1"),
        (["--batch_size", "-1"], "--batch_size is -1: give at least 1"),
        (["--dtype", "float99"], "unknown dtype 'float99'"),
        (["--data", "nowhere"], "data nowhere is not a folder: give one with .jsonl files"),
        (["--output", "no/such/folder"], "there is no folder no/such"),
    ],
)
def test_bad_input_is_one_line(
    flags: list[str], message: str, data: Path, model_folder: Path, capsys: Any
) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'sos_deap[eval]'")
    if flags[1] in ("mixed", "broken"):
        lines = [json.dumps(row) for kind in ("query", "context") for row in rows(1, kind)]
        broken = flags[1] == "broken"
        (data / f"{flags[1]}.jsonl").write_text("{" if broken else "\n".join(lines))
    given = flags if flags[0] == "--data" else ["--data", data, *flags]
    assert run("eval", model_folder, *given) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
