"""Importances of heads and channels from one pass: by weights, activations or gradients.

The scale of a layer's activations grows with depth, so most importances are standardised within
their site, as in FLAP (An et al., 2024). The gradient is in units of the loss, which are the same
in all layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from sos_deap.errors import InputError, unknown
from sos_deap.models.activations import Inputs, consumer_weights, gates, recorded_inputs
from sos_deap.models.genes import GeneMap
from sos_deap.models.sites import EXPERTS, Site
from sos_deap.models.text import Text, run_layers
from sos_deap.progress import read_in_turn


class NamedText(Text, Protocol):
    """Calibration text with a name."""

    @property
    def name(self) -> str:
        """The name of the task, for error messages."""


@runtime_checkable
class TextWithLoss(NamedText, Protocol):
    """Calibration text with a differentiable loss."""

    def loss(self, model: Any, examples: slice) -> Tensor:
        """Return the model's loss on some examples, a scalar that requires a gradient."""


def magnitude(model: nn.Module, sites: Sequence[Site], text: Text) -> list[Tensor]:
    """Compute the norm of each unit's weights in the consumer; no text is read.

    Li et al. (2017) rank filters by the L1 norm; this is the Euclidean norm, standardised over the
    site's units.
    """
    norms = (consumer_weights(model, site).square().sum((0, 2)).sqrt() for site in sites)
    return [_standardised(norm[:, None]) for norm in norms]


def wanda(weights: Tensor, inputs: Inputs) -> Tensor:
    """Compute |W| * ||x||, weights times the norm of their inputs (Sun et al., 2024), per unit.

    As in FLAP's code, where it is called WIFN: an input's mean over the outputs, standardised over
    the site's inputs, and the mean over a unit's inputs.
    """
    return _standardised(weights.abs().mean(0) * inputs.squares.sqrt())


def flap(weights: Tensor, inputs: Inputs) -> Tensor:
    """Compute the weighted fluctuation of each unit's inputs (FLAP, An et al., 2024).

    The variance of each input times the squared norm of its weights, standardised over the site's
    inputs, and the mean over a unit's inputs. The bias with which FLAP compensates removed units is
    not implemented.
    """
    return _standardised(weights.square().sum(0) * inputs.variance)


def output(weights: Tensor, inputs: Inputs) -> Tensor:
    """Compute the root mean square, over tokens, of the norm of what a unit adds to the output.

    Standardised over the site's units.
    """
    added = torch.einsum("ohd,hde,ohe->h", weights, inputs.products, weights)
    return _standardised((added.clamp(min=0) / inputs.tokens).sqrt()[:, None])


def activation(weights: Tensor, inputs: Inputs) -> Tensor:
    """Compute the mean over batches of the norm of a unit's inputs (2SSP, Sandri et al., 2025).

    For channels this is equation 3 of the paper: the norm over the tokens of a sequence, and the
    mean over sequences. It is not standardised, and meant for units of one site.
    """
    return inputs.norms / inputs.batches


def taylor(model: nn.Module, sites: Sequence[Site], text: TextWithLoss) -> list[Tensor]:
    """Estimate to first order how removing a unit changes the loss (Michel et al., 2019).

    The derivative of the loss by a factor on the unit's output, its absolute value for each
    example, and the mean over examples. Michel et al. divide by the layer's Euclidean norm; here
    the values stay in units of the loss, as in LLM-Pruner (Ma et al., 2023).
    """
    # enable_grad() alone does not end the inference mode of a caller.
    with torch.inference_mode(False), torch.enable_grad(), gates(model, sites) as factors:
        means = [torch.zeros_like(factor, dtype=torch.float64) for factor in factors]
        for example in range(len(text)):
            loss = text.loss(model, slice(example, example + 1))
            # Zeros for cross-attention that does not run: removing its units changes nothing.
            gradients = torch.autograd.grad(loss, factors, materialize_grads=True)
            means = [m + g.abs().double() for m, g in zip(means, gradients, strict=True)]
    return [mean / len(text) for mean in means]


@dataclass(frozen=True)
class Importance:
    """A row of :data:`IMPORTANCES`.

    :param of: computes for each site the importances of its units, from a model, the sites and the
        calibration text.
    :param description: definition and source, in one line.
    :param passes: its cost in forward passes over all examples; a pass with gradients counts as
        three, since a backward pass takes about twice the operations of a forward pass.
    :param backward: whether it computes gradients, for which the text must be a
        :class:`TextWithLoss`.
    :param experts: whether it is defined for the experts of a mixture.
    :param standardised: whether values are relative to those of the site's other units. The
        importance of a gene is then the mean over its units, otherwise the sum.
    """

    of: Callable[[Any, Sequence[Site], Any], list[Tensor]]
    description: str
    passes: int = 1
    backward: bool = False
    experts: bool = False
    standardised: bool = True


def _by_inputs(
    score: Callable[[Tensor, Inputs], Tensor],
    model: nn.Module,
    sites: Sequence[Site],
    text: NamedText,
) -> list[Tensor]:
    """Compute importances from the weights and inputs of consumers, in one pass."""
    every = _recorded(model, sites, text)
    for site, seen in zip(sites, every, strict=True):
        if not seen.tokens:
            raise InputError(
                f"{text.name} does not run {site.module}, so its units have no activations: use "
                "the importance magnitude"
            )
    return [
        score(consumer_weights(model, site), seen) for site, seen in zip(sites, every, strict=True)
    ]


