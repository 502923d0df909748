"""Hooks on the consumers of sites: statistics of their inputs, and factors for gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sos_deap.models.mixtures import squared_outputs
from sos_deap.models.quantised import dequantised
from sos_deap.models.sites import EXPERTS, Site


@dataclass
class Inputs:
    """Statistics of the input of a site's consumer over tokens, by unit, in float64.

    Of a mixture, ``products`` has the squared norm of what each expert adds to the output.

    :param total: sum over tokens of each input, (units, width).
    :param products: sum over tokens of the products of a unit's inputs, (units, width, width).
    :param norms: sum over batches of the Euclidean norm of each unit's inputs, (units,).
    :param tokens: number of tokens.
    :param batches: number of batches.
    """

    total: Tensor
    products: Tensor
    norms: Tensor
    tokens: int = 0
    batches: int = 0

    @property
    def squares(self) -> Tensor:
        """Sum over tokens of the square of each input, (units, width)."""
        return self.products.diagonal(dim1=1, dim2=2)

    @property
    def variance(self) -> Tensor:
        """Unbiased variance over tokens of each input, (units, width)."""
        deviations = self.squares - self.total.square() / self.tokens
        return deviations.clamp(min=0) / max(1, self.tokens - 1)

    def add(self, states: Tensor) -> None:
        """Add the tokens of a batch.

        :param states: the consumer's input, (..., units * width).
        """
        units, width = self.total.shape
        tokens = states.detach().double().reshape(-1, units, width)
        if width == 1:  # thousands of products of one row and one column are slow
            products = tokens.square().sum(0)[..., None]
        else:
            by_unit = tokens.transpose(0, 1)
            products = by_unit.mT @ by_unit
        self.tokens += len(tokens)
        self.batches += 1
        self.total += tokens.sum(0)
        self.products += products
        self.norms += products.diagonal(dim1=1, dim2=2).sum(1).sqrt()


def consumer_weight(consumer: Any) -> Tensor:
    """Return the weight of a projection, (outputs, inputs).

    It is in the memory of the module, unless that has int8 weights.
    """
    weight = dequantised(consumer.weight).detach()
    return weight.T if isinstance(consumer, Conv1D) else weight  # Conv1D stores (in, out)


def consumer_weights(model: nn.Module, site: Site) -> Tensor:
    """Return the weights of a site's consumer, (outputs, units, width), in float64.

    Of a mixture they are 1, since what is recorded of experts is their output.
    """
    if site.kind == EXPERTS:
        device = next(model.parameters()).device
        return torch.ones(1, site.units, 1, dtype=torch.float64, device=device)
    weight = consumer_weight(model.get_submodule(site.consumer)).double()
    return weight.reshape(len(weight), site.units, site.width)


@contextmanager
def hooked(
    model: nn.Module, sites: Sequence[Site], hooks: Sequence[Callable[..., Any]]
) -> Iterator[None]:
    """Register one forward pre-hook per consumer, inside the context."""
    with ExitStack() as stack:
        for site, hook in zip(sites, hooks, strict=True):
            consumer = model.get_submodule(site.consumer)
            stack.callback(consumer.register_forward_pre_hook(hook).remove)
        yield


@contextmanager
def recorded_inputs(model: nn.Module, sites: Sequence[Site]) -> Iterator[list[Inputs]]:
    """Record statistics of the inputs of consumers, inside the context.

    :param model: the model; it is restored at the end, also after an exception.
    :param sites: the sites to record.
    :returns: the statistics of each site, updated by every forward pass.
    """
    device = next(model.parameters()).device

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=device)

    every = [
        Inputs(
            zeros(site.units, site.width),
            zeros(site.units, site.width, site.width),
            zeros(site.units),
        )
        for site in sites
    ]

    def record(inputs: Inputs, module: nn.Module, given: tuple[Tensor, ...]) -> None:
        inputs.add(given[0])

    def record_experts(inputs: Inputs, module: nn.Module, given: tuple[Tensor, ...]) -> None:
        inputs.tokens += len(given[0])
        inputs.products[:, 0, 0] += squared_outputs(module, given, len(inputs.products))

    hooks = [
        partial(record_experts if site.kind == EXPERTS else record, inputs)
        for site, inputs in zip(sites, every, strict=True)
    ]
    with hooked(model, sites, hooks):
        yield every


@contextmanager
def gates(model: nn.Module, sites: Sequence[Site]) -> Iterator[list[Tensor]]:
    """Multiply the output of each unit by a factor of 1 that requires a gradient.

    Inside the context the model's parameters require no gradients.

    :param model: the model; it is restored at the end, also after an exception.
    :param sites: the sites.
    :returns: the factors of each site, (units,), in float32.
    """
    device = next(model.parameters()).device
    factors = [torch.ones(site.units, device=device, requires_grad=True) for site in sites]

    def scale(
        factor: Tensor, width: int, module: nn.Module, given: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        states, *rest = given
        # In float32, whatever the model's dtype: a gradient is a sum over many tokens.
        scaled = states.float() * factor.repeat_interleave(width)
        return (scaled.to(states.dtype), *rest)

    def scale_experts(
        factor: Tensor, width: int, module: nn.Module, given: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        states, indices, weights, *rest = given
        return (states, indices, (weights.float() * factor[indices]).to(weights.dtype), *rest)

    hooks = [
        partial(scale_experts if site.kind == EXPERTS else scale, factor, site.width)
        for factor, site in zip(factors, sites, strict=True)
    ]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with ExitStack() as stack:
        for parameter in trainable:
            stack.callback(parameter.requires_grad_, True)
            parameter.requires_grad_(False)
        stack.enter_context(hooked(model, sites, hooks))
        yield factors
