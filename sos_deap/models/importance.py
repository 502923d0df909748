"""Importances of attention heads from one pass: by weights, activations or gradients.

The scale of a layer's activations grows with depth, so all importances but the gradient are
standardised within their layer, as in FLAP (An et al., 2024). The gradient is in units of the loss,
which are the same in all layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from sos_deap.errors import InputError, unknown
from sos_deap.models.activations import Inputs, gates, output_weights, recorded_inputs
from sos_deap.models.genes import HeadMap


class Text(Protocol):
    """The calibration text: the examples of a task."""

    @property
    def name(self) -> str:
        """The name of the task, for error messages."""

    def __len__(self) -> int:
        """The number of examples."""

    def score(self, model: Any, examples: slice, sub_models: int) -> Any:
        """Run the model on some examples; the returned value is not used here."""


@runtime_checkable
class TextWithLoss(Text, Protocol):
    """Calibration text with a differentiable loss."""

    def loss(self, model: Any, examples: slice) -> Tensor:
        """Return the model's loss on some examples, a scalar that requires a gradient."""


def magnitude(model: nn.Module, head_map: HeadMap, text: Text) -> list[Tensor]:
    """Compute the norm of each head's weights in the output projection; no text is read.

    Li et al. (2017) rank filters by the L1 norm; this is the Euclidean norm, standardised over the
    layer's heads.
    """
    norms = (output_weights(model, layer).square().sum((0, 2)).sqrt() for layer in head_map.layers)
    return [_standardised(norm[:, None]) for norm in norms]


def wanda(weights: Tensor, inputs: Inputs) -> Tensor:
    """Compute |W| * ||x||, weights times the norm of their inputs (Sun et al., 2024), per head.

    As in FLAP's code, where it is called WIFN: a channel's mean over the outputs, standardised over
    the layer's channels, and the mean over a head's channels.
    """
    return _standardised(weights.abs().mean(0) * inputs.squares.sqrt())


def flap(weights: Tensor, inputs: Inputs) -> Tensor:
    """Compute the weighted fluctuation of each head's channels (FLAP, An et al., 2024).

    The variance of each channel times the squared norm of its weights, standardised over the
    layer's channels, and the mean over a head's channels. The bias with which FLAP compensates
    removed channels is not implemented.
    """
    return _standardised(weights.square().sum(0) * inputs.variance)


def output(weights: Tensor, inputs: Inputs) -> Tensor:
    """Compute the root mean square, over tokens, of the norm of what a head adds to the output.

    Standardised over the layer's heads.
    """
    added = torch.einsum("ohd,hde,ohe->h", weights, inputs.products, weights)
    return _standardised((added.clamp(min=0) / inputs.tokens).sqrt()[:, None])


def taylor(model: nn.Module, head_map: HeadMap, text: TextWithLoss) -> list[Tensor]:
    """Estimate to first order how removing a head changes the loss (Michel et al., 2019).

    The derivative of the loss by a factor on the head's output, its absolute value for each
    example, and the mean over examples. Michel et al. divide by the layer's Euclidean norm; here
    the values stay in units of the loss, as in LLM-Pruner (Ma et al., 2023).
    """
    # enable_grad() alone does not end the inference mode of a caller.
    with torch.inference_mode(False), torch.enable_grad(), gates(model, head_map) as factors:
        means = [torch.zeros_like(factor, dtype=torch.float64) for factor in factors]
        for example in range(len(text)):
            loss = text.loss(model, slice(example, example + 1))
            # Zeros for cross-attention that does not run: removing its heads changes nothing.
            gradients = torch.autograd.grad(loss, factors, materialize_grads=True)
            means = [m + g.abs().double() for m, g in zip(means, gradients, strict=True)]
    return [mean / len(text) for mean in means]


@dataclass(frozen=True)
class Importance:
    """A row of :data:`IMPORTANCES`.

    :param of: computes for each layer the importances of its heads, from a model, its head map and
        the calibration text.
    :param description: definition and source, in one line.
    :param passes: its cost in forward passes over all examples; a pass with gradients counts as
        three, since a backward pass takes about twice the operations of a forward pass.
    :param backward: whether it computes gradients, for which the text must be a
        :class:`TextWithLoss`.
    """

    of: Callable[[Any, HeadMap, Any], list[Tensor]]
    description: str
    passes: int = 1
    backward: bool = False


