"""The table of architectures in GGUF files: how llama.cpp computes them, and what it cannot.

To add an architecture, add a row; tests/test_gguf_architectures.py tests every row. The names are
those of llama.cpp. Its loaders (``src/models/*.cpp``) and converters (``conversion/*.py``) are the
source of all facts here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from sos_deap.errors import InputError

#: Dtypes of a file's matrices, each with its name in ``gguf.LlamaFileType``.
FILE_TYPES = {
    torch.float32: "ALL_F32",
    torch.float16: "MOSTLY_F16",
    torch.bfloat16: "MOSTLY_BF16",
}


class Sizes(NamedTuple):
    """The numbers of query heads, key/value heads and feed-forward channels of one layer."""

    heads: int
    kv_heads: int
    channels: int


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp computes the models of one ``model_type``.

    :param equal: llama.cpp's name of the architecture if all layers have the same sizes.
    :param unequal: its name otherwise; empty if llama.cpp reads the sizes of all layers from the
        first one.
    :param llama: whether it is computed as Llama: neighbouring numbers of a head are rotated, not
        its halves, and biases and divisors of the rotary frequencies are read if the file has them.
    :param tied: whether it needs an embedding that is also the output matrix.
    :param norm_offset: what is added to the weights of norms, which transformers adds when it
        computes.
    :param activation: the activations that are computed, as configs name them.
    :param period: one layer in so many has full attention and the others a sliding window; 0: all
        layers have full attention.
    :param caps: whether attention scores and logits are capped (softcapping).
    """

    equal: str
    unequal: str = ""
    llama: bool = False
    tied: bool = False
    norm_offset: float = 0.0
    activation: tuple[str, ...] = ("silu", "swish")
    period: int = 0
    caps: bool = False


# `llama` is read by all versions and forks of llama.cpp; `deci` is Llama with sizes per layer.
_LLAMA = Architecture("llama", "deci", llama=True)
_GELU = ("gelu_pytorch_tanh",)

#: Architectures by ``config.model_type``. llama.cpp's ``qwen2`` is not used: it needs as many heads
#: as the hidden size has, and its Llama computes the same, since it reads biases. ``openelm`` is
#: Qwen 3 with a tied embedding and sizes per layer.
ARCHITECTURES: dict[str, Architecture] = {
    "gemma": Architecture("gemma", tied=True, norm_offset=1.0, activation=_GELU),
    "gemma2": Architecture(
        "gemma2", tied=True, norm_offset=1.0, activation=_GELU, period=2, caps=True
    ),
    "gemma3_text": Architecture("gemma3", norm_offset=1.0, activation=_GELU, period=6),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": Architecture("qwen3", "openelm"),
}

#: Architectures with sizes per layer that need a tied embedding and one tensor for the projections
#: of queries, keys and values, and that skip neither the attention nor the feed-forward of a layer.
FUSED = ("openelm",)


def head_width(config: Any) -> int:
    """Return the numbers per head."""
    width: int = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    return width


def checked_architecture(model: PreTrainedModel) -> Architecture:
    """Return the row of a model.

    :raises InputError: for a model that llama.cpp cannot compute.
    """
    config: Any = model.config
    row = ARCHITECTURES.get(config.model_type)
    if row is None:
        raise InputError(
            f"a {config.model_type} model cannot be written as GGUF: give a model of type "
            f"{', '.join(ARCHITECTURES)}"
        )
    stock: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if not isinstance(model, stock):
        raise InputError(
            f"a {type(model).__name__} cannot be written as GGUF: give a {stock.__name__}"
        )
    if unsupported := {parameter.dtype for parameter in model.parameters()} - set(FILE_TYPES):
        raise InputError(
            f"the model has weights of {unsupported.pop()}: a GGUF file is written from float32, "
            "float16 or bfloat16; load the model without quantisation"
        )
    if why := _why_not(config, row):
        raise InputError(f"the model has {why}")
    return row


def _why_not(config: Any, row: Architecture) -> str:
    """Return which setting of a config llama.cpp cannot compute; empty if it can."""
    name = f"llama.cpp's {row.equal.capitalize()}"
    key = "hidden_activation" if hasattr(config, "hidden_activation") else "hidden_act"
    width = head_width(config)
    scale = getattr(config, "query_pre_attn_scalar", width)
    caps = ("attn_logit_softcapping", "final_logit_softcapping")
    wrong = [
        (key, getattr(config, key) not in row.activation, f"computes {row.activation[0]} only"),
        ("attention_bias", not row.llama and getattr(config, "attention_bias", False), "has none"),
        ("tie_word_embeddings", row.tied and not config.tie_word_embeddings, "needs True"),
        (
            "use_bidirectional_attention",
            getattr(config, "use_bidirectional_attention", False),
            "is causal",
        ),
        ("query_pre_attn_scalar", scale != width, f"has head_dim, {width}"),
        *(
            (
                cap,
                (getattr(config, cap, None) is None) == row.caps,
                f"has {'a' if row.caps else 'no'} cap",
            )
            for cap in caps
        ),
    ]
    for setting, is_wrong, expected in wrong:
        if is_wrong:
            return f"{setting}={getattr(config, setting, None)}: {name} {expected}"
    return _why_not_window(config, row, name)


