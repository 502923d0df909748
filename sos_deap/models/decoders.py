"""Rows of the table of architectures: decoders, that is, causal language models and mixtures."""

from __future__ import annotations

from dataclasses import replace

from sos_deap.models.family import Family, FeedForward
from sos_deap.models.layouts import (
    EXPERTS,
    FC,
    FUSED_GATE,
    GLM,
    GPT2,
    GPT_NEOX,
    GRANITE_MIXTURE,
    LAYER_FC,
    LLAMA,
    LLAMA_MIXTURE,
    OLMO2,
    PLAIN,
    rows,
)

#: Architectures by ``config.model_type``.
DECODERS: dict[str, Family] = {
    **rows("glm glm4", GLM),
    **rows(
        "apertus arcee cohere2 cwm ernie4_5 eurobert exaone4 gemma gemma2 gemma3_text "
        "granite gte helium hunyuan_v1_dense hyperclovax internlm3 jais2 llama ministral "
        "ministral3 mistral nomic_bert olmo qwen2 qwen2_5_vl_text qwen2_vl_text qwen3 "
        "qwen3_vl_text seed_oss smollm3 vaultgemma",
        LLAMA,
    ),
    **rows(
        "ernie4_5_moe glm4_moe hunyuan_v1_moe llama4_text phimoe",
        LLAMA_MIXTURE,
    ),
    **rows("granitemoe granitemoeshared", GRANITE_MIXTURE),
    **rows("olmo2 olmo3", OLMO2),
    **rows("qwen2_moe qwen3_moe", replace(LLAMA_MIXTURE, experts=EXPERTS)),
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
    "lfm2": replace(
        LLAMA,
        output="out_proj",
        feed_forward=FeedForward(("feed_forward",), "w2", ("w1", "w3"), sizes=()),
        hybrid=True,
    ),
    "modernbert-decoder": replace(
        LLAMA,
        attention=("attn",),
        output="Wo",
        feed_forward=FeedForward(("mlp",), "Wo", ("Wi",), fused=2),
    ),
    "mixtral": replace(LLAMA_MIXTURE, experts=replace(EXPERTS, sizes=("num_local_experts",))),
    "mpt": Family(
        block="blocks.*",
        attention=("attn",),
        query="Wqkv",
        output="out_proj",
        by_head=("position_bias",),
        attributes=(("n_heads", "heads"),),
        feed_forward=FeedForward(("ffn",), "down_proj", ("up_proj",), sizes=()),
    ),
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
    "stablelm": replace(
        LLAMA,
        per_head=(("q_layernorm.norms", "heads"), ("k_layernorm.norms", "kv_heads")),
        attributes=(("num_heads", "heads"), ("num_key_value_heads", "kv_heads")),
    ),
    "starcoder2": replace(LLAMA, feed_forward=FeedForward(("mlp",), "c_proj", ("c_fc",))),
    "xglm": replace(
        LLAMA,
        output="out_proj",
        attributes=(("num_heads", "heads"), ("embed_dim", "width")),
        feed_forward=replace(LAYER_FC, sizes=("ffn_dim",)),
    ),
}
