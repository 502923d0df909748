"""Write a Llama model, pruned or not, as a GGUF file for unmodified llama.cpp."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from sos_deap.errors import InputError, first_line
from sos_deap.export.gguf_tokenizer import add_tokenizer, read_vocabulary
from sos_deap.files.atomic import whole_file

_FILE_TYPES = {
    torch.float32: "ALL_F32",
    torch.float16: "MOSTLY_F16",
    torch.bfloat16: "MOSTLY_BF16",
}

# The other types scale the wavelengths by the length of the text; a GGUF file holds one set only.
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")


# Channels of a feed-forward of zeros: the smallest block of llama.cpp's quantised types.
_ZERO_CHANNELS = 32


def write_gguf(model: PreTrainedModel, tokenizer: Any, path: Path) -> list[int]:
    """Write a model and its tokenizer as one GGUF file.

    If all layers have the same sizes, the file's architecture is ``llama``, which most programs
    support; otherwise it is ``deci``, llama.cpp's Llama with numbers of heads and feed-forward
    channels per layer. Matrices are stored in the model's dtype, vectors in float32.

    llama.cpp skips a layer without feed-forward channels, its attention included, and aborts if
    the last layer has none. A feed-forward without channels is therefore written with 32 channels
    whose weights are 0 if the layer has attention or the feed-forward has a bias, and in the first
    and the last layer.

    The file's tokenizer gives the same tokens as the Hugging Face tokenizer, with one exception.
    For a Metaspace pre-tokenizer (Llama 2 in transformers 5), llama.cpp also inserts a space before
    text that starts with a space and, with ``prepend_scheme="first"``, before text that follows a
    special token.

    :param model: a ``LlamaForCausalLM`` in float32, float16 or bfloat16.
    :param tokenizer: its fast tokenizer.
    :param path: the file; it is written under a temporary name, then renamed.
    :returns: the numbers of the layers that were written with a feed-forward of zeros, from 0.
    :raises InputError: for a model or a tokenizer that llama.cpp cannot represent, for a path that
        cannot be written, and if the package ``gguf`` is not installed.
    """
    gguf = _package()
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}")
    _check(model)
    vocabulary = read_vocabulary(tokenizer, model.config.vocab_size)
    factors, rope_scale = _rope(model.config)
    sizes, tensors = _tensors(model, factors)
    # Only deci has sizes per layer; llama is read by all versions of llama.cpp and its forks.
    writer = gguf.GGUFWriter(None, "llama" if len(set(sizes)) == 1 else "deci")
    _add_sizes(writer, model.config, sizes, rope_scale)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[model.dtype]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_tokenizer(writer, vocabulary, tokenizer)
    for name, tensor in tensors.items():
        _add_tensor(writer, name, tensor, gguf.GGMLQuantizationType.BF16)
    _write(writer, path)
    channels = [layer.mlp.down_proj.in_features for layer in model.model.layers]
    return [i for i, size in enumerate(sizes) if size.channels and not channels[i]]


def _package() -> Any:
    try:
        return importlib.import_module("gguf")
    except ImportError as error:
        raise InputError(
            "writing a GGUF file needs the package gguf: pip install 'sos_deap[gguf]'"
        ) from error


def _write(writer: Any, path: Path) -> None:
    try:
        with whole_file(path) as part:
            try:
                writer.write_header_to_file(part)
                writer.write_kv_data_to_file()
                writer.write_tensors_to_file()
            finally:
                writer.close()
    except OSError as error:
        why = error.strerror or first_line(error)  # numpy's errors have no strerror
        raise InputError(f"cannot write {path}: {why}") from error


def _check(model: PreTrainedModel) -> None:
    """Raise :class:`InputError` for a model that llama.cpp's Llama cannot compute."""
    config: Any = model.config
    if config.model_type != "llama":
        raise InputError(
            f"a {config.model_type} model cannot be written as GGUF: give a llama model, since "
            "llama.cpp supports head counts per layer (its architecture deci) for Llama only"
        )
    if not isinstance(model, LlamaForCausalLM):
        raise InputError(
            f"a {type(model).__name__} cannot be written as GGUF: give a LlamaForCausalLM"
        )
    if unsupported := {parameter.dtype for parameter in model.parameters()} - set(_FILE_TYPES):
        raise InputError(
            f"the model has weights of {unsupported.pop()}: a GGUF file is written from float32, "
            "float16 or bfloat16; load the model without quantisation"
        )
    if config.hidden_act not in ("silu", "swish"):
        raise InputError(
            f"the model has hidden_act={config.hidden_act}: llama.cpp's Llama computes silu only"
        )


def _rope(config: Any) -> tuple[Tensor | None, float]:
    """Return the divisors of the rotary frequencies, and the factor of the rotated vectors.

    llama.cpp has keys for some scaling types and a tensor of divisors for llama3. The tensor can
    express every type that does not depend on the length of the text.

    :returns: the divisors, (head_dim / 2,), or ``None`` if all are 1; and the factor.
    """
    rope = config.rope_parameters
    kind = rope["rope_type"]
    if kind not in _ROPE_TYPES:
        raise InputError(
            f"the model has rope_type={kind}, which a GGUF file cannot express: "
            f"use one of {', '.join(_ROPE_TYPES)}"
        )
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise InputError(
            "the model rotates a part of each head: llama.cpp's Llama rotates whole heads"
        )
    if kind == "default":
        return None, 1.0
    steps = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    scaled, scale = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    return rope["rope_theta"] ** -steps / scaled, scale


class _Sizes(NamedTuple):
    """The numbers of query heads, key/value heads and feed-forward channels of one layer."""

    heads: int
    kv_heads: int
    channels: int


