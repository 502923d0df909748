"""The command line from outside: what it writes, and what it refuses."""

from __future__ import annotations

import csv
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from sos_deap import Evaluator, InputError, history, load, masked, prune
from sos_deap.__main__ import main as package_main
from sos_deap.report.formats import measurement
from sos_deap.run import main


@pytest.fixture
def small(model_folder: Path, text_file: Path) -> list[str]:
    """Flags of a run of a second or two."""
    flags = {
        "model": model_folder,
        "dataset": text_file,
        "population_size": 6,
        "generations": 5,
        "samples": 2,
        "heldout_samples": 4,
        "mutation_rate": 0.1,
        "max_sparsity": 0.34,
        "device": "cpu",
    }
    return [f"--{name}={value}" for name, value in flags.items()]


def read(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("timed_models", "drawn_figures")
def test_a_run_leaves_everything_and_a_model_that_loads(
    small: list[str], tmp_path: Path, capsys: Any
) -> None:
    folder = tmp_path / "run"
    assert main([*small, f"--output_dir={folder}"]) == 0
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "chromosome.json",
        "complete.json",
        "config.json",
        "result.json",
        "logbook.csv",
        "measured.json",
        "evaluations.csv",
        "store.sqlite",
        "journal.jsonl",
        "pareto.csv",
        "genes.csv",
        "samples.json",
        "report.html",
        "plots",
        "pruned",
    }
    result, printed = read(folder), capsys.readouterr().out
    dense, best, search, data = (result[k] for k in ("dense", "best", "search", "data"))

    # The pruned model: what the figures state, measured again from the files alone.
    pruned: Any = load(folder / "pruned")
    parameters = sum(p.numel() for p in pruned.parameters())
    assert (best["parameters"], best["bytes"]) == (parameters, 4 * parameters)
    assert best["heads"] == sum(best["chromosome"]) == 12 - round(best["sparsity"] * 12)
    assert best["sparsity"] <= 0.34
    evaluator = Evaluator.from_pretrained(
        str(_flag(small, "model")),
        dataset=_flag(small, "dataset"),
        samples=2,
        heldout_samples=4,
        device="cpu",
    )
    heldout: Any = evaluator.heldout
    assert evaluator.metric_of(pruned, heldout) == pytest.approx(
        best["heldout"]["perplexity"], rel=1e-6
    )
    with masked(evaluator.model, [best["chromosome"]]):
        assert evaluator.metric_of(evaluator.model, heldout) == pytest.approx(
            best["heldout"]["perplexity"], rel=1e-5
        )
    assert evaluator.metric([1] * 12) == pytest.approx(dense["calibration"]["perplexity"], rel=1e-5)
    assert dense["heads"] == 12

    # The search: accounts that add up, and the winner is the best of all that was evaluated.
    evaluations = rows(folder / "evaluations.csv")
    assert search["evaluations"] == 36  # 6 individuals, 5 generations and the initial one
    assert search["evaluations"] == search["forward_evaluations"] + search["cache_hits"]
    assert len(evaluations) == search["forward_evaluations"]
    fitness = {
        row["chromosome"]: -float(row["perplexity"]) * (1 - float(row["sparsity"]))
        for row in evaluations
    }
    assert max(fitness, key=fitness.__getitem__) == "".join(map(str, best["chromosome"]))
    assert search["tokens"] == search["forward_evaluations"] * 2 * 64
    assert search["stopped_by"] == "generations"
    logbook = rows(folder / "logbook.csv")
    assert [int(row["gen"]) for row in logbook] == list(range(6))
    assert sum(int(row["nevals"]) for row in logbook) == 36
    assert all(0 <= float(row["diversity_hamming"]) <= 1 for row in logbook)
    assert float(logbook[-1]["best_metric"]) == pytest.approx(
        best["calibration"]["perplexity"], rel=1e-5
    )
    for table, file in (("generations", logbook), ("evaluations", evaluations)):
        frame = history(folder, table)
        assert list(frame) == list(file[0]) and len(frame) == len(file)
        for name in frame:
            written = [row[name] for row in file]
            same = written if name == "chromosome" else list(map(float, written))
            assert frame[name].tolist() == same
    front = history(str(folder), "front")
    assert "".join(map(str, best["chromosome"])) in set(front["chromosome"])
    assert front["sparsity"].is_monotonic_increasing

    assert data["calibration"]["token_hash"] != data["held-out"]["token_hash"]
    assert data["calibration"]["tokens"] == 2 * 64
    assert json.loads((folder / "config.json").read_text())["population_size"] == 6
    assert result["versions"]["torch"] == torch.__version__
    for shown in (
        "generation 5/5",
        "finished: 5 generations",
        "cache hits",
        "ETA",
        "attention heads",
        str(folder / "pruned"),
    ):
        assert shown in printed


