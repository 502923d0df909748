"""The recipe that trains a pruned model, against stock models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from runs import heal
from sos_deap import Evaluator, load, prune
from sos_deap.cli import run_with_exit_status
from tests.conftest import small_llama


@pytest.fixture
def pruned_folder(tmp_path: Path) -> Path:
    """Without two heads and the attention of a layer."""
    folder = tmp_path / "pruned"
    prune(small_llama(), [0, 1, 1, 0] + [0] * 4 + [1] * 4).save_pretrained(folder)
    return folder


def divergence(model: Any, text: Any) -> float:
    """Kullback-Leibler divergence of a model from the dense one per token, by definition."""
    with torch.no_grad():
        dense, found = (one(input_ids=text).logits.double() for one in (small_llama(), model))
    p, q = dense.softmax(-1), found.softmax(-1)
    return float((p * (p / q).log()).sum(-1).mean())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # used by peft
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_pruned_model_is_trained(
    pruned_folder: Path, model_folder: Path, text_file: Path, tmp_path: Path, method: str
) -> None:
    output, numbers = tmp_path / "healed", tmp_path / "numbers.json"
    flags = [f"--model={model_folder}", f"--dataset={text_file}", f"--method={method}"]
    more = ["--steps=20", "--rate=0.01", "--rank=4", "--seqlen=32", "--heldout_samples=4"]
    heal.main([str(pruned_folder), *flags, *more, f"--output={output}", f"--json={numbers}"])
    evaluator: Any = Evaluator.from_pretrained(
        str(model_folder), dataset=str(text_file), heldout_samples=4, seqlen=32, dtype="float32"
    )
    text = evaluator.heldout.sequences.input_ids
    before, after = load(pruned_folder), load(output)
    assert divergence(after, text) < 0.5 * divergence(before, text)
    assert [(name, weight.shape) for name, weight in after.named_parameters()] == [
        (name, weight.shape) for name, weight in before.named_parameters()
    ]
    configs = [json.loads((one / "config.json").read_text()) for one in (pruned_folder, output)]
    assert configs[0] == configs[1]
    found = json.loads(numbers.read_text())["perplexity"]
    for name, model in (("dense", small_llama()), ("pruned", before), ("healed", after)):
        expected = evaluator.metrics_of(model, evaluator.heldout)["perplexity"]
        assert found[name] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output={folder}"], "exists: give another --output"),
        (["--output={folder}/new", "--steps=0"], "steps"),
        (["--output={folder}/new", "--method=half"], "invalid choice: 'half'"),
        (["--output={folder}/new", "--model=no/model"], "no/model"),
        ([], "--output"),
    ],
)
def test_bad_input(pruned_folder: Path, capsys: Any, flags: list[str], message: str) -> None:
    given = [flag.format(folder=pruned_folder) for flag in flags]
    assert run_with_exit_status(lambda: heal.main([str(pruned_folder), *given])) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
