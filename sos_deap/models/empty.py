"""Modules of sub-layers without any unit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.pytorch_utils import Conv1D

from sos_deap.models.family import Family


class EmptyLinear(nn.Linear):
    """A projection of a site without units: without inputs (only its bias remains), or outputs.

    It is a subclass because dynamic quantisation converts exactly the type ``nn.Linear`` and fails
    on a projection without inputs or outputs.
    """


class EmptyConv1D(Conv1D):
    """A ``Conv1D`` of a site without units: without inputs (only its bias remains), or outputs.

    The stock class fails without inputs.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the bias for each token.

        :param x: (batch, tokens, inputs), with no inputs or for a projection without outputs.
        :returns: (batch, tokens, outputs).
        """
        return nn.functional.linear(x, self.weight.T, self.bias)


#: What replaces a projection of a site without units, by the type of the projection.
EMPTY: dict[type, type[nn.Module]] = {nn.Linear: EmptyLinear, Conv1D: EmptyConv1D}


class EmptyAttention(nn.Module):
    """Attention without heads: returns zeros, or the bias of the output projection.

    :param output: the output projection, without inputs, by its name; empty if the output
        projection is outside the attention module. Its empty weight is saved, so that the stock
        class finds a mismatch instead of loading the model.
    :param layer: index of the layer in the key/value cache; ``None`` without a cache.
    :param adds_residual: whether the second argument is added to the output.
    :param norm: the norm of the sum of input and output, by its name, if there is one.
    """

    def __init__(
        self,
        output: dict[str, nn.Module],
        layer: int | None,
        adds_residual: bool = False,
        norm: dict[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.layer_idx, self.adds_residual = layer, adds_residual
        self._output, self._norm = tuple(output), tuple(norm or ())
        for name, module in (output | (norm or {})).items():
            self.add_module(name, module)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Return the output and ``None`` for the attention weights, as stock attention does.

        :param hidden_states: (batch, tokens, hidden size).
        :returns: the output, (batch, tokens, hidden size), or (batch, tokens, 0) if the output
            projection follows; and ``None``.
        """
        cross = any(
            kwargs.get(name) is not None for name in ("key_value_states", "encoder_hidden_states")
        )
        for cache in (value for value in kwargs.values() if isinstance(value, Cache)):
            if self.layer_idx is not None and not cross:
                # The cache counts tokens by what a layer stores: one number per token suffices.
                own = getattr(cache, "self_attention_cache", cache)
                token = hidden_states.new_zeros(len(hidden_states), 1, hidden_states.shape[1], 1)
                own.update(token, token, self.layer_idx)
        # The output depends on the input, so that the parameters before it have gradients (of 0):
        # distributed training fails for parameters without one.
        output = hidden_states[..., :0]
        for name in self._output:
            output = getattr(self, name)(output)
        for name in self._norm:
            output = getattr(self, name)(hidden_states + output)
        return output + args[0] if self.adds_residual else output, None


class EmptyBiasedAttention(EmptyAttention):
    """Attention without heads that returns the position bias that later layers read, as T5's does.

    :param attention: the stock attention module, without projections, which computes the bias.
    """

    def __init__(self, attention: Any, output: dict[str, nn.Module], layer: int | None) -> None:
        super().__init__(output, layer)
        plain = (name for name, value in vars(attention).items() if type(value) in (bool, int))
        for name in (*plain, "_relative_position_bucket"):
            if name not in vars(self):
                setattr(self, name, getattr(attention, name))
        self._bias_of = type(attention).compute_bias
        for name, module in attention.named_children():
            self.add_module(name, module)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Return the output, the position bias, and ``None`` for the attention weights.

        :param hidden_states: (batch, tokens, hidden size).
        """
        bias, cache = kwargs.get("position_bias"), kwargs.get("past_key_values")
        if bias is None and self.has_relative_attention_bias:
            tokens, seen = hidden_states.shape[1], 0
            if cache is not None and self.layer_idx is not None:
                seen = cache.get_seq_length(self.layer_idx)
            bias = self._bias_of(
                self, tokens, tokens + seen, device=hidden_states.device, past_seen_tokens=seen
            )
        output, weights = super().forward(hidden_states, *args, **kwargs)
        return output, bias, weights


class NoRouter(nn.Module):
    """The router of a mixture without experts: it chooses none for each token.

    :param router: the stock router; an empty weight is saved, so that the stock class finds a
        mismatch instead of loading the model.
    """

    def __init__(self, router: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(router.weight.detach()[:0].clone(), router.weight.requires_grad)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, weights and indices of no experts, each of shape (tokens, 0).

        :param hidden_states: (..., hidden size).
        """
        none = nn.functional.linear(hidden_states.flatten(0, -2), self.weight)
        return none, none, none.long()


class NoExperts(nn.Module):
    """The experts of a mixture without experts: it returns zeros."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return zeros in the shape of the hidden states."""
        return torch.zeros_like(hidden_states)


def empty_attention(attention: Any, family: Family, output: nn.Module | None) -> EmptyAttention:
    """Return what replaces an attention module that keeps no head.

    :param attention: the attention module.
    :param family: its architecture.
    :param output: the output projection without inputs; ``None`` if it is outside the module.
    """
    own = {} if output is None else {family.output: output}
    layer = getattr(attention, "layer_idx", getattr(attention, "layer_id", None))
    if family.returns_bias:
        return EmptyBiasedAttention(attention, own, layer)
    norm = {family.norm: attention.get_submodule(family.norm)} if family.norm else {}
    return EmptyAttention(own, layer, family.adds_residual, norm)
