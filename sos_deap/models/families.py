"""The table of architectures: names and layout of their attention and feed-forward modules.

To add an architecture, add a row; tests/test_families.py tests every row. Most architectures share
the names of an older one, in ``sos_deap.models.layouts``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sos_deap.models.family import Family, FeedForward
from sos_deap.models.layouts import (
    BART,
    BERT,
    BERT_WIDTH,
    CLIP,
    EXPERTS,
    FC,
    FUSED_GATE,
    GATED,
    GLM,
    GPT2,
    GPT_NEOX,
    GRANITE_MIXTURE,
    LAYER_FC,
    LLAMA,
    LLAMA_MIXTURE,
    OLMO2,
    PLAIN,
    T5,
    VIT,
    WAV2VEC2,
    XLM,
)


def _rows(names: str, family: Family) -> dict[str, Family]:
    """A row for each of several architectures, all alike."""
    return dict.fromkeys(names.split(), family)


#: Architectures by ``config.model_type``.
FAMILIES: dict[str, Family] = {
    **_rows("bart blenderbot blenderbot-small m2m_100 marian mbart pegasus plbart", BART),
    **_rows(
        "bert bert-generation camembert data2vec-text dpr electra ernie layoutlm markuplm roberta "
        "roc_bert xlm-roberta xlm-roberta-xl xmod",
        BERT,
    ),
    **_rows("megatron-bert rembert roformer tapas visual_bert", BERT_WIDTH),
    **_rows(
        "clip clip_text_model clip_vision_model metaclip_2 siglip siglip_vision_model",
        CLIP,
    ),
    **_rows("glm glm4", GLM),
    **_rows(
        "apertus arcee cohere2 cwm ernie4_5 eurobert exaone4 gemma gemma2 gemma3_text "
        "granite gte helium hunyuan_v1_dense hyperclovax internlm3 jais2 llama ministral "
        "ministral3 mistral nomic_bert olmo qwen2 qwen2_5_vl_text qwen2_vl_text qwen3 "
        "qwen3_vl_text seed_oss smollm3 vaultgemma",
        LLAMA,
    ),
    **_rows(
        "ernie4_5_moe glm4_moe hunyuan_v1_moe llama4_text phimoe",
        LLAMA_MIXTURE,
    ),
    **_rows("granitemoe granitemoeshared", GRANITE_MIXTURE),
    **_rows("olmo2 olmo3", OLMO2),
    **_rows("qwen2_moe qwen3_moe", replace(LLAMA_MIXTURE, experts=EXPERTS)),
    **_rows("mt5 t5", T5),
    **_rows("audio-spectrogram-transformer deit ijepa vit vit_msn", VIT),
    **_rows("data2vec-audio hubert sew unispeech unispeech-sat wav2vec2", WAV2VEC2),
    **_rows("flaubert xlm", XLM),
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
    "biogpt": replace(
        LLAMA,
        output="out_proj",
        feed_forward=replace(LAYER_FC, sizes=("intermediate_size",)),
    ),
    "bloom": Family(
        block="h.*",
        attention=("self_attention",),
        query="query_key_value",
        output="dense",
        interleaved=True,
        by_head=("alibi",),
        adds_residual=True,
        attributes=(("num_heads", "heads"),),
        feed_forward=replace(PLAIN, sizes=()),
    ),
    "codegen": Family(
        block="h.*",
        attention=("attn",),
        query="qkv_proj",
        output="out_proj",
        unsliceable="its projection of queries, keys and values is cut into four equal parts",
        feed_forward=FeedForward(("mlp",), "fc_out", ("fc_in",), sizes=("n_inner",)),
    ),
    "cohere": replace(LLAMA, per_head=(("q_norm", "heads"), ("k_norm", "kv_heads"))),
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
    "falcon": Family(
        block="h.*",
        attention=("self_attention",),
        query="query_key_value",
        output="dense",
        interleaved=True,
        one_each=(("new_decoder_architecture", False), ("multi_query", False)),
        by_head=("alibi", "attention_mask"),
        attributes=(("num_heads", "heads"), ("num_kv_heads", "kv_heads")),
        feed_forward=replace(PLAIN, sizes=("ffn_hidden_size",)),
    ),
    "flex_olmo": replace(OLMO2, feed_forward=None, experts=EXPERTS),
    "gemma3n_text": replace(LLAMA_MIXTURE, requires=(("num_kv_shared_layers", 0),)),
    "gpt2": GPT2,
    "gpt_bigcode": replace(
        GPT2,
        interleaved=True,
        attributes=(("embed_dim", "width"), ("num_heads", "heads")),
    ),
    "gpt_neo": replace(
        LLAMA,
        block="h.*",
        attention=("attn.attention",),
        output="out_proj",
        attributes=(("num_heads", "heads"),),
        feed_forward=FeedForward(("mlp",), "c_proj", ("c_fc",)),
    ),
    "gpt_neox": GPT_NEOX,
    "gpt_oss": replace(
        LLAMA_MIXTURE,
        per_head=(("sinks", "heads"),),
        experts=replace(EXPERTS, router="router", sizes=("num_local_experts",)),
    ),
    "granite_swa": replace(LLAMA, per_head=(("sinks", "heads"),)),
    "gptj": replace(
        LLAMA,
        block="h.*",
        attention=("attn",),
        output="out_proj",
        attributes=(("num_attention_heads", "heads"),),
        feed_forward=FeedForward(("mlp",), "fc_out", ("fc_in",), sizes=("n_inner",)),
    ),
    "jina_embeddings_v3": replace(LLAMA, feed_forward=FC),
    "layoutlmv3": replace(
        BERT_WIDTH,
        by_head=("rel_pos", "rel_2d_pos"),
        whole=("rel_pos_bias", "rel_pos_x_bias", "rel_pos_y_bias"),
    ),
    "lfm2": replace(
        LLAMA,
        output="out_proj",
        feed_forward=FeedForward(("feed_forward",), "w2", ("w1", "w3"), sizes=()),
        hybrid=True,
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
    "modernbert-decoder": replace(
        LLAMA,
        attention=("attn",),
        output="Wo",
        feed_forward=FeedForward(("mlp",), "Wo", ("Wi",), fused=2),
    ),
    "mixtral": replace(LLAMA_MIXTURE, experts=replace(EXPERTS, sizes=("num_local_experts",))),
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
    "mpt": Family(
        block="blocks.*",
        attention=("attn",),
        query="Wqkv",
        output="out_proj",
        by_head=("position_bias",),
        attributes=(("n_heads", "heads"),),
        feed_forward=FeedForward(("ffn",), "down_proj", ("up_proj",), sizes=()),
    ),
    "mvp": replace(BART, attributes=(("num_heads", "heads"), ("embed_dim", "width"))),
    "nanochat": replace(LLAMA, feed_forward=FC),
    "nemotron": replace(LLAMA, attributes=(("num_heads", "heads"),)),
    "olmoe": replace(OLMO2, feed_forward=None, experts=EXPERTS),
    "opt": replace(
        LLAMA,
        output="out_proj",
        attributes=(("num_heads", "heads"),),
        feed_forward=replace(LAYER_FC, sizes=("ffn_dim",)),
    ),
    "persimmon": replace(
        GPT_NEOX,
        attention=("self_attn",),
        head_dim="head_dim",
        attributes=(("num_heads", "heads"),),
    ),
    "phi": replace(LLAMA, output="dense", feed_forward=FC),
    "phi3": replace(
        LLAMA,
        query="qkv_proj",
        key="",
        value="",
        attributes=(("config.num_attention_heads", "heads"), ("num_key_value_heads", "kv_heads")),
        feed_forward=FUSED_GATE,
    ),
    "qwen3_5_text": replace(LLAMA, hybrid=True),
    "qwen3_next": replace(LLAMA, feed_forward=None),
    "roberta-prelayernorm": replace(BERT, attention=("attention.self",)),
    "splinter": replace(BERT, attention=("attention.self",)),
    "stablelm": replace(
        LLAMA,
        per_head=(("q_layernorm.norms", "heads"), ("k_layernorm.norms", "kv_heads")),
        attributes=(("num_heads", "heads"), ("num_key_value_heads", "kv_heads")),
    ),
    "starcoder2": replace(LLAMA, feed_forward=FeedForward(("mlp",), "c_proj", ("c_fc",))),
    "switch_transformers": replace(
        T5,
        feed_forward=FeedForward(("layer.1.mlp", "layer.2.mlp"), "wo", ("wi",), sizes=("d_ff",)),
    ),
    "umt5": replace(
        T5,
        bias_by_head=(),
        whole=(),
        returns_bias=False,
        per_head=(("relative_attention_bias", "heads"),),
        attributes=(("n_heads", "heads"),),
    ),
    "whisper": replace(BART, attributes=(("num_heads", "heads"),)),
    "xglm": replace(
        LLAMA,
        output="out_proj",
        attributes=(("num_heads", "heads"), ("embed_dim", "width")),
        feed_forward=replace(LAYER_FC, sizes=("ffn_dim",)),
    ),
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
