"""Causal attention in bfloat16 on a CPU, faster than PyTorch's.

PyTorch's fused kernel computes the scores in single precision. Computed as matrix products in
bfloat16, one block of queries at a time, they take about two thirds of the time on CPUs that have
bfloat16 matrix products in hardware.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "sos_causal_blocks"
_BLOCKS = 8  # of queries; keys after a block's last query are not multiplied


@contextmanager
def fast_attention(model: Any) -> Iterator[None]:
    """Use the faster attention inside the context, if the model qualifies.

    :param model: the model; it qualifies in bfloat16 on a CPU with PyTorch's fused attention
        (``"sdpa"``). It is restored at the end, also after an exception.
    """
    qualifies = (
        model.device.type == "cpu"
        and model.dtype == torch.bfloat16
        and model.config._attn_implementation == "sdpa"
    )
    if not qualifies:
        yield
        return
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Compute attention with the signature of transformers' attention functions.

    :param query: (batch, heads, tokens, head_dim), as ``key`` and ``value`` with their own heads.
    """
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    plain = attention_mask is None and causal and query.shape[2] == key.shape[2]
    if not plain or kwargs.get("dropout") or key.shape[-1] != value.shape[-1]:
        sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
        return sdpa(module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    scaling = kwargs.get("scaling")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return causal_attention(query, key, value, scale), None


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Compute softmax attention in which a token attends to itself and to earlier tokens.

    :param query: (batch, heads, tokens, head_dim).
    :param key: (batch, heads, tokens, head_dim).
    :param value: (batch, heads, tokens, head_dim).
    :param scale: factor of the scores.
    :returns: (batch, tokens, heads, head_dim), contiguous.
    """
    batch, heads, tokens, head_dim = query.shape
    flat = (batch * heads, tokens, head_dim)
    query, key, value = (states.reshape(flat) for states in (query, key, value))
    out = query.new_empty(batch, tokens, heads, head_dim)
    step = max(32, -(-tokens // _BLOCKS))
    later = query.new_full((step, step), -torch.inf).triu(1)
    for start in range(0, tokens, step):
        end = min(start + step, tokens)
        scores = torch.bmm(query[:, start:end] * scale, key[:, :end].transpose(1, 2))
        # Only the block's own keys include tokens after a query.
        scores[:, :, start:] += later[: end - start, : end - start]
        block = torch.bmm(scores.softmax(-1), value[:, :end])
        out[:, start:end] = block.view(batch, heads, -1, head_dim).transpose(1, 2)
    return out