def _add_sizes(writer: Any, config: Any, sizes: Sequence[_Sizes], rope_scale: float) -> None:
    """Add the metadata of the architecture."""
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
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    if rope_scale != 1.0:
        writer.add_rope_scaling_attn_factors(rope_scale)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _tensors(model: Any, rope_factors: Tensor | None) -> tuple[list[_Sizes], dict[str, Tensor]]:
    """Return the sizes of each layer, and the tensors by llama.cpp's names.

    :param model: the model.
    :param rope_factors: divisors of the rotary frequencies; ``None`` if all are 1.
    :returns: for each layer its sizes; and the tensors.
    """
    tensors = {"token_embd.weight": model.model.embed_tokens.weight}
    if rope_factors is not None:
        tensors["rope_freqs.weight"] = rope_factors
    sizes, last = [], len(model.model.layers) - 1
    for i, layer in enumerate(model.model.layers):
        heads, kv_heads, own = _attention(model, layer.self_attn, first=i == 0)
        if heads:
            own["attn_norm.weight"] = layer.input_layernorm.weight
        # Without channels in the last layer, llama.cpp aborts.
        channels, feed_forward = _feed_forward(layer.mlp, needed=heads > 0 or i == last)
        if channels:
            own |= feed_forward | {"ffn_norm.weight": layer.post_attention_layernorm.weight}
        tensors |= {f"blk.{i}.{name}": tensor for name, tensor in own.items()}
        sizes.append(_Sizes(heads, kv_heads, channels))
    tensors["output_norm.weight"] = model.model.norm.weight
    if model.lm_head.weight is not model.model.embed_tokens.weight:
        tensors["output.weight"] = model.lm_head.weight
    return sizes, tensors


def _feed_forward(mlp: Any, *, needed: bool) -> tuple[int, dict[str, Tensor]]:
    """Return the number of channels of one layer, and its feed-forward tensors by name.

    :param mlp: the layer's feed-forward module.
    :param needed: whether to return a feed-forward of zeros if the module has no channels. One
        with a bias always has a feed-forward.
    """
    parts = {part: getattr(mlp, f"{part}_proj") for part in ("gate", "up", "down")}
    tensors = {
        f"ffn_{part}.{name}": tensor
        for part, projection in parts.items()
        for name, tensor in projection.named_parameters()
    }
    channels: int = mlp.down_proj.in_features
    if channels:
        return channels, tensors
    if not needed and mlp.down_proj.bias is None:
        return 0, {}
    zeros = mlp.down_proj.weight.new_zeros(_ZERO_CHANNELS, mlp.down_proj.out_features)
    tensors |= {"ffn_gate.weight": zeros, "ffn_up.weight": zeros, "ffn_down.weight": zeros.T}
    if mlp.down_proj.bias is not None:
        tensors |= dict.fromkeys(("ffn_gate.bias", "ffn_up.bias"), zeros[:, 0])
    return _ZERO_CHANNELS, tensors


def _attention(model: Any, attention: Any, *, first: bool) -> tuple[int, int, dict[str, Tensor]]:
    """Return the numbers of heads of one layer, and its attention tensors in llama.cpp's layout.

    :param model: the model.
    :param attention: the layer's attention module.
    :param first: whether it is the model's first layer.
    :returns: the numbers of query and of key/value heads, and the tensors by name.
    """
    head_dim, width = model.config.head_dim, model.config.hidden_size
    if hasattr(attention, "q_proj"):
        parts = {n: dict(getattr(attention, f"{n}_proj").named_parameters()) for n in "qkvo"}
        heads, kv_heads = (len(parts[n]["weight"]) // head_dim for n in "qk")
        uses = getattr(attention.config, "ragged", None) or [heads // kv_heads] * kv_heads
    elif first or attention.o_proj.bias is not None:
        # A head of zeros is written: llama.cpp reads sizes of all layers from the first, and cannot
        # store a bias for a layer without attention.
        zeros = model.model.embed_tokens.weight.new_zeros(head_dim, width)
        parts = {n: {"weight": zeros} for n in "qkv"} | {"o": {"weight": zeros.T}}
        if attention.o_proj.bias is not None:
            parts["o"]["bias"] = attention.o_proj.bias
        uses = [1]
    else:
        return 0, 0, {}
    # llama.cpp needs equally many query heads for every key/value head. If they differ, key/value
    # heads are repeated until each copy serves as many as the greatest common divisor.
    size = math.gcd(*uses)
    copies = torch.tensor([count // size for count in uses])
    tensors = {}
    for part, parameters in parts.items():
        for name, parameter in parameters.items():
            tensor = parameter.detach()
            if part in "kv" and len(set(uses)) > 1:
                by_head = tensor.unflatten(0, (-1, head_dim))
                tensor = by_head.repeat_interleave(copies.to(tensor.device), 0).flatten(0, 1)
            if part in "qk":
                # transformers rotates a head's first half with its second, llama.cpp pairs.
                halves = tensor.unflatten(0, (-1, 2, head_dim // 2))
                tensor = halves.transpose(1, 2).flatten(0, 2)
            tensors[f"attn_{'output' if part == 'o' else part}.{name}"] = tensor
    return sum(uses), sum(uses) // size if len(set(uses)) > 1 else len(uses), tensors


def _add_tensor(writer: Any, name: str, tensor: Tensor, bfloat16: Any) -> None:
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dim() == 1:  # llama.cpp adds and multiplies vectors in float32
        writer.add_tensor(name, tensor.float().numpy())
    elif tensor.dtype == torch.bfloat16:  # numpy has no such dtype
        writer.add_tensor(name, tensor.view(torch.uint8).numpy(), raw_dtype=bfloat16)
    else:
        writer.add_tensor(name, tensor.numpy())
