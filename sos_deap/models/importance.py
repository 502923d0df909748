"""What each head is worth at one look: by its weights, what it computes on text, or gradients.

All but the gradient tell heads of one layer apart, and their scale says nothing across layers: the
hidden state grows from layer to layer. So each is standardised within its layer, as FLAP does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sos_deap.errors import InputError, unknown
from sos_deap.models.heads import HeadMap
from sos_deap.models.slicing import AttentionLayer


class Text(Protocol):
    """What a model reads for its importances: the examples of a task."""

    @property
    def name(self) -> str:
        """What to call it in errors."""

    def __len__(self) -> int:
        """How many examples."""

    def score(self, model: Any, examples: slice, sub_models: int) -> Any:
        """Let the model read some of them; what is returned does not matter here."""


@runtime_checkable
class TextWithLoss(Text, Protocol):
    """Text with a loss that has a gradient."""

    def loss(self, model: Any, examples: slice) -> Tensor:
        """The model's loss on some examples, a scalar with its gradient."""


@dataclass
class Inputs:
    """What an output projection was given over all tokens, head by head; in float64.

    :param total: the sum, (heads, head_dim).
    :param products: the sum of the products of a head's channels, (heads, head_dim, head_dim).
    :param tokens: how many.
    """

    total: Tensor
    products: Tensor
    tokens: int = 0

    @property
    def squares(self) -> Tensor:
        """The sum of each channel's square, (heads, head_dim)."""
        return self.products.diagonal(dim1=1, dim2=2)

    @property
    def variance(self) -> Tensor:
        """Of each channel over the tokens, (heads, head_dim)."""
        deviations = self.squares - self.total.square() / self.tokens
        return deviations.clamp(min=0) / max(1, self.tokens - 1)

    def add(self, context: Tensor) -> None:
        """Take in a batch, (..., heads * head_dim)."""
        heads, width = self.total.shape
        channels = context.detach().double().reshape(-1, heads, width).transpose(0, 1)
        self.tokens += channels.shape[1]
        self.total += channels.sum(1)
        self.products += channels.mT @ channels


def magnitude(model: nn.Module, heads: HeadMap, text: Text) -> list[Tensor]:
    """The norm of a head's weights in the output projection: no text, no pass.

    As filters are ranked by Li et al. (2017), with the Euclidean norm; standardised over the
    layer's heads.
    """
    norms = (_weights(model, layer).square().sum((0, 2)).sqrt() for layer in heads.layers)
    return [_standardised(norm[:, None]) for norm in norms]


def wanda(weights: Tensor, inputs: Inputs) -> Tensor:
    """|W| * ||x||, weights by the norm of what they are given (Sun et al., 2024), per head.

    As in FLAP's code, which calls it WIFN: a channel's mean over the outputs, standardised over the
    layer's channels, and a head's mean of that.
    """
    return _standardised(weights.abs().mean(0) * inputs.squares.sqrt())


def flap(weights: Tensor, inputs: Inputs) -> Tensor:
    """The fluctuation of a head's channels by their weights (FLAP, An et al., 2024).

    The variance of each channel times the squared norm of its weights, standardised over the
    layer's channels; a head's mean of that. FLAP's other half, a bias in place of what was removed,
    is not here.
    """
    return _standardised(weights.square().sum(0) * inputs.variance)


def output(weights: Tensor, inputs: Inputs) -> Tensor:
    """The root mean square of the norm of what a head adds, standardised over the layer's heads."""
    added = torch.einsum("ohd,hde,ohe->h", weights, inputs.products, weights)
    return _standardised((added.clamp(min=0) / inputs.tokens).sqrt()[:, None])


def taylor(model: nn.Module, heads: HeadMap, text: TextWithLoss) -> list[Tensor]:
    """What removing a head does to the loss, to first order (Michel, Levy and Neubig, 2019).

    The gradient of the loss by a factor on the head's output, its absolute value for each example,
    the mean over examples. That paper divides by the layer's Euclidean norm; here the numbers stay
    in units of the loss, which are the same in every layer, as LLM-Pruner's (Ma et al., 2023).
    """
    # Also for a caller in inference mode, which enable_grad() alone does not leave.
    with torch.inference_mode(False), torch.enable_grad(), _gates(model, heads) as gates:
        means = [torch.zeros_like(gate, dtype=torch.float64) for gate in gates]
        for example in range(len(text)):
            loss = text.loss(model, slice(example, example + 1))
            # Zeros for cross-attention that was not run: without it nothing changes.
            gradients = torch.autograd.grad(loss, gates, materialize_grads=True)
            means = [m + g.abs().double() for m, g in zip(means, gradients, strict=True)]
    return [mean / len(text) for mean in means]


@dataclass(frozen=True)
class Importance:
    """A row of :data:`IMPORTANCES`.

    :param of: from a model, its head map and text to importances of the heads of each layer.
    :param description: what it is and whose, in one line.
    :param passes: what it costs, in forward passes over all examples; one with gradients counts as
        three, as a backward pass takes about twice the operations of a forward one.
    :param backward: whether it computes gradients: the loss of :class:`TextWithLoss` is for those,
        and they are not for forward-only budgets.
    """

    of: Callable[[Any, HeadMap, Any], list[Tensor]]
    description: str
    passes: int = 1
    backward: bool = False