def _flag(flags: list[str], name: str) -> str:
    return next(f.split("=", 1)[1] for f in flags if f.startswith(f"--{name}="))


def test_same_seed_same_result_but_for_times(small: list[str], tmp_path: Path) -> None:
    results = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert main([*small, f"--seed={seed}", f"--output_dir={tmp_path / name}"]) == 0
        result = read(tmp_path / name)
        for key in [key for key in result["search"] if key.startswith("seconds")]:
            del result["search"][key]
        results.append(result)
    assert results[0] == results[1]
    assert results[0]["search"] != results[2]["search"]


@pytest.mark.parametrize(
    "algorithm", ["sos", "sos-repaired", "eaSimple", "eaMuPlusLambda", "eaMuCommaLambda"]
)
def test_every_algorithm_keeps_the_bound(small: list[str], tmp_path: Path, algorithm: str) -> None:
    folder = tmp_path / "run"
    flags = [f"--algorithm={algorithm}", "--mutation_rate=0.3", f"--output_dir={folder}"]
    assert main([*small, *flags]) == 0
    result = read(folder)
    assert result["best"]["sparsity"] <= 0.34
    assert all(float(row["sparsity"]) <= 0.34 for row in rows(folder / "evaluations.csv"))
    if algorithm == "sos":
        assert result["search"]["stopped_by"] == "max_sparsity"


@pytest.mark.parametrize("umask", [0o022, 0o077], ids=oct)
def test_the_files_of_a_run_have_the_mode_of_new_files(
    small: list[str], tmp_path: Path, umask: int
) -> None:
    folder, before = tmp_path / "run", os.umask(umask)
    try:
        assert main([*small, "--generations=1", f"--output_dir={folder}"]) == 0
    finally:
        os.umask(before)
    assert (folder / "pruned" / "model.safetensors").is_file()
    for path in (folder, *folder.rglob("*")):
        new = 0o777 if path.is_dir() else 0o666
        assert path.stat().st_mode & 0o777 == new & ~umask, path


