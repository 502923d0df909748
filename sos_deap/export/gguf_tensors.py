"""The tensors of a model by llama.cpp's names and in its layout, with the sizes of each layer."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sos_deap.export.gguf_architectures import Architecture, Sizes, head_width

# Channels of a feed-forward of zeros: the smallest block of llama.cpp's quantised types.
_ZERO_CHANNELS = 32

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def tensors_of(model: Any, row: Architecture, names: Any) -> tuple[list[Sizes], dict[str, Tensor]]:
    """Return the sizes of each layer, and the tensors by llama.cpp's names.

    :param model: the model.
    :param row: its architecture.
    :param names: the ``gguf.TensorNameMap`` of the architecture.
    """
    tensors = {"token_embd.weight": model.model.embed_tokens.weight}
    sizes, last = [], len(model.model.layers) - 1
    for i, layer in enumerate(model.model.layers):
        # Only Llama with sizes per layer skips an attention or a feed-forward; not the attention of
        # the first layer, from which llama.cpp reads sizes of all.
        needed = i == 0 or not row.llama
        heads, kv_heads, own = _attention(model, layer.self_attn, row, needed=needed)
        # Without channels in the last layer, llama.cpp aborts.
        needed = heads > 0 or i == last or not row.llama
        channels, feed_forward = _feed_forward(layer.mlp, needed=needed)
        norms = _norms(layer, f"model.layers.{i}", names, row, head_width(model.config))
        skipped = {f"blk.{i}.attn_norm.weight"} if not heads else set[str]()
        skipped |= {f"blk.{i}.ffn_norm.weight"} if not channels else set()
        tensors |= {name: norm for name, norm in norms.items() if name not in skipped}
        tensors |= {f"blk.{i}.{name}": part for name, part in (own | feed_forward).items()}
        sizes.append(Sizes(heads, kv_heads, channels))
    tensors["output_norm.weight"] = model.model.norm.weight.float() + row.norm_offset
    if model.lm_head.weight is not model.model.embed_tokens.weight:
        tensors["output.weight"] = model.lm_head.weight
    return sizes, tensors


def fuse(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with one projection of queries, keys and values in each layer."""
    fused = dict(tensors)
    for name in tensors:
        layer, part, _ = name.partition("attn_q.")
        if part:
            parts = [fused.pop(f"{layer}attn_{which}.weight") for which in "qkv"]
            fused[f"{layer}attn_qkv.weight"] = torch.cat([each.detach() for each in parts])
    return fused


def _norms(
    layer: Any, path: str, names: Any, row: Architecture, head_dim: int
) -> dict[str, Tensor]:
    """Return the weights of a layer's norms by llama.cpp's names."""
    norms = {
        name: parameter.detach().float() + row.norm_offset
        for name, parameter in layer.named_parameters()
        if name.split(".")[-2] not in _PROJECTIONS
    }
    if not hasattr(layer.self_attn, "q_proj"):  # its norms were removed with its last head
        norms |= {f"self_attn.{which}_norm.weight": torch.ones(head_dim) for which in "qk"}
    named = {names.get_name(f"{path}.{name}", (".weight",)): norm for name, norm in norms.items()}
    return {name: norm for name, norm in named.items() if name is not None}


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


def _attention(
    model: Any, attention: Any, row: Architecture, *, needed: bool
) -> tuple[int, int, dict[str, Tensor]]:
    """Return the numbers of heads of one layer, and its attention tensors in llama.cpp's layout.

    :param model: the model.
    :param attention: the layer's attention module.
    :param row: the model's architecture.
    :param needed: whether to return a head of zeros if the module has no heads. One with a bias
        always has a head.
    :returns: the numbers of query and of key/value heads, and the tensors by name.
    """
    head_dim, width = head_width(model.config), model.config.hidden_size
    if hasattr(attention, "q_proj"):
        parts = {n: dict(getattr(attention, f"{n}_proj").named_parameters()) for n in "qkvo"}
        heads, kv_heads = (len(parts[n]["weight"]) // head_dim for n in "qk")
        uses = getattr(attention.config, "ragged", None) or [heads // kv_heads] * kv_heads
    elif needed or attention.o_proj.bias is not None:
        # llama.cpp cannot store a bias for a layer without attention.
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
            if part in "qk" and row.llama:
                # transformers rotates a head's first half with its second, llama.cpp pairs.
                halves = tensor.unflatten(0, (-1, 2, head_dim // 2))
                tensor = halves.transpose(1, 2).flatten(0, 2)
            tensors[f"attn_{'output' if part == 'o' else part}.{name}"] = tensor
    return sum(uses), sum(uses) // size if len(set(uses)) > 1 else len(uses), tensors