def _by_inputs(
    score: Callable[[Tensor, Inputs], Tensor], model: nn.Module, heads: HeadMap, text: Text
) -> list[Tensor]:
    """Importances from the output projections' weights and inputs, in one pass over the text."""
    with torch.inference_mode(), _watched(model, heads) as inputs:
        for example in range(len(text)):  # one at a time, so that none is padded
            text.score(model, slice(example, example + 1), 1)
        for layer, seen in zip(heads.layers, inputs, strict=True):
            if not seen.tokens:
                raise InputError(
                    f"{text.name} does not run {layer.attention}: its heads have no importance by "
                    "what they compute; use the importance magnitude"
                )
        return [
            score(_weights(model, layer), seen)
            for layer, seen in zip(heads.layers, inputs, strict=True)
        ]


#: Importances by name.
IMPORTANCES: dict[str, Importance] = {
    "flap": Importance(
        partial(_by_inputs, flap),
        "variance of the inputs by squared weights (An et al., 2024, arXiv:2312.11983)",
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
        "weights by the norm of the inputs (Sun et al., 2024, arXiv:2306.11695)",
    ),
}


def checked_importance(name: str, text: Text) -> Importance:
    """The row of a name.

    :raises InputError: for a name that is none, and for text without the loss that it needs.
    """
    if name not in IMPORTANCES:
        raise unknown("importance", name, IMPORTANCES)
    if IMPORTANCES[name].backward and not isinstance(text, TextWithLoss):
        raise InputError(
            f"the importance {name} needs a loss with a gradient, and {text.name} has none: use "
            "another importance, or the task perplexity or kl"
        )
    return IMPORTANCES[name]


def importance(name: str, model: nn.Module, heads: HeadMap, text: Text) -> list[float]:
    """How much each gene of a model matters: the greater, the more is lost without it.

    :param name: a key of :data:`IMPORTANCES`.
    :param model: the whole model, in evaluation mode; left as found, after an exception too.
    :param heads: its head map; a gene for a group of heads has the sum of theirs.
    :param text: what it reads.
    :returns: a number for each gene, in the order of the head map. Numbers of one importance can be
        compared, of two they cannot.
    :raises InputError: for an unknown name, text that does not serve, or numbers that are not
        finite.
    """
    per_head = checked_importance(name, text).of(model, heads, text)
    genes = [
        value
        for layer, values in zip(heads.layers, per_head, strict=True)
        for value in values.view(-1, heads.heads_per_gene(layer)).sum(1).tolist()
    ]
    return checked_numbers(name, genes)


def checked_numbers(name: str, genes: list[float]) -> list[float]:
    """An importance of each gene; raises :class:`InputError` if one is not finite."""
    if broken := [gene for gene, value in enumerate(genes) if not math.isfinite(value)]:
        raise InputError(
            f"the importance {name} of gene {broken[0]} is {genes[broken[0]]}: the model computes "
            "what is no number here; load it in float32 or use another importance"
        )
    return genes


def _standardised(channels: Tensor) -> Tensor:
    """Each head's mean of a layer's channels, (heads, head_dim), in their standard deviations."""
    deviation = channels.std(correction=0).clamp(min=torch.finfo(channels.dtype).tiny)
    return ((channels - channels.mean()) / deviation).mean(1)


def _weights(model: nn.Module, layer: AttentionLayer) -> Tensor:
    """An output projection's weights, (outputs, heads, head_dim), in float64."""
    projection: Any = model.get_submodule(layer.output)
    weight: Tensor = projection.weight.detach().double()
    weight = weight.T if isinstance(projection, Conv1D) else weight  # Conv1D stores (in, out)
    return weight.reshape(len(weight), layer.heads, layer.head_dim)


@contextmanager
def _hooked(
    model: nn.Module, heads: HeadMap, hooks: Sequence[Callable[..., Any]]
) -> Iterator[None]:
    """Let a hook of its own see what each output projection is given."""
    with ExitStack() as stack:
        for layer, hook in zip(heads.layers, hooks, strict=True):
            projection = model.get_submodule(layer.output)
            stack.callback(projection.register_forward_pre_hook(hook).remove)
        yield


@contextmanager
def _watched(model: nn.Module, heads: HeadMap) -> Iterator[list[Inputs]]:
    """Gather what the output projections are given."""
    device = next(model.parameters()).device
    every = [
        Inputs(
            torch.zeros(layer.heads, layer.head_dim, dtype=torch.float64, device=device),
            torch.zeros(
                layer.heads, layer.head_dim, layer.head_dim, dtype=torch.float64, device=device
            ),
        )
        for layer in heads.layers
    ]

    def watch(inputs: Inputs, module: nn.Module, given: tuple[Tensor, ...]) -> None:
        inputs.add(given[0])

    with _hooked(model, heads, [partial(watch, inputs) for inputs in every]):
        yield every


@contextmanager
def _gates(model: nn.Module, heads: HeadMap) -> Iterator[list[Tensor]]:
    """Give every head a factor of one, layer by layer, of which alone there is a gradient."""
    device = next(model.parameters()).device
    gates = [torch.ones(layer.heads, device=device, requires_grad=True) for layer in heads.layers]

    def scale(
        gate: Tensor, width: int, module: nn.Module, given: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        context, *rest = given
        # In float32, whatever the model computes in: a gradient is a sum over many tokens.
        scaled = context.float() * gate.repeat_interleave(width)
        return (scaled.to(context.dtype), *rest)

    hooks = [
        partial(scale, gate, layer.head_dim)
        for gate, layer in zip(gates, heads.layers, strict=True)
    ]
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with ExitStack() as stack:
        for parameter in learned:
            stack.callback(parameter.requires_grad_, True)
            parameter.requires_grad_(False)
        stack.enter_context(_hooked(model, heads, hooks))
        yield gates
