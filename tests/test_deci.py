"""Folders of DeciLM, read as its loaders read them, compute as the pruned model."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP

from sos_deap import InputError, gene_map, prune
from sos_deap.__main__ import main
from sos_deap.export.deci import write_deci
from tests.tiny import assert_close, build, output, random_order

IDS = {"input_ids": torch.tensor([[7, 30, 41, 19, 5], [1, 2, 3, 4, 6]])}


def llama(**settings: Any) -> Any:
    """Eight query heads in four groups, and 600 channels, in four layers."""
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 600, "num_hidden_layers": 4}
    return build("llama", 4, **sizes, num_attention_heads=8, **settings)


class NoSubLayer(torch.nn.Module):
    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result

    def forward(self, hidden: Any = None, *args: Any, **kwargs: Any) -> Any:
        hidden = kwargs.get("hidden_states", hidden)
        return self.result(hidden)


def stock(folder: Path) -> Any:
    """A model of transformers' Llama layers with the sizes that the loaders compute."""
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "nemotron-nas"
    blocks, weights = config["block_configs"], load_file(folder / "model.safetensors")
    own = {**config, "model_type": "llama", "num_key_value_heads": config["num_attention_heads"]}
    for name in ("block_configs", "architectures", "torch_dtype", "rope_scaling", "rope_theta"):
        own.pop(name)
    rope = config["rope_scaling"] or {"rope_type": "default"}
    own["rope_parameters"] = rope | {"rope_theta": config["rope_theta"]}
    model: Any = LlamaForCausalLM(LlamaConfig(**own))
    for i, (layer, block) in enumerate(zip(model.model.layers, blocks, strict=True)):
        sizes = copy.deepcopy(model.config)
        if block["attention"]["no_op"]:
            layer.self_attn = NoSubLayer(lambda hidden: (torch.zeros_like(hidden), None))
            layer.input_layernorm = torch.nn.Identity()
        else:
            groups = config["num_attention_heads"] // block["attention"]["n_heads_in_group"]
            sizes.num_key_value_heads = groups
            layer.self_attn = LlamaAttention(sizes, i)
        if block["ffn"]["no_op"]:
            layer.mlp = NoSubLayer(torch.zeros_like)
            layer.post_attention_layernorm = torch.nn.Identity()
        else:
            width = int(2 * round(block["ffn"]["ffn_mult"], 6) * config["hidden_size"] / 3)
            sizes.intermediate_size = width + -width % 256
            layer.mlp = LlamaMLP(sizes)
    if config["tie_word_embeddings"]:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, strict=True)
    return model.eval()


@pytest.mark.parametrize("tied", [False, True])
def test_the_logits_are_those_of_the_pruned_model(tied: bool, tmp_path: Path) -> None:
    model = llama(tie_word_embeddings=tied)
    genes = gene_map(model, "groups+channels", 4, random_order(model))
    keeps = {"groups": ["1111", "0110", "0000", "0111"]}  # the last is written as four groups
    keeps["channels"] = ["1111", "0100", "1010", "0000"]
    chromosome = [int(bit) for part in genes.parts for bit in keeps[part.kind][part.layer]]
    pruned = prune(model, chromosome, genes)
    padding = write_deci(pruned, tmp_path / "deci")
    assert_close(output(stock(tmp_path / "deci"), IDS), output(pruned, IDS))
    blocks = json.loads((tmp_path / "deci/config.json").read_text())["block_configs"]
    assert [block["attention"]["n_heads_in_group"] for block in blocks] == [2, 4, None, 2]
    assert [block["ffn"]["no_op"] for block in blocks] == [False, False, False, True]
    # Channels: 600 to 768, 150 to 256, 300 to 512; heads: 8 of 8, 4 of 8 and 6 of 8 query heads,
    # and 3 of 4 key/value heads in the last layer.
    expected = 3 * 64 * (168 + 106 + 212) + 2 * 64 * 8 * (4 + 2) + 2 * 64 * 8
    assert padding == expected


def test_a_first_layer_without_heads_and_unequal_groups(tmp_path: Path) -> None:
    model = llama()
    pruned = prune(model, [0] * 8 + [1, 0, 1, 1, 0, 0, 0, 1] + [1] * 16)
    write_deci(pruned, tmp_path / "deci")
    assert_close(output(stock(tmp_path / "deci"), IDS), output(pruned, IDS))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--format", "deci", "--output", str(tmp_path / "deci")]
    assert main(["export", "builtin:tiny", *flags]) == 0
    printed = capsys.readouterr().out
    zeros = 12 * 3 * 144 * (512 - 288)  # layers, projections, hidden size, channels
    assert f"weights in bfloat16, {zeros:,} of them zeros for padding" in printed
    assert (tmp_path / "deci/tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: build("qwen2", 2),
            "give a LlamaForCausalLM, pruned by the genes groups, channels",
        ),
        (lambda: llama(attention_bias=True), "has biases"),
        (lambda: llama(head_dim=16), "8 heads of 16 numbers: .* the hidden size, 64"),
    ],
)
def test_refused_models(make: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as e:
        write_deci(make(), tmp_path / "deci")
    assert "\n" not in str(e.value) and not list(tmp_path.iterdir())


def test_mlx_computes_the_same(tmp_path: Path) -> None:
    mlx = pytest.importorskip("mlx.core", reason="needs mlx (mlx-cpu) and mlx-lm")
    utils = pytest.importorskip("mlx_lm.utils")
    model = llama()
    genes = gene_map(model, "groups", 4)
    pruned = prune(model, [1, 1, 1, 1, 0, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1, 0], genes)
    write_deci(pruned, tmp_path / "deci")
    loaded, _ = utils.load_model(tmp_path / "deci")
    found = torch.tensor(loaded(mlx.array(IDS["input_ids"].tolist())).tolist())
    assert (found - output(pruned, IDS)).abs().max() <= 1e-3 * found.abs().max()