@pytest.mark.usefixtures("timed_models")
def test_the_model_card_and_the_chromosome_of_a_run(small: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert main([*small, "--seed=5", f"--output_dir={folder}"]) == 0
    best, dense = (read(folder)[part] for part in ("best", "dense"))
    card = (folder / "pruned" / "README.md").read_text()
    removed = 12 - best["heads"]
    for fact in (
        f"{removed} of 12 attention heads",
        "| perplexity, held-out | {} | {} | ".format(
            *(measurement(side["heldout"]["perplexity"]) for side in (dense, best))
        ),
        "--seed=5",
        "- seed: 5",
        read(folder)["data"]["held-out"]["token_hash"],
        f"torch {torch.__version__}",
    ):
        assert fact in card
    # The chromosome can be applied again, and gives the same weights.
    again = tmp_path / "again"
    chromosome = f"--chromosome={folder / 'chromosome.json'}"
    model = _flag(small, "model")
    assert package_main(["prune", model, chromosome, f"--output_dir={again}"]) == 0
    weights = [place / "model.safetensors" for place in (folder / "pruned", again)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    (measured,) = json.loads((folder / "measured.json").read_text())
    assert set(measured["models"]) == {"dense", "pruned"} and measured["length"] == 48


def test_groups_in_the_uniform_layout_make_a_stock_model(
    small: list[str], tmp_path: Path, capsys: Any
) -> None:
    folder = tmp_path / "run"
    flags = ["--genes=groups", "--layout=uniform", "--max_sparsity=0.5", "--mutation_rate=0.4"]
    assert main([*small, *flags, f"--output_dir={folder}"]) == 0
    assert "6 key/value groups in 3 layers" in capsys.readouterr().out
    best = read(folder)["best"]
    assert len(best["chromosome"]) == 6
    assert best["heads"] == 2 * sum(best["chromosome"])
    stock = AutoModelForCausalLM.from_pretrained(folder / "pruned")
    assert stock.config.num_attention_heads == best["heads"] / 3
    for row in rows(folder / "evaluations.csv"):
        genes = row["chromosome"]
        assert len({genes[start : start + 2].count("1") for start in (0, 2, 4)}) == 1


@pytest.mark.parametrize(
    ("genes", "flags"),
    [
        ("heads+channels", ["--algorithm=sos-repaired", "--mutation_rate=0.2"]),
        ("heads+channels", ["--algorithm=evopress,generations=3", "--max_evaluations=30"]),
        ("attention+ffn", ["--algorithm=greedy"]),
        ("layers", ["--algorithm=random", "--max_sparsity=0.6"]),
        ("groups+channels", ["--algorithm=swap", "--sparsity_of=operations"]),
    ],
)
@pytest.mark.usefixtures("drawn_figures")
def test_genes_of_every_kind(
    small: list[str], tmp_path: Path, genes: str, flags: list[str]
) -> None:
    folder = tmp_path / "run"
    kinds = [f"--genes={genes}", "--channel_blocks=4", "--max_evaluations=30"]
    assert main([*small, *kinds, *flags, f"--output_dir={folder}"]) == 0
    result = read(folder)
    best, search = result["best"], result["search"]
    assert search["genes"] == genes
    assert sum(part["size"] for part in search["parts"]) == len(best["chromosome"])
    assert 0 < best["sparsity"] <= (0.6 if genes == "layers" else 0.34)
    if search["sparsity_of"] == "parameters":
        share = 1 - best["parameters"] / result["dense"]["parameters"]
        assert best["sparsity"] == pytest.approx(share)
    again = tmp_path / "again"
    chromosome = f"--chromosome={folder / 'chromosome.json'}"
    assert package_main(["prune", _flag(small, "model"), chromosome, f"--output_dir={again}"]) == 0
    weights = [place / "model.safetensors" for place in (folder / "pruned", again)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_the_zeroed_layout_keeps_the_size(small: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert main([*small, "--layout=zeroed", f"--output_dir={folder}"]) == 0
    best, dense = (read(folder)[part] for part in ("best", "dense"))
    assert best["heads"] < dense["heads"] and best["parameters"] == dense["parameters"]
    stock: Any = AutoModelForCausalLM.from_pretrained(folder / "pruned")
    evaluator = Evaluator.from_pretrained(
        _flag(small, "model"),
        dataset=_flag(small, "dataset"),
        samples=2,
        heldout_samples=4,
        device="cpu",
    )
    assert evaluator.heldout is not None
    heldout = evaluator.metric_of(stock, evaluator.heldout)
    assert heldout == pytest.approx(best["heldout"]["perplexity"], rel=1e-6)


def test_a_trace_and_a_store_that_another_run_reads(small: list[str], tmp_path: Path) -> None:
    shared = f"--store={tmp_path / 'shared.sqlite'}"
    for name in ("a", "b"):
        assert main([*small, shared, "--profile", f"--output_dir={tmp_path / name}"]) == 0
        assert not (tmp_path / name / "store.sqlite").exists()
    trace = json.loads((tmp_path / "a" / "trace.json").read_text())
    assert any("aten::" in str(event.get("name")) for event in trace["traceEvents"])
    first, second = (read(tmp_path / name) for name in ("a", "b"))
    assert first["best"] == second["best"]
    computed = first["search"]["forward_evaluations"]
    assert second["search"]["store_hits"] == computed > 0
    assert second["search"]["forward_evaluations"] == 0 == second["search"]["tokens"]


def test_a_run_that_removes_nothing_states_it(
    small: list[str], tmp_path: Path, capsys: Any
) -> None:
    flags = ["--generations=0", "--initial_sparsity=0", f"--output_dir={tmp_path / 'run'}"]
    assert main([*small, *flags]) == 0
    assert "nothing was removed, since no smaller sub-model" in capsys.readouterr().out


@pytest.mark.usefixtures("timed_models")
def test_short_sequences_are_measured_too(small: list[str], tmp_path: Path) -> None:
    for seqlen in (2, 3, 20):
        folder = tmp_path / str(seqlen)
        flags = ["--generations=1", f"--seqlen={seqlen}", f"--output_dir={folder}"]
        assert main([*small, *flags]) == 0
        assert (folder / "measured.json").is_file()


def test_a_configuration_file_and_flags_over_it(small: list[str], tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    lines = [flag.removeprefix("--").replace("=", ": ", 1) for flag in small]
    lines = [line for line in lines if not line.startswith("generations")]
    settings.write_text("\n".join([*lines, "threshold: null", "generations: 1"][1:] + lines[:1]))
    folder = tmp_path / "run"
    assert main([str(settings), "--generations=2", f"--output_dir={folder}"]) == 0
    assert read(folder)["search"]["generations"] == 2
    config = folder / "config.json"
    again = json.loads(config.read_text()) | {"output_dir": str(tmp_path / "again")}
    (tmp_path / "again.json").write_text(json.dumps(again))
    assert main([str(tmp_path / "again.json")]) == 0
    assert read(tmp_path / "again")["best"] == read(folder)["best"]


def test_the_threshold_stops(small: list[str], tmp_path: Path) -> None:
    assert main([*small, "--threshold=-1e9", f"--output_dir={tmp_path / 'run'}"]) == 0
    search = read(tmp_path / "run")["search"]
    assert (search["stopped_by"], search["generations"]) == ("threshold", 0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model=./nowhere"], "model folder ./nowhere does not exist"),
        (["--dataset=missing.txt"], "missing.txt does not exist"),
        (["--dataset={empty}"], "is empty"),
        (["--dataset={short}"], "fewer than one sequence of 64"),
        (["--seqlen=65"], "beyond the model's 64"),
        (["--max_sparsity=1"], "max_sparsity is 1.0: a sparsity lies in [0, 1)"),
        (["--max_sparsity=nan"], "max_sparsity is nan"),
        (["--initial_sparsity=-0.1"], "initial_sparsity is -0.1"),
        (["--initial_sparsity=0.34"], "initial_sparsity 0.34 is not below max_sparsity 0.34"),
        (["--population_size=1"], "population is 1: give at least 2"),
        (["--generations=-1"], "generations is -1"),
        (["--mutation_rate=2"], "mutation_rate is 2.0"),
        (["--crossover_rate=-1"], "crossover_rate is -1.0"),
        (["--tournament_size=0"], "tournament_size is 0"),
        (["--seed=-1"], "seed is -1"),
        (["--samples=0"], "samples is 0"),
        (["--batch_tokens=0"], "batch_tokens is 0"),
        (["--batching=share"], "did you mean 'shared'"),
        (["--reuse_memory=-1"], "reuse_memory is -1"),
        (["--algorithm=sos-repared"], "did you mean 'sos-repaired'"),
        (["--objective=papr"], "did you mean 'paper'"),
        (["--task=perplexty"], "did you mean 'perplexity'"),
        (["--device=cuda:77"], "device 'cuda:77' is not available"),
        (["--dtype=int8"], "unknown dtype 'int8'"),
        (["--output_dir={full}"], "holds a run already"),
        (["--output_dir={notempty}"], "is not an empty folder"),
        (["--output_dir={empty}"], "is not an empty folder"),
        (["--density=parameters"], "error: --density is now --sparsity_of\n"),
        (["--enough-sparsity", "0.2"], "error: --enough_sparsity is now --target_sparsity\n"),
        (["--elite=3"], "error: --elite is now --finalists\n"),
        (["--fidelity=racing"], "error: --fidelity was removed together with racing"),
        (["--quiet=maybe"], "--quiet: invalid bool value: 'maybe'"),
        (["--generation=5"], "unknown flag '--generation': did you mean '--generations'? --help"),
        (["--max_sparcity", "0.2"], "did you mean '--max_sparsity'? --help lists all\n"),
        (["--zzz"], "error: unknown flag '--zzz': --help lists all\n"),
        (["--generations=ten"], "--generations: invalid int value: 'ten'"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    small: list[str], tmp_path: Path, flags: list[str], message: str, capsys: Any
) -> None:
    places = {name: tmp_path / name for name in ("full", "notempty", "empty", "short")}
    for folder, file in (("full", "config.json"), ("notempty", "thesis.tex")):
        places[folder].mkdir()
        (places[folder] / file).write_text("mine")
    for name, text in (("empty", ""), ("short", "one two")):
        places[name] = places[name].with_suffix(".txt")
        places[name].write_text(text)
    before = sorted(tmp_path.rglob("*"))
    flags = [flag.format(**places) for flag in flags]
    if not any(flag.startswith("--output_dir") for flag in flags):
        flags.append(f"--output_dir={tmp_path / 'run'}")
    assert main([*small, *flags]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert sorted(tmp_path.rglob("*")) == before


def test_tables_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "evaluations.csv").write_text("")
    (tmp_path / "pareto.csv").mkdir()
    for given, message in (
        ((tmp_path,), "is not the folder of a complete run: logbook.csv is missing"),
        ((tmp_path, "evaluations"), "is damaged"),
        ((tmp_path, "front"), "pareto.csv cannot be read"),
        ((tmp_path, "fronts"), "unknown table 'fronts': did you mean 'front'"),
        ((tmp_path / "none",), "logbook.csv is missing"),
        ((3,), "the run is a int: give a run folder"),
    ):
        with pytest.raises(InputError, match=message):
            history(*given)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("generation: 3", "did you mean 'generations'? python -m sos_deap.run --help lists all\n"),
        ("density: heads", "settings.yaml: --density is now --sparsity_of"),
        ("- 1", "holds no settings"),
        ("a: [", "cannot be read"),
        (None, "does not exist"),
    ],
)
def test_bad_configuration_files(
    tmp_path: Path, text: str | None, message: str, capsys: Any
) -> None:
    path = tmp_path / "settings.yaml"
    if text is not None:
        path.write_text(text)
    assert main([str(path)]) == 2
    assert message in capsys.readouterr().err


def test_a_model_that_computes_nan_is_refused_before_the_search(
    small: list[str], tmp_path: Path, capsys: Any
) -> None:
    from tests.conftest import small_llama

    model = small_llama()
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    folder = Path(_flag(small, "model"))
    model.save_pretrained(tmp_path / "nan")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "nan" / name).write_text((folder / name).read_text())
    assert main([*small, f"--model={tmp_path / 'nan'}", f"--output_dir={tmp_path / 'run'}"]) == 2
    assert "perplexity (calibration) is nan" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_search_in_low_precision_does_not_round_the_weights(
    small: list[str], tmp_path: Path
) -> None:
    flags = ["--dtype=bfloat16", "--generations=1", f"--output_dir={tmp_path / 'run'}"]
    assert main([*small, *flags]) == 0
    result, pruned = read(tmp_path / "run"), load(tmp_path / "run" / "pruned")
    assert result["dtype"] == "bfloat16"
    assert result["best"]["bytes"] == 4 * result["best"]["parameters"]
    stored: Any = AutoModelForCausalLM.from_pretrained(_flag(small, "model"))
    expected = prune(stored, result["best"]["chromosome"]).state_dict()
    assert all(torch.equal(expected[name], w) for name, w in pruned.state_dict().items())


def test_gpt2_from_the_command_line(small: list[str], tmp_path: Path) -> None:
    config = GPT2Config(n_layer=3, n_head=4, n_embd=32, vocab_size=2048, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    for path in Path(_flag(small, "model")).glob("tokenizer*"):
        (tmp_path / "gpt2" / path.name).write_text(path.read_text())
    flags = [f"--model={tmp_path / 'gpt2'}", f"--output_dir={tmp_path / 'run'}"]
    assert main([*small, *flags]) == 0
    best = read(tmp_path / "run")["best"]
    pruned: Any = load(tmp_path / "run" / "pruned")
    assert pruned.num_parameters() == best["parameters"]
    # A head of width 8 in a hidden size of 32: q, k, v and output weights, and q, k, v biases.
    assert read(tmp_path / "run")["dense"]["parameters"] - best["parameters"] == (
        (12 - best["heads"]) * (4 * 8 * 32 + 3 * 8)
    )


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (OSError(28, "No space left on device"), 1, "No space left"),
        (KeyboardInterrupt(), 130, "inter"),
    ],
)
def test_a_run_that_fails_at_its_end_reports_it(
    small: list[str],
    tmp_path: Path,
    monkeypatch: Any,
    capsys: Any,
    error: Any,
    status: int,
    message: str,
) -> None:
    def fail(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr("sos_deap.report.tables.write_logbook", fail)
    assert main([*small, f"--output_dir={tmp_path / 'run'}"]) == status
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "result.json").exists()
    assert rows(tmp_path / "run" / "evaluations.csv")  # what was computed is kept


def test_the_command_line_of_the_package(capsys: Any) -> None:
    assert package_main([]) == 0
    assert "run " in capsys.readouterr().out
    assert package_main(["rnu"]) == 2
    assert "did you mean 'run'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        package_main(["run", "--help"])
    assert stop.value.code == 0
    assert "--max_sparsity" in capsys.readouterr().out
