"""The table of architectures: names and layout of their attention and feed-forward modules.

To add an architecture, add a row; tests/test_families.py tests every row. Paths are those of the
classes in `transformers.models`, without the model's prefix (`model.`, `transformer.`, `bert.`, or
none).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sos_deap.models.sites import Family, FeedForward

_GATED = FeedForward(("mlp",), "down_proj", ("gate_proj", "up_proj"))
_PLAIN = FeedForward(("mlp",), "dense_4h_to_h", ("dense_h_to_4h",))

_LLAMA = Family(
    block="layers.*",
    attention=("self_attn",),
    query="q_proj",
    key="k_proj",
    value="v_proj",
    output="o_proj",
    feed_forward=_GATED,
)
_BART = replace(
    _LLAMA,
    attention=("self_attn", "encoder_attn"),
    output="out_proj",
    feed_forward=FeedForward(("",), "fc2", ("fc1",), sizes=("encoder_ffn_dim", "decoder_ffn_dim")),
)
_BERT = Family(
    block="layer.*",
    attention=("attention.self", "crossattention.self"),
    query="query",
    key="key",
    value="value",
    output="../output.dense",
    head_dim="attention_head_size",
    feed_forward=FeedForward(("",), "output.dense", ("intermediate.dense",)),
)

#: Architectures by ``config.model_type``.
FAMILIES: dict[str, Family] = {
    "bart": _BART,
    "bert": _BERT,
    "bloom": Family(
        block="h.*",
        attention=("self_attention",),
        query="query_key_value",
        output="dense",
        interleaved=True,
        unsliceable="its position bias (ALiBi) is one tensor over all the heads of all layers",
        feed_forward=replace(_PLAIN, sizes=()),
    ),
    "camembert": _BERT,
    "cohere": replace(_LLAMA, per_head=(("q_norm", "heads"), ("k_norm", "kv_heads"))),
    "deberta-v2": replace(
        _BERT,
        attention=("attention.self",),
        query="query_proj",
        key="key_proj",
        value="value_proj",
        more=("pos_key_proj", "pos_query_proj"),
        attributes=(("num_attention_heads", "heads"),),
    ),
    "distilbert": Family(
        block="layer.*",
        attention=("attention",),
        query="q_lin",
        key="k_lin",
        value="v_lin",
        output="out_lin",
        head_dim="attention_head_size",
        feed_forward=FeedForward(("ffn",), "lin2", ("lin1",), sizes=("hidden_dim",)),
    ),
    "electra": _BERT,
    "falcon": Family(
        block="h.*",
        attention=("self_attention",),
        query="query_key_value",
        output="dense",
        attributes=(("num_heads", "heads"),),
        requires=(("multi_query", True), ("new_decoder_architecture", False), ("alibi", False)),
        feed_forward=replace(_PLAIN, sizes=("ffn_hidden_size",)),
    ),
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "gpt2": Family(
        block="h.*",
        attention=("attn",),
        query="c_attn",
        output="c_proj",
        attributes=(("split_size", "width"),),
        feed_forward=FeedForward(("mlp",), "c_proj", ("c_fc",), sizes=("n_inner",)),
    ),
    "gpt_neox": Family(
        block="layers.*",
        attention=("attention",),
        query="query_key_value",
        output="dense",
        interleaved=True,
        head_dim="head_size",
        feed_forward=_PLAIN,
    ),
    "gptj": replace(
        _LLAMA,
        block="h.*",
        attention=("attn",),
        output="out_proj",
        attributes=(("num_attention_heads", "heads"),),
        feed_forward=FeedForward(("mlp",), "fc_out", ("fc_in",), sizes=("n_inner",)),
    ),
    "granite": _LLAMA,
    "llama": _LLAMA,
    "mbart": _BART,
    "mistral": _LLAMA,
    "mixtral": replace(_LLAMA, feed_forward=None),
    "modernbert": Family(
        block="layers.*",
        attention=("attn",),
        query="Wqkv",
        output="Wo",
        feed_forward=FeedForward(("mlp",), "Wo", ("Wi",), fused=2),
    ),
    "olmo2": replace(
        _LLAMA, unsliceable="its query and key norms span all the heads, so each affects the others"
    ),
    "opt": replace(
        _LLAMA,
        output="out_proj",
        attributes=(("num_heads", "heads"),),
        feed_forward=FeedForward(("",), "fc2", ("fc1",), sizes=("ffn_dim",)),
    ),
    "pegasus": _BART,
    "phi3": replace(
        _LLAMA,
        query="qkv_proj",
        key="",
        value="",
        attributes=(("config.num_attention_heads", "heads"), ("num_key_value_heads", "kv_heads")),
        feed_forward=FeedForward(("mlp",), "down_proj", ("gate_up_proj",), fused=2),
    ),
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "qwen3_moe": replace(_LLAMA, feed_forward=None),
    "roberta": _BERT,
    "smollm3": _LLAMA,
    "starcoder2": replace(_LLAMA, feed_forward=FeedForward(("mlp",), "c_proj", ("c_fc",))),
    "t5": Family(
        block="block.*",
        attention=("layer.0.SelfAttention", "layer.1.EncDecAttention"),
        query="q",
        key="k",
        value="v",
        output="o",
        head_dim="key_value_proj_dim",
        unsliceable="the heads of its first layer hold the position bias of every layer's heads",
        feed_forward=FeedForward(
            ("layer.1.DenseReluDense", "layer.2.DenseReluDense"),
            "wo",
            ("wi", "wi_0", "wi_1"),
            sizes=("d_ff",),
        ),
    ),
    "vit": replace(
        _LLAMA, attention=("attention",), feed_forward=FeedForward(("mlp",), "fc2", ("fc1",))
    ),
    "xlm-roberta": _BERT,
}

_NO_ROW = "the table of architectures (sos_deap/models/families.py) has no row for it"

#: Rows that are tried for an architecture without a row; they suffice for masking, not for slicing.
FALLBACK_FAMILIES = tuple(replace(row, unsliceable=_NO_ROW) for row in (_LLAMA, _BART))


def why_unsliceable(family: Family, config: Any, attention: bool = True) -> str:
    """Return why a model can be masked but not sliced.

    :param family: the model's architecture.
    :param config: the model's config.
    :param attention: whether heads are to be removed; otherwise only channels are.
    :returns: the reason, for an error message; empty if the model can be sliced.
    """
    if family.unsliceable == _NO_ROW or not attention:
        return _NO_ROW if family.unsliceable == _NO_ROW else ""
    for name, value in family.requires:
        if getattr(config, name, value) != value:
            return f"it has {name}={getattr(config, name)}, and only {name}={value} can be sliced"
    return family.unsliceable
