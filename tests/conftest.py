"""Small models and data: random weights, since behaviour is what is tested here."""

from __future__ import annotations

import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported
os.environ["OMP_NUM_THREADS"] = "1"  # more threads only wait for each other on models this small
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="datasets-")  # not the user's

import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from sos_deap import Evaluator
from sos_deap.files.atomic import make_subfolder, whole_file
from sos_deap.models.sources import BUILTIN
from sos_deap.tasks.data.sequences import Sequences
from sos_deap.tasks.language import Perplexity
from sos_deap.tasks.samples import samples
from tests.processes import SERVER

GENES = 12
_BLANK = "<svg></svg>"


@pytest.fixture(autouse=True)
def seeded() -> None:
    random.seed(1)
    torch.manual_seed(1)


@pytest.fixture(autouse=True)
def float32_on_every_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute in float32, so that exact comparisons hold on every processor."""
    monkeypatch.setattr("sos_deap.models.loading.cpu_dtype", lambda: torch.float32)


@pytest.fixture
def timed_models() -> None:
    """In a test with this fixture, runs time their models."""


@pytest.fixture
def drawn_figures() -> None:
    """In a test with this fixture, runs draw their figures."""


@pytest.fixture(autouse=True)
def brief_runs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes most of the time of a short run, unless a test asks for it."""
    # The fewest rounds, since it does not matter here how fast models are; and short samples.
    monkeypatch.setattr("sos_deap.finish.TIMED", (0.0, 0.0))
    monkeypatch.setattr("sos_deap.artifacts.samples", partial(samples, new_tokens=2))
    if "timed_models" not in request.fixturenames:
        monkeypatch.setattr("sos_deap.finish.measured", lambda models, seqlen, seconds: [])
    if "drawn_figures" not in request.fixturenames:
        monkeypatch.setattr("sos_deap.report.page.save", _save_blank)
        monkeypatch.setattr("sos_deap.report.page.on_page", lambda name, draw: _BLANK)


@pytest.fixture
def copied_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start workers of the engine ``process`` as copies of a process that has torch imported."""
    monkeypatch.setattr("sos_deap.engines.process.get_context", lambda _: SERVER)


def _save_blank(folder: Path, name: str, draw: object) -> str:
    make_subfolder(folder)
    with whole_file(folder / f"{name}.png") as part:
        Image.new("RGB", (1, 1)).save(part, "png")
    with whole_file(folder / f"{name}.svg") as part:
        part.write_text(_BLANK)
    return _BLANK


def small_llama(**settings: Any) -> Any:
    """A random Llama of 3 layers x 4 heads whose heads all matter.

    :param settings: further values of its config.
    """
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
        **settings,
    )
    model: Any = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture
def evaluator() -> Evaluator:
    """On 3 random sequences of 16 tokens; a forward pass holds 2 sub-models."""
    task = Perplexity(Sequences("random", torch.randint(0, 2048, (3, 16))))
    return Evaluator(small_llama(), task, batch_tokens=6 * 16)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small Llama with the embedded tokenizer, as a user's local model."""
    folder = tmp_path_factory.mktemp("model")
    small_llama().save_pretrained(folder)
    AutoTokenizer.from_pretrained(BUILTIN["builtin:tiny"]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    words = random.Random(2).choices(["tree", "list", "value", "the", "of", "module"], k=4000)
    path.write_text("\n\n".join(" ".join(words[i : i + 40]) for i in range(0, 4000, 40)))
    return path


@pytest.fixture
def refit_flags(model_folder: Path, text_file: Path, tmp_path: Path) -> list[str]:
    """Flags of a run of a second, on two data sets."""
    other = tmp_path / "other.txt"
    words = random.Random(4).choices(["to", "be", "or", "not", "that", "is"], k=2000)
    other.write_text("\n\n".join(" ".join(words[i : i + 40]) for i in range(0, 2000, 40)))
    given = {
        "model": model_folder,
        "dataset": text_file,
        "probe_dataset": other,
        "genes": "heads+channels",
        "channel_blocks": 4,
        "population_size": 4,
        "generations": 3,
        "mutation_rate": 0.3,
        "samples": 2,
        "heldout_samples": 4,
        "seqlen": 32,
        "device": "cpu",
    }
    return [f"--{name}={value}" for name, value in given.items()]