def _why_not_window(config: Any, row: Architecture, name: str) -> str:
    """Return why llama.cpp does not have the model's sliding windows; empty if it does."""
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    if row.period:
        expected = [(i + 1) % row.period == 0 for i in range(config.num_hidden_layers)]
        if [kind == "full_attention" for kind in types] != expected:
            return f"other layer_types than {name}, where one layer in {row.period} has no window"
        return ""
    if window and window < config.max_position_embeddings and "sliding_attention" in types:
        return f"sliding_window={window}: {name} attends to all tokens; set it to null"
    return ""


# The other types scale the wavelengths by the length of the text; a GGUF file holds one set only.
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")


class Rotary(NamedTuple):
    """What a GGUF file states about rotary position embeddings.

    :param theta: the base of the wavelengths.
    :param divisors: divisors of the frequencies, (head_dim / 2,); ``None`` if all are 1.
    :param scale: the factor of the rotated vectors.
    :param linear: the factor by which all wavelengths are longer, if it is not in the divisors.
    :param window_theta: the base in layers with a sliding window; ``None`` without such layers.
    """

    theta: float
    divisors: Tensor | None = None
    scale: float = 1.0
    linear: float = 1.0
    window_theta: float | None = None


def read_rotary(config: Any, row: Architecture) -> Rotary:
    """Return what to write about rotary position embeddings.

    llama.cpp has keys for some scaling types and, for Llama, a tensor of divisors. The tensor can
    express every type that does not depend on the length of the text.

    :raises InputError: if a GGUF file cannot express the model's scaling.
    """
    rope, window_theta = config.rope_parameters, None
    if "full_attention" in rope:
        window = rope["sliding_attention"]
        if window["rope_type"] != "default":
            raise InputError(
                f"the model's sliding windows have rope_type={window['rope_type']}, which a GGUF "
                "file cannot express: use default"
            )
        rope, window_theta = rope["full_attention"], float(window["rope_theta"])
    elif row.period:
        window_theta = float(rope["rope_theta"])
    kind, types = rope["rope_type"], _ROPE_TYPES if row.llama else _ROPE_TYPES[:2]
    if kind not in types:
        raise InputError(
            f"the model has rope_type={kind}, which a GGUF file cannot express: "
            f"use one of {', '.join(types)}"
        )
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise InputError(
            "the model rotates a part of each head: llama.cpp's Llama rotates whole heads"
        )
    theta = float(rope["rope_theta"])
    if kind == "default":
        return Rotary(theta, window_theta=window_theta)
    if not row.llama:
        return Rotary(theta, linear=float(rope["factor"]), window_theta=window_theta)
    steps = torch.arange(0, (width := head_width(config)), 2, dtype=torch.float64) / width
    scaled, scale = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    return Rotary(theta, theta**-steps / scaled, scale)


def add_metadata(
    writer: Any, config: Any, row: Architecture, sizes: list[Sizes], rotary: Rotary
) -> None:
    """Add the metadata of the architecture to a GGUF writer."""
    heads, kv_heads, channels = (list(each) for each in zip(*sizes, strict=True))
    same = len(set(sizes)) == 1
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(channels[0] if same else channels)
    writer.add_block_count(len(sizes))
    writer.add_head_count(heads[0] if same else heads)
    writer.add_head_count_kv(kv_heads[0] if same else kv_heads)
    # The default is embedding_length / head_count, which is wrong for a pruned model.
    width = head_width(config)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(rotary.theta)
    if rotary.scale != 1.0:
        writer.add_rope_scaling_attn_factors(rotary.scale)
    if rotary.linear != 1.0:
        writer.add_rope_scaling_type(_linear_scaling())
        writer.add_rope_scaling_factor(rotary.linear)
    if rotary.window_theta is not None:
        writer.add_sliding_window(config.sliding_window)
        writer.add_rope_freq_base_swa(rotary.window_theta)
    if row.caps:
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _linear_scaling() -> Any:
    from gguf import RopeScalingType  # an extra

    return RopeScalingType.LINEAR
