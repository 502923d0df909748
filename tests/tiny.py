"""Tiny random models of every architecture in the table, and inputs for them."""

from __future__ import annotations

import random
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
)

from sos_deap import gene_map
from sos_deap.models.genes import GeneMap

LAYERS, HEADS, WIDTH, VOCABULARY = 3, 4, 32, 61
HEAD_DIM = WIDTH // HEADS

# Sizes by the names that configs use. No architecture is named here, so that a new row of FAMILIES
# is tested without a change of this file.
_SIZES = {
    **dict.fromkeys(("hidden_size", "word_embed_proj_dim"), WIDTH),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "d_ff", "hidden_dim"), 48),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "moe_intermediate_size"), 48),
    "ffn_hidden_size": 48,
    **dict.fromkeys(("num_hidden_layers", "encoder_layers", "decoder_layers"), LAYERS),
    "num_decoder_layers": LAYERS,
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads"), HEADS),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), HEADS),
    **dict.fromkeys(("head_dim", "d_kv"), HEAD_DIM),
    **dict.fromkeys(("rotary_dim", "num_experts", "num_local_experts", "patch_size"), 4),
    "sliding_window": 4,  # shorter than the inputs, so that it matters
    "num_experts_per_tok": 2,
    "coordinate_size": 6,  # of boxes on a page: 4 times this, and twice the shape's, is WIDTH
    "shape_size": 4,
    "full_attn_idxs": [1],  # of a hybrid with convolutions
    "default_language": "en_XX",
    "max_depth": 2,
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    "image_size": 16,
    "max_position_embeddings": 64,
    "vocab_size": VOCABULARY,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
    "decoder_start_token_id": 0,
    "attention_types": [[["global", "local", "global"], 1]],
    "attention_type": "original_full",
    **dict.fromkeys(("window_size", "attention_window"), 4),
    # Of models of sound: two convolutions, then positions by a third one.
    **dict.fromkeys(("conv_dim", "tdnn_dim"), (8, 8)),
    **dict.fromkeys(("conv_stride", "conv_kernel"), (2, 2)),
    **dict.fromkeys(("num_feat_extract_layers", "num_conv_pos_embedding_groups"), 2),
    **dict.fromkeys(("num_conv_pos_embeddings", "num_mel_bins"), 8),
    "max_source_positions": 16,
    "max_target_positions": 64,
    **dict.fromkeys(("vocab_size_per_layer_input",), VOCABULARY),
    **dict.fromkeys(("hidden_size_per_layer_input", "laurel_rank"), 8),
    "num_kv_shared_layers": 0,
    "max_length": 24,
}


def build(family: str, kv_heads: int | None = None, auto: Any = None, **settings: Any) -> Any:
    """A tiny random model whose weights, biases included, are all far from zero.

    :param auto: the auto class; by default the one that generates text, if there is one.
    """
    torch.manual_seed(5)
    stock: Any = AutoConfig.for_model(family)
    grouped = {} if kv_heads is None else {"num_key_value_heads": kv_heads}
    config: Any = AutoConfig.for_model(family, **_sizes(stock) | grouped | settings)
    if config.is_encoder_decoder:
        config.decoder_start_token_id = 0
    model = (auto or _default(config)).from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # others may be computed, such as sinusoids
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def _sizes(stock: Any) -> dict[str, Any]:
    """The sizes that a config has, and those of the configs inside it."""
    sizes = {
        name: value
        for name, value in _SIZES.items()
        if hasattr(stock, name) and not isinstance(getattr(type(stock), name, None), property)
    }
    if isinstance(getattr(stock, "image_size", None), list | tuple):
        sizes["image_size"] = [_SIZES["image_size"]] * 2
    if "linear_attention" in (getattr(stock, "layer_types", None) or ()):  # or no layer has heads
        sizes["layer_types"] = ["linear_attention", "full_attention", "linear_attention"]
    if "mrope_section" in getattr(stock, "ignore_keys_at_rope_validation", ()):
        rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
        sizes["rope_parameters"] = rope
    inner = {name: _sizes(kind()) for name, kind in type(stock).sub_configs.items()}
    return sizes | inner


def _default(config: Any) -> Any:
    if type(config) in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING:
        return AutoModelForSpeechSeq2Seq
    if config.is_encoder_decoder:
        return AutoModelForSeq2SeqLM
    # Architectures such as BERT also have causal classes, for their decoder variant only.
    encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(
        config, "is_decoder", False
    )
    causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not encoder
    return AutoModelForCausalLM if causal else AutoModel


def inputs(model: Any) -> dict[str, torch.Tensor]:
    """Two random examples.

    Token ids, with decoder token ids for an encoder-decoder; pixels; both; or sound.
    """
    config, ids = model.config, torch.randint(1, VOCABULARY, (2, 9))
    pixels = {"pixel_values": torch.randn(2, 3, 16, 16)}
    if "vision_config" in type(config).sub_configs:
        return {"input_ids": ids} | pixels
    if model.main_input_name == "pixel_values":
        return pixels
    if model.main_input_name == "input_features":
        return {"input_features": torch.randn(2, 8, 32), "decoder_input_ids": ids}
    if model.main_input_name == "input_values":
        size = (24, 8) if hasattr(config, "num_mel_bins") else (64,)
        return {"input_values": torch.randn(2, *size)}
    if config.is_encoder_decoder:
        return {"input_ids": ids, "decoder_input_ids": ids.flip(1)}
    return {"input_ids": ids}


def repeated(batch: dict[str, torch.Tensor], times: int) -> dict[str, torch.Tensor]:
    return {name: value.repeat(times, *[1] * (value.dim() - 1)) for name, value in batch.items()}


def output(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.inference_mode():
        result: Any = model(**batch)
    if "image_embeds" in result:  # the first output compares every text with every image
        return torch.cat([result["text_embeds"], result["image_embeds"]], -1)
    return result[0]  # type: ignore[no-any-return]


def chromosomes(genes: int, count: int) -> list[list[int]]:
    """Corner cases (all heads, none, one, an empty first or last layer), and random chromosomes."""
    rng = random.Random(3)
    corners = [
        [1] * genes,
        [0] * genes,
        [0] * (genes - 1) + [1],
        [0] * HEADS + [1, 0, 1, 1] * (genes // HEADS - 1),
        [1, 0, 0, 1] * (genes // HEADS - 1) + [0] * HEADS,
    ]
    return corners + [[rng.randint(0, 1) for _ in range(genes)] for _ in range(count)]


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


def random_order(model: Any) -> list[list[int]]:
    """A random order of the channels of each feed-forward module."""
    rng = random.Random(9)
    units = [site.units for site in gene_map(model, "channels").feed_forward]
    return [rng.sample(range(count), count) for count in units]


def without(genes: GeneMap, removed: dict[int, set[str] | None]) -> list[int]:
    """The chromosome that removes parts by layer and kind (``None``: all), and keeps the others."""
    return [
        int(part.layer not in removed or part.kind not in (removed[part.layer] or {part.kind}))
        for part in genes.parts
        for _ in range(part.size)
    ]
