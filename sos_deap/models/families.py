"""The table of architectures: names and layout of their attention and feed-forward modules.

To add an architecture, add a row, of a decoder in ``sos_deap.models.decoders``;
tests/test_families.py tests every row. Most architectures share the names of an older one, in
``sos_deap.models.layouts``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sos_deap.models.decoders import DECODERS
from sos_deap.models.family import Family, FeedForward
from sos_deap.models.layouts import (
    BART,
    BERT,
    BERT_WIDTH,
    CLIP,
    FC,
    GATED,
    LLAMA,
    T5,
    VIT,
    WAV2VEC2,
    XLM,
    rows,
)

#: Architectures by ``config.model_type``.
FAMILIES: dict[str, Family] = {
    **DECODERS,
    **rows("bart blenderbot blenderbot-small m2m_100 marian mbart pegasus plbart", BART),
    **rows(
        "bert bert-generation camembert data2vec-text dpr electra ernie layoutlm markuplm roberta "
        "roc_bert xlm-roberta xlm-roberta-xl xmod",
        BERT,
    ),
    **rows("megatron-bert rembert roformer tapas visual_bert", BERT_WIDTH),
    **rows(
        "clip clip_text_model clip_vision_model metaclip_2 siglip siglip_vision_model",
        CLIP,
    ),
    **rows("mt5 t5", T5),
    **rows("audio-spectrogram-transformer deit ijepa vit vit_msn", VIT),
    **rows("data2vec-audio hubert sew unispeech unispeech-sat wav2vec2", WAV2VEC2),
    **rows("flaubert xlm", XLM),
    "aimv2": replace(
        VIT,
        output="out_proj",
        attributes=(("num_heads", "heads"), ("embed_dim", "width")),
        feed_forward=replace(GATED, modules=("ffn",)),
    ),
    "albert": replace(
        BERT,
        block="albert_layer_groups.*.albert_layers.*",
        attention=("attention",),
        output="dense",
        norm="LayerNorm",
        feed_forward=FeedForward(("",), "ffn_output", ("ffn",)),
    ),
    "beit": replace(
        VIT,
        requires=(
            ("use_relative_position_bias", False),
            ("use_shared_relative_position_bias", False),
        ),
    ),
    "big_bird": replace(BERT_WIDTH, requires=(("attention_type", "original_full"),)),
    "deberta": replace(
        BERT,
        attention=("attention.self",),
        query="in_proj",
        key="",
        value="",
        interleaved=True,
        more=("pos_proj", "pos_q_proj"),
        per_head=(("q_bias", "heads"), ("v_bias", "heads")),
        attributes=(("num_attention_heads", "heads"),),
        requires=(("talking_head", False),),
    ),
    "deberta-v2": replace(
        BERT,
        attention=("attention.self",),
        query="query_proj",
        key="key_proj",
        value="value_proj",
        more=("pos_key_proj", "pos_query_proj"),
        attributes=(("num_attention_heads", "heads"),),
    ),
    "dinov2": replace(VIT, block="layer.*", feed_forward=replace(FC, sizes=())),
    "dinov2_with_registers": replace(VIT, block="layer.*", feed_forward=replace(FC, sizes=())),
    "dinov3_vit": replace(
        VIT,
        block="layer.*",
        attributes=(("num_heads", "heads"),),
        feed_forward=FeedForward(("mlp",), "down_proj", ("up_proj", "gate_proj")),
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
    "esm": replace(BERT, whole=("contact_head",)),
    "jina_embeddings_v3": replace(LLAMA, feed_forward=FC),
    "layoutlmv3": replace(
        BERT_WIDTH,
        by_head=("rel_pos", "rel_2d_pos"),
        whole=("rel_pos_bias", "rel_pos_x_bias", "rel_pos_y_bias"),
    ),
    "longformer": replace(
        BERT,
        attention=("attention.self",),
        head_dim="head_dim",
        unsliceable="its code requires that all heads together are as wide as the hidden state",
    ),
    "mobilebert": replace(
        BERT_WIDTH,
        feed_forward=FeedForward(
            ("ffn.0", "ffn.1", "ffn.2", ""), "output.dense", ("intermediate.dense",)
        ),
    ),
    "modernbert": Family(
        block="layers.*",
        attention=("attn",),
        query="Wqkv",
        output="Wo",
        feed_forward=FeedForward(("mlp",), "Wo", ("Wi",), fused=2),
    ),
    "mpnet": replace(
        BERT_WIDTH,
        attention=("attention.attn",),
        query="q",
        key="k",
        value="v",
        output="o",
        by_head=("position_bias",),
        whole=("relative_attention_bias",),
    ),
    "mvp": replace(BART, attributes=(("num_heads", "heads"), ("embed_dim", "width"))),
    "roberta-prelayernorm": replace(BERT, attention=("attention.self",)),
    "splinter": replace(BERT, attention=("attention.self",)),
    "switch_transformers": replace(
        T5,
        feed_forward=FeedForward(("layer.1.mlp", "layer.2.mlp"), "wo", ("wi",), sizes=("d_ff",)),
    ),
    "t5gemma": replace(LLAMA, attention=("self_attn", "cross_attn")),
    "umt5": replace(
        T5,
        bias_by_head=(),
        whole=(),
        returns_bias=False,
        per_head=(("relative_attention_bias", "heads"),),
        attributes=(("n_heads", "heads"),),
    ),
    "whisper": replace(BART, attributes=(("num_heads", "heads"),)),
    "yolos": replace(BERT_WIDTH, attention=("attention.attention",)),
}

_NO_ROW = "the table of architectures (sos_deap/models/families.py) has no row for it"

#: Rows that are tried for an architecture without a row; they suffice for masking, not for slicing.
FALLBACK_FAMILIES = tuple(replace(row, unsliceable=_NO_ROW) for row in (LLAMA, BART))


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