def _by_inputs(
    score: Callable[[Tensor, Inputs], Tensor], model: nn.Module, head_map: HeadMap, text: Text
) -> list[Tensor]:
    """Compute importances from the weights and inputs of the output projections, in one pass."""
    with torch.inference_mode(), recorded_inputs(model, head_map) as inputs:
        for example in range(len(text)):  # one at a time, so that none is padded
            text.score(model, slice(example, example + 1), 1)
        for layer, seen in zip(head_map.layers, inputs, strict=True):
            if not seen.tokens:
                raise InputError(
                    f"{text.name} does not run {layer.attention}, so there are no activations of "
                    "its heads: use the importance magnitude"
                )
        return [
            score(output_weights(model, layer), seen)
            for layer, seen in zip(head_map.layers, inputs, strict=True)
        ]


#: Importances by name.
IMPORTANCES: dict[str, Importance] = {
    "flap": Importance(
        partial(_by_inputs, flap),
        "variance of the inputs times squared weights (An et al., 2024, arXiv:2312.11983)",
    ),
    "magnitude": Importance(
        magnitude, "norm of the weights (Li et al., 2017, arXiv:1608.08710)", passes=0
    ),
    "output": Importance(
        partial(_by_inputs, output),
        "root mean square of what the head adds to the hidden state",
    ),
    "taylor": Importance(
        taylor,
        "absolute gradient of the loss by a mask on the head (Michel et al., 2019, "
        "arXiv:1905.10650; LLM-Pruner, Ma et al., 2023, arXiv:2305.11627)",
        passes=3,
        backward=True,
    ),
    "wanda": Importance(
        partial(_by_inputs, wanda),
        "weights times the norm of the inputs (Sun et al., 2024, arXiv:2306.11695)",
    ),
}


def checked_importance(name: str, text: Text) -> Importance:
    """Return a row of :data:`IMPORTANCES` after a check of the calibration text.

    :param name: a key of :data:`IMPORTANCES`.
    :param text: the calibration text.
    :raises InputError: for an unknown name, and if the importance needs a loss that the text does
        not have.
    """
    if name not in IMPORTANCES:
        raise unknown("importance", name, IMPORTANCES)
    if IMPORTANCES[name].backward and not isinstance(text, TextWithLoss):
        raise InputError(
            f"the importance {name} needs a loss with a gradient, and {text.name} has none: use "
            "another importance, or the task perplexity or kl"
        )
    return IMPORTANCES[name]


def importance(name: str, model: nn.Module, head_map: HeadMap, text: Text) -> list[float]:
    """Compute the importance of each gene of a model; the higher, the more removing it costs.

    :param name: a key of :data:`IMPORTANCES`.
    :param model: the dense model, in evaluation mode; it is restored, also after an exception.
    :param head_map: its head map. The importance of a group is the sum over its heads.
    :param text: the calibration text.
    :returns: one value per gene, in the order of the head map. Values of different importances
        cannot be compared.
    :raises InputError: for an unknown name, for text without the loss or the activations that the
        importance needs, and for values that are not finite.
    """
    per_head = checked_importance(name, text).of(model, head_map, text)
    genes = [
        value
        for layer, values in zip(head_map.layers, per_head, strict=True)
        for value in values.view(-1, head_map.heads_per_gene(layer)).sum(1).tolist()
    ]
    return checked_numbers(name, genes)


def checked_numbers(name: str, genes: list[float]) -> list[float]:
    """Return importances unchanged if all of them are finite.

    :param name: name of the importance, for the error message.
    :param genes: one value per gene.
    :raises InputError: if a value is not finite.
    """
    if invalid := [gene for gene, value in enumerate(genes) if not math.isfinite(value)]:
        raise InputError(
            f"the importance {name} of gene {invalid[0]} is {genes[invalid[0]]}, not a finite "
            "number: load the model in float32 or use another importance"
        )
    return genes


def _standardised(channels: Tensor) -> Tensor:
    """Standardise a layer's channels, (heads, head_dim), and return the mean of each head."""
    deviation = channels.std(correction=0).clamp(min=torch.finfo(channels.dtype).tiny)
    return ((channels - channels.mean()) / deviation).mean(1)
