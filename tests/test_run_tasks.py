"""Every task and objective from the command line, and what each refuses."""

from __future__ import annotations

import csv
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from sos_deap import Evaluator, load
from sos_deap.config import parse
from sos_deap.models.sources import BUILTIN
from sos_deap.run import main
from sos_deap.tasks.registry import resolved_task
from tests.tiny import build

WORDS = ["tree", "list", "value", "the", "of", "module", "class", "error"]
KINDS = {
    "classifier": ("bert", AutoModelForSequenceClassification, {"num_labels": 3}),
    "labels": ("distilbert", AutoModelForSequenceClassification, {"num_labels": 3}),
    "masked": ("roberta", AutoModelForMaskedLM, {}),
    "seq2seq": ("bart", AutoModelForSeq2SeqLM, {}),
    "causal": ("llama", AutoModelForCausalLM, {"num_key_value_heads": 2}),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny random model of each kind, with a tokenizer that has a mask token."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = AutoTokenizer.from_pretrained(BUILTIN["builtin:tiny"])
    tokenizer.add_special_tokens({"mask_token": "<|mask|>"})
    tokenizer.model_max_length = 60
    for name, (family, auto, settings) in KINDS.items():
        model = build(family, auto=auto, vocab_size=2049, **settings)
        if name == "causal":
            model.config.pad_token_id = None  # as Llama's
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return {name: root / name for name in KINDS}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows that serve every task, by the usual names of columns."""
    path, rng = tmp_path_factory.mktemp("data") / "rows.jsonl", random.Random(2)
    rows = [
        {
            "text": " ".join(rng.choices(WORDS, k=rng.randint(5, 25))),
            "summary": " ".join(rng.choices(WORDS, k=5)),
            "label": rng.randrange(3),
            **{f"is_{word}": rng.randrange(2) for word in ("a", "b", "c")},
        }
        for _ in range(24)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def flags(model: Path, data: Path, output: Path, *more: str) -> list[str]:
    settings = {
        "model": model,
        "dataset": data,
        "output_dir": output,
        "population_size": 4,
        "generations": 2,
        "samples": 3,
        "mutation_rate": 0.1,
        "max_sparsity": 0.4,
        "device": "cpu",
    }
    return [f"--{name}={value}" for name, value in settings.items()] + list(more)


@pytest.mark.parametrize(
    ("task", "model", "more", "metrics"),
    [
        ("perplexity", "causal", ["--seqlen=16"], ["perplexity"]),
        ("perplexity", "masked", ["--seqlen=8"], ["pseudo_perplexity"]),
        ("kl", "causal", ["--seqlen=16", "--objective=kl", "--top_k=8"], ["kl", "perplexity"]),
        ("accuracy", "classifier", [], ["accuracy"]),
        (
            "multilabel",
            "labels",
            ["--metric=jaccard", "--label_threshold=0.45"],
            ["jaccard", "micro_f1", "macro_f1", "subset_accuracy"],
        ),
        ("summarization", "seq2seq", ["--max_new_tokens=6"], ["rougeL_f1", "bleu"]),
        (
            "summarization",
            "causal",
            ["--max_new_tokens=6", "--metric=bleu", "--prompt=Sum up: {text} ="],
            ["bleu", "rouge1_precision"],
        ),
    ],
)
def test_every_task(
    models: dict[str, Path],
    data: Path,
    tmp_path: Path,
    task: str,
    model: str,
    more: list[str],
    metrics: list[str],
    capsys: Any,
) -> None:
    folder = tmp_path / "run"
    assert main(flags(models[model], data, folder, f"--task={task}", *more)) == 0
    shown, result = capsys.readouterr().out, json.loads((folder / "result.json").read_text())
    assert next(iter(result["best"]["heldout"])) == metrics[0]
    for metric in metrics:
        assert f"{metric}, held-out" in shown
        assert metric in result["dense"]["calibration"]
    assert set(result["data"]) == {"calibration", "held-out"}
    # The pruned folder gives the held-out figures again, without masks.
    settings = dict(flag.removeprefix("--").split("=", 1) for flag in more)
    objective = settings.pop("objective", "paper")
    numbers: dict[str, Any] = {
        name: float(value) if "." in value else int(value) if value.isdigit() else value
        for name, value in settings.items()
    }
    evaluator = Evaluator.from_pretrained(
        str(models[model]),
        dataset=str(data),
        task=task,
        objective=objective,
        device="cpu",
        samples=3,
        **numbers,
    )
    assert evaluator.heldout is not None
    again = evaluator.metrics_of(load(folder / "pruned"), evaluator.heldout)
    assert again == pytest.approx(result["best"]["heldout"], rel=1e-5, abs=1e-6)


FITTING = {
    "classifier": "accuracy",
    "labels": "multilabel",
    "masked": "perplexity",
    "seq2seq": "summarization",
    "causal": "perplexity",
}


@pytest.mark.parametrize(("model", "task"), FITTING.items())
def test_the_task_fits_the_model(
    models: dict[str, Path], tmp_path: Path, model: str, task: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(models[model], folder)
    if model == "labels":
        config = json.loads((folder / "config.json").read_text())
        config["problem_type"] = "multi_label_classification"
        (folder / "config.json").write_text(json.dumps(config))
    assert resolved_task("auto", str(folder)) == task
    assert resolved_task("kl", str(folder)) == "kl"
    config, settings = parse(["best", f"--model={folder}"])
    wanted: dict[str, Any] = {
        "causal": ("kl", None, 128),
        "classifier": ("accuracy", "kl", 256),
        "labels": ("multilabel", "kl", 256),
        "seq2seq": ("summarization", "kl", None),
    }
    found = config.task, settings.metric, settings.samples
    assert found == wanted.get(model, (task, None, None))
    on_heads = config.algorithm == "sweep,prior=wanda"
    assert on_heads == (config.genes == "heads") == (model in ("masked", "seq2seq"))
    config, settings = parse(["best", f"--model={folder}", "--task=accuracy", "--samples=5"])
    assert (config.task, settings.metric, settings.samples) == ("accuracy", "kl", 5)


@pytest.mark.parametrize(
    ("model", "task", "metric", "more"),
    [
        ("classifier", "accuracy", "kl", []),
        ("labels", "multilabel", "kl", ["--task=multilabel"]),
        ("seq2seq", "summarization", "kl", ["--max_new_tokens=2"]),
    ],
)
def test_the_best_search_of_other_tasks(
    models: dict[str, Path],
    data: Path,
    tmp_path: Path,
    model: str,
    task: str,
    metric: str,
    more: list[str],
) -> None:
    given = flags(models[model], data, tmp_path / "run", "--max_evaluations=4", *more)
    assert main(["best", *given]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert next(iter(result["best"]["heldout"])) == metric
    assert f"--task={task}" in result["command"]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["task"] == task


def test_a_decoder_that_classifies_without_a_padding_token_of_its_own(
    models: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    """Also where the weights are read once more, since the search rounded them."""
    model = build("llama", auto=AutoModelForSequenceClassification, vocab_size=2049, num_labels=3)
    model.config.pad_token_id = None
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(models["causal"]).save_pretrained(tmp_path / "model")
    more = ["--task=accuracy", "--dtype=bfloat16"]
    assert main(flags(tmp_path / "model", data, tmp_path / "run", *more)) == 0
    assert load(tmp_path / "run" / "pruned").config.pad_token_id == 0


def test_a_metric_of_the_user_s(
    models: dict[str, Path], data: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("user_metric.py").write_text(
        "def half_up(model, tokenizer, rows):\n"
        "    ids = tokenizer(rows[0]['text'], return_tensors='pt')\n"
        "    return model(**ids).logits.softmax(-1)[0, 0]\n"
    )
    task = "--task=user_metric:half_up"
    assert main(flags(models["classifier"], data, tmp_path / "run", task)) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert 0 < result["best"]["heldout"]["half_up"] < 1
    assert result["data"]["held-out"]["split"] == "second half of rows.jsonl"
    assert result["data"]["held-out"]["rows"] == 12


def test_text_of_the_model_s_own(models: dict[str, Path], tmp_path: Path) -> None:
    more = ["--seqlen=12", "--temperature=0.9", "--task=kl"]
    dataset = Path("builtin:self")
    assert main(flags(models["causal"], dataset, tmp_path / "run", *more)) == 0
    data = json.loads((tmp_path / "run" / "result.json").read_text())["data"]
    assert data["calibration"]["sequences"] == 3 and data["held-out"]["sequences"] == 12
    assert data["held-out"]["split"].startswith("builtin:self held-out, temperature 0.9")


def test_pareto_leaves_a_front(tmp_path: Path) -> None:
    more = ["--objective=pareto", "--algorithm=eaMuPlusLambda", "--seqlen=32"]
    builtin = Path("builtin:tiny"), Path("builtin:pydoc")
    assert main(flags(*builtin, tmp_path / "run", *more, "--heldout_samples=2")) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    with (tmp_path / "run" / "evaluations.csv").open() as file:
        points = [(float(r["perplexity"]), float(r["sparsity"])) for r in csv.DictReader(file)]
    with (tmp_path / "run" / "pareto.csv").open() as file:
        front = list(csv.DictReader(file))
    better = [
        p for p in points if not any(q != p and q[0] <= p[0] and q[1] >= p[1] for q in points)
    ]
    shown = {(float(r["perplexity"]), float(r["sparsity"])) for r in front}
    assert shown == set(better) and len(front) > 1
    chosen = "".join(map(str, result["best"]["chromosome"]))
    cost = {r["chromosome"]: float(r["perplexity"]) * (1 - float(r["sparsity"])) for r in front}
    assert cost[chosen] == min(cost.values())


def test_sparsity_in_parameters(models: dict[str, Path], data: Path, tmp_path: Path) -> None:
    more = [
        "--sparsity_of=parameters",
        "--max_sparsity=0.02",
        "--initial_sparsity=0.3",
        "--seqlen=16",
    ]
    assert main(flags(models["causal"], data, tmp_path / "run", *more)) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    removed = 1 - result["best"]["parameters"] / result["dense"]["parameters"]
    assert result["best"]["sparsity"] == pytest.approx(removed)
    assert 0 < removed <= 0.02
    with (tmp_path / "run" / "evaluations.csv").open() as file:
        assert all(float(row["sparsity"]) <= 0.02 for row in csv.DictReader(file))


@pytest.mark.parametrize(
    ("model", "more", "message"),
    [
        (
            "causal",
            ["--text_column=body"],
            "unknown text_column of first half of rows.jsonl 'b",
        ),
        (
            "classifier",
            ["--task=accuracy", "--label_column=is_x"],
            "known are is_a, is_b, is_c, ",
        ),
        ("classifier", ["--task=accuracy", "--text_column=label"], "in row 0 of its column label"),
        (
            "classifier",
            ["--task=accuracy", "--dataset={beyond}"],
            "has the label 3 in row 0 of its column",
        ),
        ("classifier", ["--task=accuracy", "--dataset={plain}"], "no label column: expected one"),
        ("seq2seq", ["--task=summarization", "--dataset={plain}"], "no summary column: expected"),
        (
            "causal",
            ["--task=accuracy"],
            "is a LlamaForCausalLM, without a classifier",
        ),
        (
            "masked",
            ["--task=summarization"],
            "is a roberta encoder and does not generate text",
        ),
        ("masked", ["--task=kl"], "a roberta encoder has none: use the task perplexity"),
        (
            "seq2seq",
            ["--task=perplexity"],
            "is a bart encoder-decoder: this task needs a causal language model",
        ),
        ("masked", ["--dataset=builtin:self"], "builtin:self needs a model that writes"),
        (
            "classifier",
            ["--task=accuracy", "--dataset=builtin:self"],
            "builtin:self is only for kl, perplexity",
        ),
        ("causal", ["--dataset={latin}"], "is not UTF-8"),
        ("causal", ["--dataset={empty}"], "is empty"),
        ("causal", ["--heldout_split=test"], "unknown heldout split 'test': known are train"),
        ("causal", ["--metric=kl"], "unknown metric of this task 'kl': known are perplexity"),
        ("causal", ["--objective=pareto"], "the algorithm sos-repaired is for one fitness value"),
        ("causal", ["--tradeoff_weight=2"], "tradeoff_weight is only for the objective tradeoff"),
        ("causal", ["--sparsity_of=head"], "unknown sparsity_of 'head': known are genes"),
        ("causal", ["--task=summarization", "--prompt=x"], "write {text} where the text goes"),
        ("causal", ["--task=summarization", "--max_new_tokens=59"], "no text fits into 1 tokens"),
        ("causal", ["--task=summarization", "--max_new_tokens=0"], "max_new_tokens is 0"),
        ("causal", ["--label_threshold=1"], "label_threshold is 1.0"),
        ("causal", ["--temperature=0"], "temperature is 0.0"),
        ("causal", ["--task=nothing:here"], "cannot import nothing of nothing:here: No module"),
        (
            "causal",
            ["--task=json:dumps"],
            "the metric dumps cannot be called with a",
        ),
        (
            "seq2seq",
            ["--task=summarization", "--bertscore_model={causal}"],
            "is a llama model: give an encoder such as RoBERTa",
        ),
    ],
)
def test_bad_input_is_one_line_before_any_search(
    models: dict[str, Path],
    data: Path,
    tmp_path: Path,
    model: str,
    more: list[str],
    message: str,
    capsys: Any,
) -> None:
    places = {name: tmp_path / f"{name}.jsonl" for name in ("beyond", "plain", "latin", "empty")}
    places["beyond"].write_text('{"text": "a", "label": 3}\n' * 2 + '{"text": "b", "label": 1}\n')
    places["plain"].write_text('{"text": "a"}\n{"text": "b"}\n')
    places["latin"].write_bytes(b'{"text": "caf\xe9"}\n')
    places["empty"].write_bytes(b"")
    before = sorted(tmp_path.rglob("*"))
    chosen = [flag.format(**places, **models, text="{text}") for flag in more]
    assert main(flags(models[model], data, tmp_path / "run", *chosen)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("task", "model", "how"),
    [
        ("accuracy", "classifier", "after"),
        ("accuracy", "classifier", "during"),
        ("multilabel", "labels", "bias"),
        ("perplexity", "masked", "after"),
        ("summarization", "causal", "after"),
        ("summarization", "seq2seq", "during"),
    ],
)
def test_refits_of_other_tasks(
    models: dict[str, Path], data: Path, tmp_path: Path, task: str, model: str, how: str
) -> None:
    """A task that generates text is refitted on the summaries of the dense model."""
    more = [f"--task={task}", f"--refit={how}", "--refit_samples=5", "--seqlen=20"]
    more += ["--genes=heads+channels", "--mutation_rate=0.3", "--max_new_tokens=6"]
    assert main(flags(models[model], data, tmp_path / "run", *more)) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    refit, described = result["refit"], result["data"]["refit"]
    assert described.get("examples", described.get("sequences")) == 5
    assert 0 < refit["tokens"] <= 5 * 20
    assert all(site["error"] < site["error_before"] for site in refit["sites"] if site["damping"])


def test_summaries_without_examples_left_have_no_refit(
    models: dict[str, Path], data: Path, tmp_path: Path, capsys: Any
) -> None:
    more = ["--task=summarization", "--refit=after", "--samples=12", "--max_new_tokens=6"]
    assert main(flags(models["causal"], data, tmp_path / "run", *more)) == 2
    assert "this task generates text: leave the refit out" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model", ["causal", "seq2seq"])
def test_summaries_by_divergence(
    models: dict[str, Path], data: Path, tmp_path: Path, model: str, capsys: Any
) -> None:
    more = ["--task=summarization", "--metric=kl", "--max_new_tokens=6", "--max_loss=50"]
    more += ["--algorithm=nsga2", "--validation_samples=4", "--refit=after", "--refit_samples=5"]
    assert main(flags(models[model], data, tmp_path / "run", *more)) == 0
    shown = capsys.readouterr().out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert list(result["dense"]["calibration"]) == ["kl"]
    assert list(result["dense"]["heldout"])[:2] == ["kl", "rougeL_f1"]
    assert result["dense"]["heldout"]["kl"] == 0 < result["best"]["heldout"]["kl"]
    assert result["bound"]["metric"] == "rougeL_f1"
    assert result["change"]["heldout"]["rougeL_f1"]["kind"] == "points"
    assert "kl, calibration" in shown and "rougeL_f1, held-out, no refit" in shown
    # The pruned folder gives the held-out figures again.
    evaluator = Evaluator.from_pretrained(
        str(models[model]),
        dataset=str(data),
        task="summarization",
        metric="kl",
        device="cpu",
        samples=3,
        max_new_tokens=6,
    )
    assert evaluator.heldout is not None
    again = evaluator.metrics_of(load(tmp_path / "run" / "pruned"), evaluator.heldout)
    assert again == pytest.approx(result["best"]["heldout"], rel=1e-4, abs=1e-6)
    samples = json.loads((tmp_path / "run" / "samples.json").read_text())
    assert {"prompt", "text", "dense", "pruned"} <= set(samples[0])