def _recorded(model: nn.Module, sites: Sequence[Site], text: Text) -> list[Inputs]:
    """Record the inputs of consumers over all examples."""
    with torch.inference_mode(), recorded_inputs(model, sites) as inputs:
        # One at a time, so that none is padded.
        examples = [slice(number, number + 1) for number in range(len(text))]
        for example in read_in_turn(examples, [text.seqlen] * len(text)):
            run_layers(model, text, example)
        return inputs


def channel_order(model: nn.Module, genes: GeneMap, text: Text) -> list[list[int]]:
    """Return for each feed-forward site its channels by decreasing importance.

    The importance is the norm of a channel's weights times the root mean square of its activation:
    the channel's part of the energy of the output, as in Wanda (Sun et al., 2024). Only channels of
    one site are compared.

    :param model: the dense model, in evaluation mode; it is restored, also after an exception.
    :param genes: its gene map, in any order of the channels.
    :param text: the calibration text.
    """
    sites = genes.feed_forward
    orders = []
    for site, seen in zip(sites, _recorded(model, sites, text), strict=True):
        energy = consumer_weights(model, site).square().sum((0, 2))
        if seen.tokens:  # a text may not run a decoder
            energy = energy * seen.squares.sum(1) / seen.tokens
        # On the CPU and stable, so that equal values keep their order on every device.
        orders.append(energy.cpu().argsort(descending=True, stable=True).tolist())
    return orders


#: Importances by name.
IMPORTANCES: dict[str, Importance] = {
    "activation": Importance(
        partial(_by_inputs, activation),
        "norm of the inputs, for channels of one layer (2SSP, Sandri et al., 2025, "
        "arXiv:2501.17771)",
        standardised=False,
    ),
    "flap": Importance(
        partial(_by_inputs, flap),
        "variance of the inputs times squared weights (An et al., 2024, arXiv:2312.11983)",
    ),
    "magnitude": Importance(
        magnitude, "norm of the weights (Li et al., 2017, arXiv:1608.08710)", passes=0
    ),
    "output": Importance(
        partial(_by_inputs, output),
        "root mean square of what the unit adds to the hidden state",
        experts=True,
    ),
    "taylor": Importance(
        taylor,
        "absolute gradient of the loss by a mask on the unit (Michel et al., 2019, "
        "arXiv:1905.10650; LLM-Pruner, Ma et al., 2023, arXiv:2305.11627)",
        passes=3,
        backward=True,
        experts=True,
        standardised=False,
    ),
    "wanda": Importance(
        partial(_by_inputs, wanda),
        "weights times the norm of the inputs (Sun et al., 2024, arXiv:2306.11695)",
    ),
}


def checked_importance(name: str, text: NamedText, genes: GeneMap) -> Importance:
    """Return a row of :data:`IMPORTANCES` after a check of the calibration text and the genes.

    :param name: a key of :data:`IMPORTANCES`.
    :param text: the calibration text.
    :param genes: the model's gene map.
    :raises InputError: for an unknown name, if the importance needs a loss that the text does not
        have, and if it is not defined for experts and these are genes.
    """
    if name not in IMPORTANCES:
        raise unknown("importance", name, IMPORTANCES)
    if IMPORTANCES[name].backward and not isinstance(text, TextWithLoss):
        raise InputError(
            f"the importance {name} needs a loss with a gradient, and {text.name} has none: use "
            "another importance, or the task perplexity or kl"
        )
    experts = any(
        site.kind == EXPERTS and own
        for site, own in zip(genes.sites, genes.site_genes, strict=True)
    )
    if experts and not IMPORTANCES[name].experts:
        others = ", ".join(other for other, row in IMPORTANCES.items() if row.experts)
        raise InputError(
            f"the importance {name} is defined by the projection that heads and channels enter, "
            f"which experts lack: use {others} or ablation"
        )
    return IMPORTANCES[name]


def importance(name: str, model: nn.Module, genes: GeneMap, text: NamedText) -> list[float]:
    """Compute the importance of each gene of a model; the higher, the more removing it costs.

    :param name: a key of :data:`IMPORTANCES`.
    :param model: the dense model, in evaluation mode; it is restored, also after an exception.
    :param genes: its gene map. The importance of a gene is the sum over its units, or the mean if
        the values are standardised.
    :param text: the calibration text.
    :returns: one value per gene, in the order of the gene map. Values of different importances
        cannot be compared.
    :raises InputError: for an unknown name, for text without the loss or the activations that the
        importance needs, for experts if it is not defined for them, and for values that are not
        finite.
    """
    row = checked_importance(name, text, genes)
    touched = [number for number, own in enumerate(genes.site_genes) if own]
    per_unit = row.of(model, [genes.sites[number] for number in touched], text)
    totals, counts = [0.0] * len(genes), [0] * len(genes)
    for number, values in zip(touched, per_unit, strict=True):
        for gene, value in zip(genes.gene_of[number], values.tolist(), strict=True):
            if gene >= 0:
                totals[gene] += value
                counts[gene] += 1
    if row.standardised:
        totals = [total / count for total, count in zip(totals, counts, strict=True)]
    return checked_numbers(name, totals)


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


def _standardised(inputs: Tensor) -> Tensor:
    """Standardise the inputs of a site, (units, width), and return the mean of each unit."""
    deviation = inputs.std(correction=0).clamp(min=torch.finfo(inputs.dtype).tiny)
    return ((inputs - inputs.mean()) / deviation).mean(1)
