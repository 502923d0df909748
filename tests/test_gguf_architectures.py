"""GGUF files of every architecture in the table, computed by llama.cpp as by transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from sos_deap import InputError, gene_map, prune
from sos_deap.export.gguf import write_gguf
from sos_deap.export.gguf_architectures import ARCHITECTURES
from sos_deap.models.sources import BUILTIN
from tests.llama_cpp import architecture, check_numbers
from tests.tiny import build, random_order

pytest.importorskip("gguf", reason="needs the package gguf")
pytest.importorskip("xllamacpp", reason="needs llama.cpp: the package xllamacpp")

PROMPTS = [[1654, 1223, 1380, 1833, 1099, 761, 1719, 311, 550, 1267], [5]]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(BUILTIN["builtin:tiny"])


def tiny(family: str, **settings: Any) -> Any:
    """A tiny random model with two key/value heads of two query heads."""
    row = ARCHITECTURES[family]
    # Windows of 4 tokens are shorter than the prompts; with Gemma, one layer in 2 or 6 has none.
    own: dict[str, Any] = {"sliding_window": 4, "num_hidden_layers": 7} if row.period else {}
    if not row.period and family != "llama":
        own = {"sliding_window": None}
    if row.period:
        own |= {"query_pre_attn_scalar": 8}
    if row.caps:
        own |= {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
    return build(family, 2, **{"vocab_size": 2048, **own, **settings})


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_stock_models(family: str, tokenizer: Any, tmp_path: Path) -> None:
    model, path = tiny(family), tmp_path / "model.gguf"
    assert write_gguf(model, tokenizer, path) == []
    assert architecture(path) == ARCHITECTURES[family].equal
    check_numbers(model, path, PROMPTS, 2e-3)


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_the_uniform_layout(family: str, tokenizer: Any, tmp_path: Path) -> None:
    model, path = tiny(family), tmp_path / "model.gguf"
    genes = gene_map(model, "groups+channels", 4, random_order(model))
    chromosome = [
        int(gene < (1 if part.kind == "groups" else 3))
        for part in genes.parts
        for gene in range(part.size)
    ]
    pruned = prune(model, chromosome, genes, "uniform")
    assert write_gguf(pruned, tokenizer, path) == []
    assert architecture(path) == ARCHITECTURES[family].equal
    check_numbers(pruned, path, PROMPTS, 2e-3)


UNEQUAL = [family for family, row in ARCHITECTURES.items() if row.unequal]


@pytest.mark.parametrize("family", UNEQUAL)
@pytest.mark.parametrize("empty", [False, True])
def test_layers_of_different_sizes(
    family: str, empty: bool, tokenizer: Any, tmp_path: Path
) -> None:
    model, path = tiny(family, tie_word_embeddings=True), tmp_path / "model.gguf"
    genes = gene_map(model, "heads+channels", 4, random_order(model))
    # Unequal groups in layer 0; with `empty`, no heads in layer 1 and no channels in layer 2.
    keeps = {"heads": ["1011", "0000" if empty else "0011", "0100"]}
    keeps["channels"] = ["0110", "1000", "0000" if empty else "1111"]
    chromosome = [int(bit) for part in genes.parts for bit in keeps[part.kind][part.layer]]
    pruned = prune(model, chromosome, genes)
    assert write_gguf(pruned, tokenizer, path) == ([2] if empty else [])
    assert architecture(path) == ARCHITECTURES[family].unequal
    check_numbers(pruned, path, PROMPTS, 2e-3)


def test_a_model_without_heads_or_channels(tokenizer: Any, tmp_path: Path) -> None:
    """All layers are written with one head and 32 channels of zeros, so their sizes are equal."""
    for family, name in (("qwen3", "qwen3"), ("gemma3_text", "gemma3")):
        model, path = tiny(family), tmp_path / f"{family}.gguf"
        pruned = prune(
            model, [0] * (2 * model.config.num_hidden_layers), gene_map(model, "attention+ffn")
        )
        assert write_gguf(pruned, tokenizer, path) == list(range(model.config.num_hidden_layers))
        assert architecture(path) == name
        check_numbers(pruned, path, PROMPTS, 2e-3)


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3_text", "qwen3"])
def test_different_sizes_are_refused(family: str, tokenizer: Any, tmp_path: Path) -> None:
    model = tiny(family, **({"tie_word_embeddings": False} if family == "qwen3" else {}))
    genes = gene_map(model, "attention")
    pruned = prune(model, [0] + [1] * (len(genes) - 1), genes)
    with pytest.raises(InputError, match="different sizes.*prune it with --layout uniform") as e:
        write_gguf(pruned, tokenizer, tmp_path / "model.gguf")
    assert "\n" not in str(e.value)
    assert not list(tmp_path.iterdir())


ROPE = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


def test_linear_scaling_of_positions(tokenizer: Any, tmp_path: Path) -> None:
    for family, rope in (
        ("qwen3", ROPE),
        (
            "gemma3_text",
            {
                "full_attention": ROPE,
                "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
            },
        ),
    ):
        model, path = tiny(family, rope_parameters=rope), tmp_path / f"{family}.gguf"
        write_gguf(model, tokenizer, path)
        check_numbers(model, path, PROMPTS, 2e-3)


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        (
            "gemma3_text",
            {"hidden_activation": "gelu"},
            "hidden_activation=gelu: .* computes gelu_pyt",
        ),
        ("gemma3_text", {"query_pre_attn_scalar": 16}, "query_pre_attn_scalar=16: .* head_dim, 8"),
        ("gemma3_text", {"layer_types": ["full_attention"] * 7}, "other layer_types than"),
        ("gemma3_text", {"final_logit_softcapping": 3.0}, "final_logit_softcapping=3.0: .* no cap"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        ("gemma2", {"attn_logit_softcapping": None}, "attn_logit_softcapping=None: .* a cap"),
        ("gemma2", {"tie_word_embeddings": False}, "tie_word_embeddings=False: .* needs True"),
        ("qwen3", {"attention_bias": True}, "attention_bias=True: .* has none"),
        ("qwen3", {"rope_parameters": {**YARN, "rope_theta": 1e4}}, "rope_type=yarn, .* linear"),
        ("mistral", {"sliding_window": 8}, "sliding_window=8: .* set it to null"),
    ],
    ids=str,
)
def test_settings_that_llama_cpp_lacks_are_refused(
    family: str, settings: dict[str, Any], message: str, tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message) as e:
        write_gguf(tiny(family, **settings), tokenizer, tmp_path / "model.gguf")
    assert "\n" not in str(e.value)
    assert not list(tmp_path.iterdir())


def test_a_window_as_long_as_the_longest_text_is_none(tokenizer: Any, tmp_path: Path) -> None:
    model, path = tiny("mistral", sliding_window=64), tmp_path / "model.gguf"
    write_gguf(model, tokenizer, path)
    check_numbers(model, path, [torch.randint(300, 2048, (40,)).tolist()], 2e-3)
