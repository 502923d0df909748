"""Checkpoints as they are published: sharded, of older names, without a head, with LoRA merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from sos_deap import InputError, gene_map, load, masked, prune
from tests.rows import gene_map_of, mixed
from tests.tiny import assert_close, build, inputs, output


def check(model: Any, kinds: str, folder: Path, **how: Any) -> Path:
    """Prune a model at random, save it and load it again; return the folder."""
    genes, batch = gene_map_of(model, kinds), inputs(model)
    chromosome = mixed(genes, 1)
    with masked(model, [chromosome], genes):
        expected = output(model, batch)
    pruned = prune(model, chromosome, genes)
    assert_close(output(pruned, batch), expected)
    pruned.save_pretrained(folder, **how)
    assert torch.equal(output(load(folder), batch), output(pruned, batch))
    return folder


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "bloom"])
def test_models_without_a_task_head(family: str, tmp_path: Path) -> None:
    check(build(family, auto=AutoModel), "heads+channels", tmp_path)


@pytest.mark.parametrize("tied", [True, False])
def test_shards_of_tied_and_untied_models(tied: bool, tmp_path: Path) -> None:
    model = build("qwen2", 2, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "dense", max_shard_size="20KB")
    assert len(list((tmp_path / "dense").glob("*.safetensors"))) > 2
    stored, batch = load(tmp_path / "dense"), inputs(model)
    assert_close(output(stored, batch), output(model, batch))
    folder = check(stored, "groups+channels", tmp_path / "pruned", max_shard_size="20KB")
    names = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert ("lm_head.weight" in names) is not tied


def test_a_bert_checkpoint_with_the_names_of_2018(tmp_path: Path) -> None:
    """Their layer norms have a gamma and a beta."""
    model = build("bert")
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in load_file(path).items()
    }
    assert any(name.endswith("gamma") for name in old)
    save_file(old, path, {"format": "pt"})
    stored, batch = load(tmp_path), inputs(model)
    assert_close(output(stored, batch), output(model, batch))
    check(stored, "heads+channels", tmp_path / "pruned")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # used by peft
def test_merged_adapters(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = build("llama", 2)
    batch = inputs(model)
    dense = output(model, batch)
    settings = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, settings)
    expected = output(adapted, batch)
    with pytest.raises(InputError, match=r"_proj is a Linear.*"):
        prune(adapted.base_model.model, [1, 0] * 6)
    merged = adapted.merge_and_unload()
    assert_close(output(merged, batch), expected)
    assert (expected - dense).abs().max() > 1e-3
    check(merged, "groups+channels", tmp_path)


def test_a_module_that_depends_on_the_heads_outside_the_attention_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kind: Any = type(build("llama").model)
    stock = kind.__init__

    def with_table(self: Any, config: Any) -> None:
        stock(self, config)
        self.table = torch.nn.Embedding(8, config.num_attention_heads)

    monkeypatch.setattr(kind, "__init__", with_table)
    model = build("llama")
    assert isinstance(model, type(AutoModelForCausalLM.from_config(model.config)))
    with pytest.raises(InputError, match=r"model.table.weight cannot be sliced: .* zeroed"):
        prune(model, [1, 0, 1, 1] * 3)
    prune(model, [1, 0, 1, 1] * 3, layout="zeroed")
    prune(model, [1, 0] * 3, gene_map(model, "channels", 2))  # these do not depend on it
