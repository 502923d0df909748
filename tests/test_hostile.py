"""Files with arbitrary content: each causes an error of one line, and nothing in them is run."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import time
import zlib
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from sos_deap import Evaluator, InputError, load
from sos_deap.__main__ import main as package_main
from sos_deap.config import parse
from sos_deap.evaluation.journal import Journal
from sos_deap.evaluation.store import Store
from sos_deap.files.chromosome_file import read_chromosome
from sos_deap.plan import plan_of
from sos_deap.rehearsal import rehearse
from sos_deap.run import main
from sos_deap.safe_yaml import plain
from sos_deap.search.named import split
from tests.conftest import GENES

few = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
KEYS = st.sampled_from(["chromosome", "unit", "model", "fingerprint", "seed", "generations", "x"])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["1" * 400, "\0", "!!int", "--help", "\ud800", "a\nb", "\x1b[2J"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
DEEP = "[" * 100_000

#: YAML that runs code, or fills memory, where it is read as more than plain values.
EVIL = (
    "!!python/object/apply:os.system ['touch {marker}']",
    "!!python/object/new:os.system ['touch {marker}']",
    "!!python/name:os.system",
    "model: !!python/object/apply:pathlib.Path.touch [{marker}]",
    "a: &a [x, x]\nmodel: [*a, *a]",
    "model: &a [*a]",
    '!!int ""',
    "!!timestamp x",
    '!!bool "x"',
    "model: !!int ''",
    DEEP,
    "? [a]\n: b",
    "1: a",
    "seed: 1\nseed: 2",
    "{{a: " * 21 + "1" + "}}" * 21,
    "#" * 100_001,
    "\0",
    "model: !!binary aGFsbG8=",
    "model: !!set {{a}}",
    "seed: {{a: 1}}",
    "2020-13-45",
)


def line(content: Any) -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def one_error(capsys: Any) -> str:
    [error] = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    return str(error)


# The journal


HEAD = {"scope": "x"}
GOOD = {"examples": [0, 4], "sums": {"101": [1.0, 2.0], "110": [math.nan, math.inf]}}
NONSENSE = {
    "no sums": {"examples": [0, 4]},
    "a list of sums": {"examples": [0, 4], "sums": [[1.0, 2.0]]},
    "none at all": {"examples": [0, 4], "sums": {}},
    "a key that is no chromosome": {"examples": [0, 4], "sums": {"102": [1.0, 2.0]}},
    "a key of letters": {"examples": [0, 4], "sums": {"abc": [1.0, 2.0]}},
    "an empty key": {"examples": [0, 4], "sums": {"": [1.0, 2.0]}},
    "digits of other scripts": {"examples": [0, 4], "sums": {"\u0661\u0660": [1.0, 2.0]}},
    "other numbers of sums": {"examples": [0, 4], "sums": {"111": [1.0]}},
    "no numbers": {"examples": [0, 4], "sums": {"111": []}},
    "text for numbers": {"examples": [0, 4], "sums": {"111": ["1", "2"]}},
    "text for a list": {"examples": [0, 4], "sums": {"111": "12"}},
    "lists in lists": {"examples": [0, 4], "sums": {"111": [[1.0], [2.0]]}},
    "huge whole numbers": {"examples": [0, 4], "sums": {"111": [10**400, 1.0]}},
    "a start after the stop": {"examples": [4, 0], "sums": {"111": [1.0, 2.0]}},
    "nothing between": {"examples": [4, 4], "sums": {"111": [1.0, 2.0]}},
    "a start below 0": {"examples": [-1, 4], "sums": {"111": [1.0, 2.0]}},
    "three ends": {"examples": [0, 1, 4], "sums": {"111": [1.0, 2.0]}},
    "ends that are no numbers": {"examples": ["0", "4"], "sums": {"111": [1.0, 2.0]}},
    "true for a number": {"examples": [False, True], "sums": {"111": [1.0, 2.0]}},
    "sums that divide by 0": {"examples": [0, 4], "sums": {"111": [1.0, 0.0]}},
    "a number": 3,
    "nesting": DEEP.encode(),
}


def quotient(sums: list[float]) -> float:
    """As a task does that divides by a count."""
    return sums[0] / sums[1]


@pytest.mark.parametrize("name", NONSENSE)
def test_an_inconsistent_line_is_dropped_with_all_that_follow(
    tmp_path: Path, name: str, caplog: Any
) -> None:
    path = tmp_path / "j"
    sound = line(HEAD) + line(GOOD)
    path.write_bytes(sound + line(NONSENSE[name]) + line({**GOOD, "examples": [4, 8]}))
    with closing(Journal(path, "x", quotient)) as journal:
        assert len(journal) == 2 and (b"\1\0\1", 0, 4) in journal
    assert "is damaged from line 3 on" in caplog.text
    assert path.read_bytes() == sound


@few
@given(st.lists(VALUES | st.fixed_dictionaries({"examples": VALUES, "sums": VALUES}), max_size=4))
def test_an_arbitrary_journal_is_read_or_refused(tmp_path: Path, contents: list[Any]) -> None:
    path = tmp_path / "j"
    path.write_bytes(line(HEAD) + line(GOOD) + b"".join(map(line, contents)))
    with closing(Journal(path, "x", quotient)) as journal:
        assert len(journal) == 2  # hypothesis finds no valid line
    path.write_bytes(b"".join(map(line, contents)))
    with suppress(InputError):  # of another model, task or other data
        Journal(path, "x", quotient).close()


def test_sums_of_another_kind_than_the_task_s_are_refused(
    evaluator: Evaluator, tmp_path: Path
) -> None:
    with closing(evaluator.open_journal(tmp_path / "j")) as journal:
        evaluator.metric([1] * GENES)
        head, good = journal.path.read_bytes().splitlines(keepends=True)
    content = json.loads(good[9:])
    content["sums"] = {genes: [*sums, 1.0] for genes, sums in content["sums"].items()}
    (tmp_path / "j").write_bytes(head + line(content))
    evaluator.open_journal(tmp_path / "j")
    with pytest.raises(InputError, match="has 3 sums for each sub-model, and this task 2"):
        evaluator.metric([0] * GENES)
    evaluator.close_journal()


def test_rows_of_a_store_that_are_no_metrics_are_ignored(tmp_path: Path) -> None:
    store = Store(tmp_path / "s", "x")
    for number, metric in enumerate((b"", b"1234567", "text", 5, 1.5)):
        content = metric if isinstance(metric, bytes) else b""
        key = bytes([number])
        with store._connection as connection:
            connection.execute(
                "INSERT INTO evaluations VALUES (?, ?, ?, ?)",
                (store._scope, key, metric, zlib.crc32(key + content)),
            )
        assert store.get(key) is None
    store.close()


# Settings


@pytest.mark.parametrize("text", EVIL, ids=range(len(EVIL)))
def test_settings_run_nothing_and_are_one_error(tmp_path: Path, text: str, capsys: Any) -> None:
    marker = tmp_path / "marker"
    path, folder = tmp_path / "settings.yaml", tmp_path / "run"
    path.write_text(text.format(marker=marker))
    assert main([str(path)]) == 2
    assert "settings.yaml" in one_error(capsys)
    folder.mkdir()
    shutil.copy(path, folder / "config.json")
    assert main([f"--resume={folder}"]) == 2
    assert "config.json" in one_error(capsys)
    assert not marker.exists()


@few
@given(st.dictionaries(st.sampled_from(["model", "seed", "generations", "quiet"]) | KEYS, VALUES))
def test_arbitrary_settings_are_read_or_refused(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(content))
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sos_deap.tasks.registry.kind_of", lambda name: "causal")
            plan_of(*parse([str(path)]))
    except InputError:
        return
    values = content.values()
    assert set(content) <= {"model", "seed", "generations", "quiet", "unit"}
    assert not any(isinstance(value, list | dict) for value in values)


@few
@given(st.text(max_size=30) | st.sampled_from(EVIL[:-1]))
def test_arbitrary_parameters_are_read_or_refused(text: str) -> None:
    for ask in (plain, lambda value: split(f"name,key={value}")):
        with suppress(ValueError):  # of which InputError is one
            ask(text)


# Chromosomes


@few
@given(VALUES | st.fixed_dictionaries({"chromosome": VALUES}, optional={"unit": VALUES}))
def test_arbitrary_chromosomes_are_read_or_refused(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps(content))
    try:
        read = read_chromosome(path)
    except InputError:
        return
    assert all(type(gene) is int for gene in read["chromosome"])
    assert isinstance(read.get("unit", ""), str)


@pytest.mark.parametrize(
    "text",
    [
        DEEP,
        "[1" + "0" * 5000 + "]",
        "[NaN]",
        "[2, 1]",
        '{"chromosome": [1], "unit": ["head"]}',
        '{"chromosome": [1], "unit": null}',
        '{"chromosome": [1], "model": "a\\nb", "fingerprint": "\\u001b[2J"}',
        '{"chromosome": [1], "fingerprint": {}}',
        "\ufeff[1]",
    ],
    ids=range(9),
)
def test_prune_refuses_a_bad_chromosome_in_one_line(
    model_folder: Path, tmp_path: Path, text: str, capsys: Any
) -> None:
    path = tmp_path / "c.json"
    path.write_text(text)
    flags = [f"--chromosome={path}", f"--output_dir={tmp_path / 'out'}"]
    assert package_main(["prune", str(model_folder), *flags]) == 2
    assert one_error(capsys).isprintable()
    assert not (tmp_path / "out").exists()


# Models and runs


@pytest.mark.parametrize(
    "changes",
    [
        {"kept_heads": 3},
        {"kept_heads": [[0, 99], [0], [0]]},
        {"kept_heads": [["x"], [0], [0]]},
        {"kept_heads": [[-1], [0], [0]]},
        {"kept_heads": {"0": [1]}},
        {"kept_heads": [[0]] * 99},
        {"kept_heads": [[0]], "architectures": ["T5GemmaModel"], "model_type": "t5gemma"},
        {"architectures": [["LlamaForCausalLM"]]},
        {"architectures": ["os.system"]},
        {"model_type": ["llama"]},
        {"num_hidden_layers": "3"},
        {"hidden_size": 0},
        {"auto_map": {"AutoConfig": "evil.Config"}, "model_type": "evil"},
    ],
    ids=lambda changes: json.dumps(changes)[:50],
)
def test_an_arbitrary_config_of_a_model_is_refused(
    model_folder: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')")
    with pytest.raises(InputError):
        load(folder)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("text", [DEEP, "", "[]", "null", "3", '{"model_type": null}'])
def test_arbitrary_files_of_a_model_are_refused(
    model_folder: Path, tmp_path: Path, file: str, text: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    (folder / file).write_text(text)
    with pytest.raises(InputError):
        load(folder)


@pytest.mark.parametrize("absolute", [False, True])
def test_weights_outside_of_the_folder_are_not_read(
    model_folder: Path, tmp_path: Path, absolute: bool
) -> None:
    folder, weights = tmp_path / "model", tmp_path / "outside.safetensors"
    shutil.copytree(model_folder, folder)
    (folder / "model.safetensors").rename(weights)
    outside = str(weights) if absolute else "../outside.safetensors"
    names = load_file(weights)
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, outside)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"outside.safetensors', a file outside of its folder"):
        load(folder)
    (folder / "model.safetensors.index.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": outside}))
    with pytest.raises(InputError, match=r"outside.safetensors', a file outside of its folder"):
        load(folder)


def test_a_config_of_a_million_layers_is_refused_at_once(
    model_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 10**6}))
    started = time.perf_counter()
    with pytest.raises(InputError, match="do not fit its config.json: 1000000 layers, and 30 ten"):
        load(folder)
    assert time.perf_counter() - started < 10


@few
@given(VALUES, st.sampled_from(["", "dense", "best", "search", "data", "versions"]))
def test_an_arbitrary_result_is_reported_or_refused(tmp_path: Path, value: Any, part: str) -> None:
    from sos_deap.report.comparison import comparison

    sizes = {"heads": 2, "heldout": {"kl": 1.0}}
    result: Any = {"dense": sizes, "best": sizes, "search": {"algorithm": "a", "seconds": 1.0}}
    (tmp_path / "result.json").write_text(json.dumps({**result, part: value} if part else value))
    with suppress(InputError):
        comparison([tmp_path])
        assert part in ("data", "versions") or value == result.get(part)


FEW = ["--seqlen=16", "--samples=2", "--heldout_samples=2", "--generations=1"]
GENERATION = {
    "num_beams": 10**6,
    "temperature": 0.5,  # without sampling: stock code does not save this
    "num_return_sequences": 100,
    "stop_strings": ["a"],
    "prompt_lookup_num_tokens": 3,
    "assistant_early_exit": 1,
    "max_time": 1e-9,
    "sequence_bias": [[[5], -10.0]],
    "eos_token_id": [0, 9, 11],
    "pad_token_id": 10**6,
}


def changed(folder: Path, **files: dict[str, Any]) -> None:
    for name, changes in files.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_settings_that_stock_code_refuses_change_nothing(
    model_folder: Path, text_file: Path, tmp_path: Path, caplog: Any
) -> None:
    strange = tmp_path / "model"
    shutil.copytree(model_folder, strange)
    changed(
        strange,
        config={"output_attentions": True, "return_dict": False, "dtype": "int8"}
        | {"eos_token_id": [0, 9, 11], "pad_token_id": None},
        generation_config=GENERATION,
        tokenizer_config={"model_max_length": "64", "pad_token": "[NEW]"},  # beyond the table
    )
    plain = tmp_path / "plain"
    shutil.copytree(model_folder, plain)
    changed(plain, generation_config={"eos_token_id": [0, 9, 11]})
    found = []
    for folder in (strange, plain):
        run = tmp_path / f"run_{folder.name}"
        flags = ["--population_size=4", f"--model={folder}", f"--dataset={text_file}"]
        assert main([*flags, *FEW, f"--output_dir={run}", "--quiet"]) == 0
        result = json.loads((run / "result.json").read_text())
        found.append((result["best"], json.loads((run / "samples.json").read_text())))
        load(run / "pruned")
    assert found[0] == found[1]
    assert "only the token ids of generation settings are kept" in caplog.text


@pytest.mark.parametrize("what", ["template", "measure", "generate"])
def test_what_will_fail_after_the_search_fails_before_it(
    model_folder: Path,
    text_file: Path,
    tmp_path: Path,
    what: str,
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)

    def fails(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("cannot")

    if what == "template":
        templates = [{"name": "default", "template": "x"}, {"name": "../../x", "template": "x"}]
        changed(folder, tokenizer_config={"chat_template": templates})
    elif what == "measure":
        monkeypatch.setattr("sos_deap.models.measure.peak_bytes", fails)
    else:
        monkeypatch.setattr("transformers.LlamaForCausalLM.generate", fails)
    run = tmp_path / "run"
    flags = ["--population_size=4", f"--model={folder}", f"--dataset={text_file}"]
    assert main([*flags, *FEW, f"--output_dir={run}"]) == 2
    assert "before the search" in one_error(capsys)
    assert not run.exists()


def test_a_rehearsal_draws_no_random_numbers_and_does_not_change_the_model(
    model_folder: Path, text_file: Path
) -> None:
    evaluator = Evaluator.from_pretrained(
        str(model_folder), dataset=str(text_file), seqlen=16, samples=2, dtype="float32"
    )
    states = random.getstate(), torch.get_rng_state().tolist()
    settings, weights = evaluator.model.config.to_dict(), evaluator.model.state_dict()
    before = {name: tensor.clone() for name, tensor in weights.items()}
    for layout in ("sliced", "zeroed"):
        rehearse(evaluator, layout, 8, 8)
    assert (random.getstate(), torch.get_rng_state().tolist()) == states
    assert evaluator.model.config.to_dict() == settings
    assert all(torch.equal(weights[name], tensor) for name, tensor in before.items())
    assert all(parameter.requires_grad for parameter in evaluator.model.parameters())


# Model cards


def test_a_model_card_holds_no_markup_of_names() -> None:
    from sos_deap.report.card import model_card
    from sos_deap.report.metadata import metadata
    from sos_deap.report.parts import Part

    evil = "a/b\nlicense: x <img src=x onerror=alert(1)> [go](javascript:1) `*x*` | \x1b[2J"
    data = {part: {"split": f"{evil} {part}"} for part in ("calibration", "held-out")}
    result = {"data": data, "best": {"heldout": {evil: 1.0}}}
    card = model_card(
        title=evil,
        metadata=metadata(evil, None, "AutoModelForCausalLM", result),
        layout="sliced",
        auto="AutoModel",
        parts=[Part(0, "heads", (1, 0))],
        facts={"command": evil, "data": evil},
        headline=evil,
        rows=[(evil, "1", "2", "+100 %")],
    )
    body = card[card.index("\n---\n") + 5 :]
    read = yaml.safe_load(card[4 : -len(body) - 5])
    known = {"library_name", "metrics", "model-index", "pipeline_tag", "tags"}
    assert set(read) == {*known, "datasets"} and read["datasets"] == ["a/b"]
    assert read["model-index"][0]["name"] == evil and read["metrics"] == [evil]
    fenced = re.compile(r"(?<!`)``(?!`).*?(?<!`)``(?!`)|^```.*?^```", re.DOTALL | re.MULTILINE)
    text = fenced.sub("", body)
    assert len(fenced.findall(body)) == 3  # name and command, and how to load it
    for mark in "<>[]*`":
        assert not re.search(rf"(?<!\\)\{mark}", text), mark
    assert card.replace("\n", "").isprintable() and "license: x \\<img" in text
