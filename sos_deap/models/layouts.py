"""Names and layouts of attention and feed-forward modules that several architectures share.

Paths are those of the classes in `transformers.models`, without the model's prefix (`model.`,
`transformer.`, `bert.`, or none).
"""

from __future__ import annotations

from dataclasses import replace

from sos_deap.models.family import Experts, Family, FeedForward

GATED = FeedForward(("mlp",), "down_proj", ("gate_proj", "up_proj"))
FUSED_GATE = FeedForward(("mlp",), "down_proj", ("gate_up_proj",), fused=2)
PLAIN = FeedForward(("mlp",), "dense_4h_to_h", ("dense_h_to_4h",))
FC = FeedForward(("mlp",), "fc2", ("fc1",))
LAYER_FC = FeedForward(("",), "fc2", ("fc1",), sizes=("encoder_ffn_dim", "decoder_ffn_dim"))

LLAMA = Family(
    block="layers.*",
    attention=("self_attn",),
    query="q_proj",
    key="k_proj",
    value="v_proj",
    output="o_proj",
    feed_forward=GATED,
)
# Without experts: its routers have parameters of other kinds, or groups of experts.
LLAMA_MIXTURE = replace(LLAMA, feed_forward=None)
EXPERTS = Experts()
GRANITE_MIXTURE = replace(
    LLAMA_MIXTURE,
    experts=Experts("block_sparse_moe", router="router", sizes=("num_local_experts",)),
)
# Its query and key norms span all heads.
OLMO2 = replace(LLAMA, spanning=(("q_norm", "q_proj", "heads"), ("k_norm", "k_proj", "kv_heads")))
GLM = replace(LLAMA, feed_forward=FUSED_GATE)
BART = replace(
    LLAMA,
    attention=("self_attn", "encoder_attn"),
    output="out_proj",
    feed_forward=LAYER_FC,
)
BERT = Family(
    block="layer.*",
    attention=("attention.self", "crossattention.self"),
    query="query",
    key="key",
    value="value",
    output="../output.dense",
    head_dim="attention_head_size",
    feed_forward=FeedForward(("",), "output.dense", ("intermediate.dense",)),
)
BERT_WIDTH = replace(
    BERT, attributes=(("num_attention_heads", "heads"), ("all_head_size", "width"))
)
T5 = Family(
    block="block.*",
    attention=("layer.0.SelfAttention", "layer.1.EncDecAttention"),
    query="q",
    key="k",
    value="v",
    output="o",
    head_dim="key_value_proj_dim",
    bias_by_head=("position_bias",),
    whole=("relative_attention_bias",),
    returns_bias=True,
    feed_forward=FeedForward(
        ("layer.1.DenseReluDense", "layer.2.DenseReluDense"),
        "wo",
        ("wi", "wi_0", "wi_1"),
        sizes=("d_ff",),
    ),
)
GPT_NEOX = Family(
    block="layers.*",
    attention=("attention",),
    query="query_key_value",
    output="dense",
    interleaved=True,
    head_dim="head_size",
    feed_forward=PLAIN,
)
GPT2 = Family(
    block="h.*",
    attention=("attn",),
    query="c_attn",
    output="c_proj",
    attributes=(("split_size", "width"),),
    feed_forward=FeedForward(("mlp",), "c_proj", ("c_fc",), sizes=("n_inner",)),
)
VIT = replace(LLAMA, attention=("attention",), feed_forward=FC)
CLIP = replace(LLAMA, output="out_proj", feed_forward=FC)
WAV2VEC2 = replace(
    LLAMA,
    attention=("attention",),
    output="out_proj",
    feed_forward=FeedForward(("feed_forward",), "output_dense", ("intermediate_dense",)),
)

XLM = Family(
    block="attentions.*",
    attention=("",),
    query="q_lin",
    key="k_lin",
    value="v_lin",
    output="out_lin",
    attributes=(("n_heads", "heads"),),
    feed_forward=FeedForward(("../../ffns.*",), "lin2", ("lin1",), sizes=()),
)


def rows(names: str, family: Family) -> dict[str, Family]:
    """Return a row for each of several architectures, all alike.

    :param names: their ``config.model_type``, separated by spaces.
    :param family: the row.
    """
    return dict.fromkeys(names.split(), family)
