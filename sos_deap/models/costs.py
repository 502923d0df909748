"""Costs of sub-models: the share of heads or parameters removed, and floating-point operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from sos_deap.errors import InputError, unknown
from sos_deap.models.families import why_unsliceable
from sos_deap.models.genes import HeadMap
from sos_deap.models.slicing import AttentionLayer, features, head_slices

#: From a chromosome to its sparsity, between 0 (nothing removed) and 1.
Sparsity = Callable[[Sequence[int]], float]

#: Default of S, the maximum sparsity, by what sparsity is a share of. In the paper's Table II, the
#: sizes of LLaMA-2 7B imply that 317 of 1,024 heads were removed, which are 9.5 % of the bytes.
MAX_SPARSITY = {"heads": 0.31, "parameters": 0.095}


def _share_of_heads(model: PreTrainedModel, head_map: HeadMap) -> Sparsity:
    """The share of genes that are 0."""
    return lambda genes: (len(genes) - sum(genes)) / len(genes) if len(genes) else 0.0


def _share_of_parameters(model: PreTrainedModel, head_map: HeadMap) -> Sparsity:
    """The share of the model's parameters that slicing removes.

    A key/value head is removed with the last of its query heads, so the parameters that a gene
    stands for depend on the other genes of its layer. The share of bytes is the same, since all
    weights have one dtype.
    """
    if why := why_unsliceable(head_map.family, model.config):
        raise InputError(
            f"a {model.config.model_type} model cannot be sliced, so its sparsity_of parameters is "
            f"undefined: {why}; use sparsity_of heads"
        )
    total = sum(parameter.numel() for parameter in model.parameters())
    cached: list[dict[tuple[int, int], int]] = [{} for _ in head_map.layers]

    def removed(number: int, layer: AttentionLayer, keep: Sequence[int]) -> int:
        # All heads of a layer have one width: their numbers determine its parameters.
        size = len(keep), len(layer.kv_counts(keep))
        if size not in cached[number]:
            cached[number][size] = _removed_parameters(model, head_map, layer, keep)
        return cached[number][size]

    def share(genes: Sequence[int]) -> float:
        kept = zip(head_map.layers, head_map.kept_heads(genes), strict=True)
        return sum(removed(number, *pair) for number, pair in enumerate(kept)) / total

    return share


def _removed_parameters(
    model: nn.Module, head_map: HeadMap, layer: AttentionLayer, keep: Sequence[int]
) -> int:
    """The number of parameters that slicing a layer to some of its heads removes."""
    if len(keep) == layer.heads:
        return 0
    output, *producers = head_slices(model, head_map.family, layer, keep)
    outputs, inputs = features(output.module)
    removed = outputs * (inputs - len(output.kept))
    if not keep:  # the attention module is removed, except for the bias of the output projection
        own = _parameters(model.get_submodule(layer.attention))
        return own - _parameters(output.module) * head_map.family.output_inside + removed
    for part in producers:
        own, rows = _parameters(part.module), features(part.module)[0]
        removed += own // rows * (rows - len(part.kept))
    return removed


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


#: What sparsity can be a share of.
SPARSITIES: dict[str, Callable[[PreTrainedModel, HeadMap], Sparsity]] = {
    "heads": _share_of_heads,
    "parameters": _share_of_parameters,
}


def sparsity_measure(model: PreTrainedModel, head_map: HeadMap, sparsity_of: str) -> Sparsity:
    """Return the function that computes the sparsity of a chromosome.

    :param model: the model, not pruned.
    :param head_map: its head map.
    :param sparsity_of: a key of :data:`SPARSITIES`.
    :raises InputError: for an unknown ``sparsity_of``, and for ``"parameters"`` if the model cannot
        be sliced.
    """
    if sparsity_of not in SPARSITIES:
        raise unknown("sparsity_of", sparsity_of, SPARSITIES)
    return SPARSITIES[sparsity_of](model, head_map)


@contextmanager
def counting(model: Any) -> Iterator[FlopCounterMode]:
    """Count the floating-point operations of a model's forward passes inside the context.

    Inside the context no parameter requires a gradient: the counter registers hooks on the
    gradients of module inputs, which fails where these are parameters, as in DeBERTa.

    :param model: the model.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        # The maths backend computes attention by matrix products, which the counter can count.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            yield counter
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


class Flops:
    """Floating-point operations of sub-models, derived from those counted for the dense model.

    :param model: the model.
    :param head_map: its head map.
    :param blocks: the paths of its blocks, one for each attention layer.
    :param run: runs one forward pass of the dense model.
    :param tokens: number of tokens in that forward pass.
    """

    def __init__(
        self,
        model: Any,
        head_map: HeadMap,
        blocks: Sequence[str],
        run: Callable[[], Any],
        tokens: int,
    ) -> None:
        with counting(model) as counter:
            run()
        counts = counter.get_flop_counts()
        root = type(model).__name__

        def of(path: str) -> int:
            return sum(counts.get(f"{root}.{path}", {}).values())

        self.total: int = counter.get_total_flops()
        self.blocks = [of(path) for path in blocks]
        self._model, self._head_map, self._tokens = model, head_map, tokens
        self._attention = [
            # The count of an attention module includes an output projection inside it.
            of(layer.attention) + (0 if head_map.family.output_inside else of(layer.output))
            for layer in head_map.layers
        ]

    @property
    def outside(self) -> int:
        """Operations outside the blocks, such as those of the language-modelling head."""
        return self.total - sum(self.blocks)

    def layer(self, depth: int, keep: Sequence[int]) -> float:
        """The operations of a block with some of its query heads.

        :param depth: index of the block.
        :param keep: indices of the query heads to keep, in rising order.
        """
        layer = self._head_map.layers[depth]
        if len(keep) == layer.heads:
            return self.blocks[depth]
        projections = 2 * self._tokens * self._weights(layer, range(layer.heads))
        kept = 2 * self._tokens * self._weights(layer, keep)
        scores = (self._attention[depth] - projections) * (1 - len(keep) / layer.heads)
        return self.blocks[depth] - (projections - kept) - scores

    def _weights(self, layer: AttentionLayer, keep: Sequence[int]) -> int:
        """The number of weights in a layer's projections, without biases, for some of its heads."""
        return sum(
            len(part.kept) * features(part.module)[1 - part.axis]
            for part in head_slices(self._model, self._head_map.family, layer, keep)
            if part.projection
        )
