"""Hooks on output projections: statistics of their inputs, and a factor per head for gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sos_deap.models.genes import HeadMap
from sos_deap.models.slicing import AttentionLayer


@dataclass
class Inputs:
    """Statistics of the input of an output projection over tokens, by head, in float64.

    :param total: sum over tokens of each channel, (heads, head_dim).
    :param products: sum over tokens of the products of a head's channels, (heads, head_dim,
        head_dim).
    :param tokens: number of tokens.
    """

    total: Tensor
    products: Tensor
    tokens: int = 0

    @property
    def squares(self) -> Tensor:
        """Sum over tokens of each channel's square, (heads, head_dim)."""
        return self.products.diagonal(dim1=1, dim2=2)

    @property
    def variance(self) -> Tensor:
        """Unbiased variance over tokens of each channel, (heads, head_dim)."""
        deviations = self.squares - self.total.square() / self.tokens
        return deviations.clamp(min=0) / max(1, self.tokens - 1)

    def add(self, context: Tensor) -> None:
        """Add the tokens of a batch.

        :param context: the projection's input, (..., heads * head_dim).
        """
        heads, width = self.total.shape
        channels = context.detach().double().reshape(-1, heads, width).transpose(0, 1)
        self.tokens += channels.shape[1]
        self.total += channels.sum(1)
        self.products += channels.mT @ channels


def output_weights(model: nn.Module, layer: AttentionLayer) -> Tensor:
    """Return the weights of a layer's output projection, (outputs, heads, head_dim), in float64."""
    projection: Any = model.get_submodule(layer.output)
    weight: Tensor = projection.weight.detach().double()
    weight = weight.T if isinstance(projection, Conv1D) else weight  # Conv1D stores (in, out)
    return weight.reshape(len(weight), layer.heads, layer.head_dim)


@contextmanager
def _hooked(
    model: nn.Module, head_map: HeadMap, hooks: Sequence[Callable[..., Any]]
) -> Iterator[None]:
    """Register one forward pre-hook per output projection, inside the context."""
    with ExitStack() as stack:
        for layer, hook in zip(head_map.layers, hooks, strict=True):
            projection = model.get_submodule(layer.output)
            stack.callback(projection.register_forward_pre_hook(hook).remove)
        yield


@contextmanager
def recorded_inputs(model: nn.Module, head_map: HeadMap) -> Iterator[list[Inputs]]:
    """Record statistics of the inputs of all output projections, inside the context.

    :param model: the model; it is restored at the end, also after an exception.
    :param head_map: its head map.
    :returns: the statistics of each layer, updated by every forward pass.
    """
    device = next(model.parameters()).device
    every = [
        Inputs(
            torch.zeros(layer.heads, layer.head_dim, dtype=torch.float64, device=device),
            torch.zeros(
                layer.heads, layer.head_dim, layer.head_dim, dtype=torch.float64, device=device
            ),
        )
        for layer in head_map.layers
    ]

    def record(inputs: Inputs, module: nn.Module, given: tuple[Tensor, ...]) -> None:
        inputs.add(given[0])

    with _hooked(model, head_map, [partial(record, inputs) for inputs in every]):
        yield every


@contextmanager
def gates(model: nn.Module, head_map: HeadMap) -> Iterator[list[Tensor]]:
    """Multiply the output of each head by a factor of 1 that requires a gradient.

    Inside the context the model's parameters require no gradients.

    :param model: the model; it is restored at the end, also after an exception.
    :param head_map: its head map.
    :returns: the factors of each layer, (heads,), in float32.
    """
    device = next(model.parameters()).device
    factors = [
        torch.ones(layer.heads, device=device, requires_grad=True) for layer in head_map.layers
    ]

    def scale(
        factor: Tensor, width: int, module: nn.Module, given: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        context, *rest = given
        # In float32, whatever the model's dtype: a gradient is a sum over many tokens.
        scaled = context.float() * factor.repeat_interleave(width)
        return (scaled.to(context.dtype), *rest)

    hooks = [
        partial(scale, factor, layer.head_dim)
        for factor, layer in zip(factors, head_map.layers, strict=True)
    ]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with ExitStack() as stack:
        for parameter in trainable:
            stack.callback(parameter.requires_grad_, True)
            parameter.requires_grad_(False)
        stack.enter_context(_hooked(model, head_map, hooks))
        yield factors
