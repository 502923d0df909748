"""prune, measure and export from the command line."""

from __future__ import annotations

import json
import os
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from sos_deap import head_map, load, masked
from sos_deap.__main__ import main
from sos_deap.files.chromosome_file import write_chromosome
from sos_deap.models.identity import fingerprint
from tests.tiny import assert_close, build, output

GENES = [1, 0, 1, 1] + [0] * 4 + [1, 1, 0, 0]

HEADS = {"genes": "heads"}


def run(*arguments: Any) -> int:
    return main([str(argument) for argument in arguments])


def expected(folder: Path, genes: list[int], ids: torch.Tensor) -> torch.Tensor:
    model = load(folder)
    with masked(model, [genes]):
        return output(model, {"input_ids": ids})


IDS = torch.arange(10)[None]


def test_prune_with_a_list_of_heads(model_folder: Path, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "pruned"
    heads = "0:1; 1:0,1,2,3 ;2:2,3"
    assert run("prune", model_folder, "--heads", heads, "--output_dir", folder) == 0
    assert_close(output(load(folder), {"input_ids": IDS}), expected(model_folder, GENES, IDS))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("a tree") == AutoTokenizer.from_pretrained(model_folder)("a tree")
    assert (folder / "generation_config.json").is_file()
    card, printed = (folder / "README.md").read_text(), capsys.readouterr().out
    assert "| 1 | 0 of 4 | 0, 1, 2, 3 |" in card and "| 2 | 2 of 4 | 2, 3 |" in card
    assert "7 of 12 attention heads" in card and "--heads" in card and "transformers" in card
    assert "quality was not measured" in card
    assert re.search(r"^attention heads +12 +5 +-58.3 %$", printed, re.MULTILINE)
    assert [path.name for path in tmp_path.iterdir()] == ["pruned"]


def test_prune_with_a_chromosome_of_a_run(model_folder: Path, tmp_path: Path) -> None:
    path, folder = tmp_path / "chromosome.json", tmp_path / "pruned"
    mark = fingerprint(load(model_folder))
    write_chromosome(path, GENES, model=str(model_folder), fingerprint=mark, genes=HEADS)
    assert run("prune", model_folder, "--chromosome", path, "--output_dir", folder) == 0
    assert_close(output(load(folder), {"input_ids": IDS}), expected(model_folder, GENES, IDS))


def test_a_fingerprint_of_an_earlier_version_is_not_compared(
    model_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    path = tmp_path / "chromosome.json"
    write_chromosome(path, GENES, model="m", fingerprint="0123456789abcdef", genes=HEADS)
    flags = ["--chromosome", path, "--output_dir", tmp_path / "pruned"]
    assert run("prune", model_folder, *flags) == 0
    assert "of an earlier version" in capsys.readouterr().out


def test_prune_with_a_row_of_a_pareto_front(
    model_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    path, folder = tmp_path / "pareto.csv", tmp_path / "pruned"
    mark = fingerprint(load(model_folder))
    best = [1] * 12
    write_chromosome(tmp_path / "chromosome.json", best, model="m", fingerprint=mark, genes=HEADS)
    rows = [[1] * 11 + [0], GENES, [0] * 12]
    lines = [f"{''.join(map(str, row))},9.5,{row.count(0) / 12}\n" for row in rows]
    path.write_text("".join(["chromosome,perplexity,sparsity\n", *lines]))
    which: list[Any]
    for number, which in enumerate((["--row", 1], ["--sparsity", 0.9])):
        place = folder.with_name(f"pruned{number}")
        assert run("prune", model_folder, "--chromosome", path, *which, "--output_dir", place) == 0
        assert_close(output(load(place), {"input_ids": IDS}), expected(model_folder, GENES, IDS))
    capsys.readouterr()
    for which, words in (
        (["--row", 3], "row is 3: "),
        (["--row", -1], "row is -1: "),
        (["--sparsity", 0.01], "as little, give at least 0.0833333"),
        (["--sparsity", "nan"], "sparsity is nan: give a share from 0 to 1"),
        (["--sparsity", 5], "sparsity is 5.0: give a share from 0 to 1"),
        (["--row", 1, "--genes", "heads"], "--genes is for a plain JSON list"),
        ([], "give --row or --sparsity, one of them"),
        (["--row", 1, "--sparsity", 0.9], "give --row or --sparsity, one of them"),
    ):
        assert run("prune", model_folder, "--chromosome", path, *which, "--output_dir", folder) == 2
        assert words in capsys.readouterr().err and not folder.exists()
    for content in ("", "a,b\n1,2\n", "chromosome,sparsity\n01,x\n", "chromosome,sparsity\n"):
        path.write_text(content)
        assert run("prune", model_folder, "--chromosome", path, "--row", 0, "--output_dir", folder)
        assert "give the pareto.csv of a run" in capsys.readouterr().err
    (tmp_path / "evaluations.csv").write_text("chromosome,sparsity\n1,0\n")
    for name, words in (
        ("evaluations.csv", "is not a pareto.csv"),
        ("alone/pareto.csv", "needs the chromosome.json of its run in the same folder"),
    ):
        (tmp_path / "alone").mkdir(exist_ok=True)
        (tmp_path / "alone" / "pareto.csv").write_text("chromosome,sparsity\n1,0\n")
        file = tmp_path / name
        assert run("prune", model_folder, "--chromosome", file, "--row", 0, "--output_dir", folder)
        assert words in capsys.readouterr().err
    assert run("prune", model_folder, "--heads", "0:1", "--row", 0, "--output_dir", folder) == 2
    assert "--row is for a pareto.csv" in capsys.readouterr().err


def test_a_run_in_a_wider_dtype_than_the_weights_are_stored_in(
    model_folder: Path, tmp_path: Path
) -> None:
    """The chromosome of a run in float32 belongs to the model of bfloat16 that it searched."""
    load(model_folder).to(torch.bfloat16).save_pretrained(tmp_path / "stored")  # type: ignore[arg-type]
    stored, wider = (load(tmp_path / "stored", dtype=d) for d in ("auto", "float32"))
    assert fingerprint(stored) == fingerprint(wider, torch.bfloat16) != fingerprint(wider)


def test_a_chromosome_of_groups_and_the_uniform_layout(model_folder: Path, tmp_path: Path) -> None:
    path, folder = tmp_path / "genes.json", tmp_path / "pruned"
    path.write_text("[1, 0, 0, 1, 1, 0]")
    flags = ["--genes", "groups", "--layout", "uniform", "--output_dir", folder]
    assert run("prune", model_folder, "--chromosome", path, *flags) == 0
    genes = [1, 1, 0, 0] + [0, 0, 1, 1] + [1, 1, 0, 0]
    stock = AutoModelForCausalLM.from_pretrained(folder)
    assert_close(output(stock, {"input_ids": IDS}), expected(model_folder, genes, IDS))
    assert "so this is a stock model" in (folder / "README.md").read_text()
    assert run("measure", folder, "--against", model_folder, "--lengths", 8, "--rounds", 1) == 0


def test_prune_keeps_the_task_head_and_the_dtype(tmp_path: Path) -> None:
    model = build("bert", auto=AutoModelForSequenceClassification).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "bert")
    pruned = tmp_path / "pruned"
    assert run("prune", tmp_path / "bert", "--heads", "0:1;2:3", "--output_dir", pruned) == 0
    again = load(pruned)
    assert type(again).__name__ == "BertForSequenceClassification" and again.dtype == torch.bfloat16
    assert load_file(pruned / "model.safetensors")["classifier.weight"].dtype == torch.bfloat16
    assert "AutoModelForSequenceClassification" in (pruned / "README.md").read_text()


def test_a_chromosome_of_another_model_is_refused(
    model_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    path, folder = tmp_path / "chromosome.json", tmp_path / "pruned"
    other = load(model_folder)
    with torch.no_grad():
        next(iter(other.parameters())).mul_(1.001)
    assert len(head_map(other)) == 12
    mark = fingerprint(other)
    write_chromosome(path, GENES, model="other/model", fingerprint=mark, genes=HEADS)
    assert run("prune", model_folder, "--chromosome", path, "--output_dir", folder) == 2
    error = capsys.readouterr().err
    assert f"is for another model, other/model ({mark}), and {model_folder} is " in error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["chromosome.json"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--heads", "3"], "--heads has '3': write layer:head,head;layer:head"),
        (["--heads", "99999999999999"], "--heads has '99999999999999': write layer"),
        (["--heads", "0:" + "9" * 5000], f"--heads has '0:{'9' * 38}...': write layer"),
        (["--heads", "3:1"], "there is no layer 3: the model has 3"),
        (["--heads", "0:9"], "layer 0 has no head 9: it has 4"),
        (["--heads", "0:1", "--layout", "flat"], "unknown layout 'flat'"),
        (["--heads", "0:1", "--layout", "uniform"], "use the genes groups"),
        (["--heads", "0:1", "--genes", "groups"], "layer 0: remove whole groups of 2 heads"),
        (["--heads", "0:1", "--genes", "group"], "unknown kind of genes 'group': did you mean"),
        (["--chromosome", "none.json"], "chromosome file none.json does not exist"),
        ([], "one of the arguments --chromosome --heads is required"),
        (["--heads", "0:1", "--chromosome", "none.json"], "not allowed with argument"),
        (["--heads", "0:1", "--seed", "1"], "error: unknown flag '--seed': --help lists all\n"),
        (["--head=0:1"], "unknown flag '--head': did you mean '--heads'? --help lists all\n"),
    ],
)
def test_what_prune_refuses(
    flags: list[str], message: str, model_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    assert run("prune", model_folder, *flags, "--output_dir", tmp_path / "pruned") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("{}", "holds no chromosome"),
        ('{"chromosome": "1101"}', "holds no chromosome"),
        ("[1, 0.5]", "holds no chromosome"),
        ("[1, true]", "holds no chromosome"),
        ("[1, 0]", "the chromosome has 2 genes, the model 12 heads"),
        ("[2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]", "a gene is 2"),
        ('{"chromosome": [1], "unit": "layer"}', "unknown unit 'layer'"),
    ],
)
def test_chromosome_files_that_are_none(
    content: str, message: str, model_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    path = tmp_path / "genes.json"
    path.write_text(content)
    flags = ["--chromosome", path, "--output_dir", tmp_path / "pruned"]
    assert run("prune", model_folder, *flags) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["genes.json"]


def test_models_that_prune_refuses(model_folder: Path, tmp_path: Path, capsys: Any) -> None:
    def refused(model: Path) -> str:
        assert run("prune", model, "--heads", "0:1", "--output_dir", tmp_path / "out") == 2
        assert not (tmp_path / "out").exists()
        return str(capsys.readouterr().err)

    assert "nowhere does not exist" in refused(tmp_path / "nowhere")
    pruned = tmp_path / "pruned"
    assert run("prune", model_folder, "--heads", "0:1", "--output_dir", pruned) == 0
    capsys.readouterr()
    assert "is already pruned" in refused(pruned)

    quantised = tmp_path / "quantised"
    load(model_folder).save_pretrained(quantised)
    config = json.loads((quantised / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (quantised / "config.json").write_text(json.dumps(config))
    assert "is quantised (gptq): prune the original" in refused(quantised)

    build("codegen").save_pretrained(tmp_path / "codegen")
    assert "codegen model cannot be sliced: its projection" in refused(tmp_path / "codegen")

    short = tmp_path / "short"
    load(model_folder).save_pretrained(short)
    weights = short / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "cannot load the model" in refused(short)
    weights.unlink()
    assert "cannot load the model" in refused(short)


def test_prune_overwrites_nothing(model_folder: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert run("prune", model_folder, "--heads", "0:1", "--output_dir", tmp_path) == 2
    assert "is not an empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_measure(model_folder: Path, tmp_path: Path, capsys: Any) -> None:
    pruned, figures = tmp_path / "pruned", tmp_path / "figures.json"
    assert run("prune", model_folder, "--heads", "1:0,1,2,3", "--output_dir", pruned) == 0
    sizes = ["--lengths", 8, 12, "--batch_sizes", 2, "--new_tokens", 3, "--rounds", 2]
    flags = [*sizes, "--device", "cpu", "--output", figures]
    assert run("measure", pruned, "--against", model_folder, *flags) == 0
    shown, rows = capsys.readouterr().out, json.loads(figures.read_text())
    assert [(row["batch_size"], row["length"]) for row in rows] == [(2, 8), (2, 12)]
    assert set(rows[0]["models"]) == {"dense", "pruned"}
    assert rows[0]["gains"]["pruned"]["prefill_bound"] > 0
    assert "2 x 12 tokens, medians of 2" in shown and "bound" in shown
    assert run("measure", pruned, *flags) == 2
    assert "figures.json exists: give another --output" in capsys.readouterr().err
    assert run("measure", pruned, "--lengths", 8, "--rounds", 1, "--new_tokens", 0) == 0
    assert "bound" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lengths", "100"], "more than the model's 64 positions"),
        (["--rounds", "0"], "at least 1"),
        (["--device", "cuda:9"], "device 'cuda:9' is not available"),
        (["--device", "meta"], "device 'meta' is not available: this machine has cpu"),
        (["--dtype", "int3"], "unknown dtype 'int3'"),
        (["--against", "no/such/folder"], "no/such/folder does not exist"),
    ],
)
def test_what_measure_refuses(
    flags: list[str], message: str, model_folder: Path, capsys: Any
) -> None:
    assert run("measure", model_folder, *flags) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([""], "unknown command ''"),
        (["report"], "the following arguments are required: DIR"),
        (["report", ""], "is not the folder of a complete run"),
        (["report", "file"], "file is not a folder: give the folders of runs"),
        (["report", "file/x"], "file/x is not a folder"),
        (["report", "x" * 300], "xxx is not a folder"),
        (["prune", "MODEL", "--heads", "", "--output_dir", "o"], "--heads names no head"),
        (["prune", "MODEL", "--heads", ";", "--output_dir", "o"], "--heads names no head"),
        (["prune", "MODEL", "--heads", "0:1", "--genes", "", "--output_dir", "o"], "unknown kind"),
        (["prune", "MODEL", "--heads", "0:1", "--output_dir", "file"], "is not an empty folder"),
        (["prune", "MODEL", "--heads", "0:1", "--output_dir", "file/o"], "cannot write to output"),
        (["prune", "MODEL", "--chromosome", "folder", "--output_dir", "o"], "cannot be read"),
        (["prune", "", "--heads", "0:1", "--output_dir", "o"], "holds no config.json"),
        (["measure", ""], "holds no config.json"),
        (["measure", "MODEL", "--against", ""], "holds no config.json"),
        (["measure", "MODEL", "--output", "no/x.json"], "there is no folder no"),
        (["measure", "MODEL", "--output", "file/x.json"], "there is no folder file"),
        (["measure", "MODEL", "--output", "x" * 300], "xxx...: File name too long"),
        (["measure", "MODEL", "--batch_sizes"], "expected at least one argument"),
        (["export", "MODEL", "--format", "gguf", "--output", ""], "output . exists"),
        (["export", "MODEL", "--format", "gguf", "--output", "no/o"], "there is no folder no"),
        (["export", "MODEL", "--format", "onnx", "--dtype", "", "--output", "o"], "unknown dtype"),
    ],
)
def test_odd_arguments_are_one_line(
    arguments: list[str],
    message: str,
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    assert run(*(model_folder if part == "MODEL" else part for part in arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert re.search(message, error), error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_what_export_refuses(model_folder: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    assert run("export", model_folder, "--format", "onyx", "--output", out) == 2
    assert "unknown format 'onyx': did you mean 'onnx'" in capsys.readouterr().err
    flags = ["--format", "gguf", "--dtype", "float16"]
    assert run("export", model_folder, *flags, "--output", out) == 2
    assert "--dtype is for onnx" in capsys.readouterr().err
    assert run("export", model_folder, "--format", "onnx", "--output", tmp_path) == 2
    assert "exists: give another --output" in capsys.readouterr().err


def test_export(
    model_folder: Path, tmp_path: Path, capsys: Any, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(partial(os.umask, os.umask(0o022)))
    for package in ("onnxscript", "onnxruntime", "gguf"):
        pytest.importorskip(package)
    pruned, graph, file = tmp_path / "pruned", tmp_path / "graph", tmp_path / "pruned.gguf"
    assert run("prune", model_folder, "--heads", "1:0,1,2,3", "--output_dir", pruned) == 0
    assert run("export", pruned, "--format", "onnx", "--output", graph) == 0
    assert run("export", pruned, "--format", "gguf", "--output", file) == 0
    printed = capsys.readouterr().out
    size = sum(path.stat().st_size for path in graph.iterdir())
    assert f"{graph}: {size:,} bytes, weights in float32, outputs differ from torch's" in printed
    assert f"{file}: {file.stat().st_size:,} bytes, weights in float32" in printed
    assert file.read_bytes().startswith(b"GGUF")
    assert sorted(path.name for path in graph.iterdir() if "tokenizer" in path.name) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert {path.stat().st_mode & 0o777 for path in (file, *graph.iterdir())} == {0o644}


@pytest.mark.parametrize("command", ["prune", "measure", "eval", "export"])
def test_help(command: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: python -m sos_deap {command}" in capsys.readouterr().out
