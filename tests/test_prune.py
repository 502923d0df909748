"""Folders that `load` must refuse; what it must get right is in test_families.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from sos_deap import InputError, load, prune
from tests.conftest import GENES, small_llama


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    genes = [1, 0, 1, 1] + [0] * 4 + [1] * (GENES - 8)
    prune(small_llama(), genes).save_pretrained(tmp_path / "pruned")
    return tmp_path / "pruned"


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def test_the_config_names_the_kept_heads(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["kept_heads"] == [[0, 2, 3], [], [0, 1, 2, 3]]
    assert load(folder).config.kept_heads == config["kept_heads"]
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".json", ".safetensors"]


def test_the_stock_class_does_not_load_it_silently(folder: Path) -> None:
    with pytest.raises(RuntimeError, match="size mismatch|ignore_mismatched_sizes"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_a_foreign_or_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no config.json"):
        load(tmp_path / "nowhere")
    small_llama().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="sos_deap did not write it"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kept_heads": [[0, 2, 3], []]}, "for each of the model's 3 layers"),
        ({"kept_heads": [[0, 2, 4], [], [0, 1, 2, 3]]}, "rising order"),
        ({"kept_heads": [[3, 2, 0], [], [0, 1, 2, 3]]}, "rising order"),
        ({"kept_heads": [[0, "2", 3], [], [0, 1, 2, 3]]}, "rising order"),
        ({"kept_heads": 7}, "for each of the model's 3 layers"),
        ({"kept_heads": [[0, 2], [], [0, 1, 2, 3]]}, "cannot load|do not fit"),
        ({"architectures": ["os"]}, "names the model class 'os'"),
        ({"architectures": [["LlamaForCausalLM"]]}, "names the model class"),
        ({"architectures": 3}, "damaged"),
        ({"num_hidden_layers": 4, "kept_heads": [[0, 2, 3], [], [0, 1], [0]]}, "do not fit|cannot"),
        ({"hidden_size": "wide"}, "cannot load"),
    ],
)
def test_a_damaged_config(folder: Path, changes: dict[str, Any], message: str) -> None:
    rewrite(folder, **changes)
    with pytest.raises(InputError, match=message):
        load(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe", b'{"kept_heads": [[0]]}'])
def test_a_config_that_is_none(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(InputError, match="config.json"):
        load(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, -10])
def test_truncated_weights(folder: Path, keep: int) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(InputError, match="cannot load"):
        load(folder)


def test_missing_weights_are_never_made_up(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(InputError, match=r"1 missing keys, model.layers.0.mlp.up_proj.weight"):
        load(folder)
    weights.unlink()
    with pytest.raises(InputError, match="cannot load"):
        load(folder)


def test_pickled_weights_are_not_read(folder: Path) -> None:
    import torch

    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot load"):
        load(folder)
