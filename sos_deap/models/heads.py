"""Genes to attention heads: which gene is which head, and sub-models as masks on one model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sos_deap.errors import InputError, unknown
from sos_deap.models.families import FALLBACK_FAMILIES, FAMILIES
from sos_deap.models.guard import exclusive
from sos_deap.models.slicing import AttentionLayer, Family, attention_layers

#: What a gene may stand for: a query head, or a key/value head with all its query heads.
UNITS = ("head", "group")


@dataclass(frozen=True)
class HeadMap:
    """All the heads of a model in layer order, and which gene of a chromosome stands for which.

    :param family: where the architecture keeps its heads.
    :param layers: the attention modules.
    :param unit: one of :data:`UNITS`.
    """

    family: Family
    layers: tuple[AttentionLayer, ...]
    unit: str = "head"

    def __len__(self) -> int:
        return sum(self.genes_per_layer)

    @property
    def heads_per_layer(self) -> tuple[int, ...]:
        """Query heads in each attention module."""
        return tuple(layer.heads for layer in self.layers)

    @property
    def genes_per_layer(self) -> tuple[int, ...]:
        """Genes for each attention module."""
        return tuple(layer.heads // self.heads_per_gene(layer) for layer in self.layers)

    def heads_per_gene(self, layer: AttentionLayer) -> int:
        """How many query heads of a layer one gene stands for."""
        return layer.heads // layer.kv_heads if self.unit == "group" else 1

    def checked(self, chromosome: Sequence[int]) -> Sequence[int]:
        """Return a chromosome of one 0/1 gene per head (or group) as it is.

        :raises InputError: if it is no sequence, if its length is wrong, or if a gene is neither 0
            nor 1.
        """
        if not hasattr(chromosome, "__getitem__") or isinstance(chromosome, Mapping):
            kind = type(chromosome).__name__
            raise InputError(
                f"the chromosome is of type {kind}: give a list of {len(self)} genes, 0 or 1, one "
                f"per {self.unit}"
            )
        if len(chromosome) != len(self):
            raise InputError(
                f"the chromosome has {len(chromosome)} genes, the model {len(self)} {self.unit}s "
                f"({len(self.layers)} layers): give one gene per {self.unit}"
            )
        if stray := [gene for gene in chromosome if not _is_gene(gene)]:
            raise InputError(f"a gene is {stray[0]!r}: genes are 1 (head kept) or 0 (head removed)")
        return chromosome

    def head_genes(self, chromosome: Sequence[int]) -> list[list[int]]:
        """One 0/1 value per query head, layer by layer; raises as :meth:`checked` does."""
        genes = iter(self.checked(chromosome))
        return [
            [gene for _ in range(count) for gene in [int(next(genes))] * self.heads_per_gene(layer)]
            for layer, count in zip(self.layers, self.genes_per_layer, strict=True)
        ]

    def kept_heads(self, chromosome: Sequence[int]) -> list[list[int]]:
        """The numbers of the query heads each layer keeps."""
        return [
            [head for head, gene in enumerate(genes) if gene]
            for genes in self.head_genes(chromosome)
        ]

    def without(self, removed: Mapping[int, Sequence[int]]) -> list[int]:
        """The chromosome that removes certain query heads.

        :param removed: numbers of query heads by the number of their layer.
        :raises InputError: for a layer or head that is not there, and with ``unit="group"`` for a
            part of a group.
        """
        chromosome: list[int] = []
        if stray := sorted(set(removed) - set(range(len(self.layers)))):
            raise InputError(f"there is no layer {stray[0]}: the model has {len(self.layers)}")
        for number, layer in enumerate(self.layers):
            gone = set(removed.get(number, ()))
            if stray := sorted(gone - set(range(layer.heads))):
                raise InputError(f"layer {number} has no head {stray[0]}: it has {layer.heads}")
            size = self.heads_per_gene(layer)
            groups = [set(range(i, i + size)) for i in range(0, layer.heads, size)]
            if any(group & gone and not group <= gone for group in groups):
                raise InputError(f"layer {number}: remove whole groups of {size} heads, or none")
            chromosome += [int(not group & gone) for group in groups]
        return chromosome


def _is_gene(gene: Any) -> bool:
    try:
        return gene in (0, 1) and int(gene) == gene  # which a complex number is not
    except (TypeError, ValueError):  # nor a row of an array
        return False


def head_map(model: nn.Module, unit: str = "head") -> HeadMap:
    """Find the attention heads of a transformers model.

    :param model: any model class, with or without a task head, of an architecture in
        :data:`FAMILIES` or one that names its attention as Llama does.
    :param unit: ``"head"`` for a gene per query head; ``"group"`` for a gene per key/value head,
        which stands for all the query heads that share it.
    :returns: the map; ``len()`` of it is the number of genes.
    :raises InputError: for attention that is not found, for a model whose heads were already
        removed, and for an unknown unit.
    """
    if unit not in UNITS:
        raise unknown("unit", unit, UNITS)
    config = getattr(model, "config", None)
    if getattr(config, "kept_heads", None) is not None:
        raise InputError(
            "the model is already pruned: prune the original once more, with all the heads to go"
        )
    kind = getattr(config, "model_type", type(model).__name__)
    family = FAMILIES.get(kind)
    for candidate in [family] if family else FALLBACK_FAMILIES:
        layers = _layers(model, candidate)
        if layers:
            return HeadMap(candidate, layers, unit)
    if family is None:
        raise unknown("architecture", kind, FAMILIES)
    raise InputError(
        f"no attention layer of the {kind} architecture in this {type(model).__name__}: "
        f"expected modules named ...{family.block}.{family.attention[0]}"
    )


def _layers(model: nn.Module, family: Family) -> tuple[AttentionLayer, ...]:
    try:
        return tuple(attention_layers(model, family))
    except AttributeError:  # modules of these names that are built otherwise
        return ()


def masked(
    model: nn.Module, chromosomes: Sequence[Sequence[int]], heads: HeadMap | None = None
) -> AbstractContextManager[nn.Module]:
    """Make one model compute many sub-models at once.

    Inside the context a batch of ``len(chromosomes) * B`` rows is read as that many consecutive
    blocks of ``B`` rows, one sub-model each. A removed head's output is multiplied by zero where it
    enters the output projection, which is the same as not having the head. Other threads that mask
    or evaluate the model wait until the end of the context.

    :param model: the model; left exactly as found, after an exception too.
    :param chromosomes: one chromosome per sub-model.
    :param heads: the model's :func:`head_map`, where the caller has it already.
    :raises InputError: for a chromosome that does not fit the model, or inside the context for a
        batch that does not divide into as many blocks, or for a context that is entered twice.
    """
    return _Once(_masked(model, chromosomes, heads))


class _Once(AbstractContextManager[nn.Module]):
    def __init__(self, context: AbstractContextManager[nn.Module]) -> None:
        self._context, self._entered = context, False

    def __enter__(self) -> nn.Module:
        if self._entered:
            raise InputError("a context of masked() serves once: call masked() again")
        self._entered = True
        return self._context.__enter__()

    def __exit__(self, *error: Any) -> bool | None:
        return self._context.__exit__(*error)


@contextmanager
def _masked(
    model: nn.Module, chromosomes: Sequence[Sequence[int]], heads: HeadMap | None
) -> Iterator[nn.Module]:
    heads = heads or head_map(model)
    if not hasattr(chromosomes, "__len__"):
        kind = type(chromosomes).__name__
        raise InputError(f"masked() was given a value of type {kind}: give a list of chromosomes")
    if len(chromosomes) == 0:
        raise InputError("masked() was given no chromosome: give at least one")
    per_chromosome = [heads.head_genes(chromosome) for chromosome in chromosomes]
    with ExitStack() as stack:
        stack.enter_context(exclusive(model))
        for layer, genes in zip(heads.layers, zip(*per_chromosome, strict=True), strict=True):
            if not all(map(all, genes)):  # else every sub-model keeps every head of this layer
                stack.enter_context(masked_layer(model, layer, genes))
        yield model


@contextmanager
def masked_layer(
    model: nn.Module, layer: AttentionLayer, genes: Sequence[Sequence[int]]
) -> Iterator[None]:
    """The same for one attention module; ``genes`` has one 0/1 per query head and sub-model."""
    hook = _Mask(torch.tensor(genes).repeat_interleave(layer.head_dim, dim=1))
    handle = model.get_submodule(layer.output).register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def is_masked(model: nn.Module, heads: HeadMap) -> bool:
    """Whether a model is inside :func:`masked`.

    :param model: the model.
    :param heads: its head map.
    """
    outputs = (model.get_submodule(layer.output) for layer in heads.layers)
    hooks = (hook for output in outputs for hook in output._forward_pre_hooks.values())
    return any(isinstance(hook, _Mask) and hook.scales for hook in hooks)


class _Mask:
    """A hook that scales an output projection's input.

    A copy, such as that of a model which is copied inside the context and outlives it, scales
    nothing.

    :param mask: (sub-models, heads * head_dim), or ``None`` to scale nothing.
    """

    def __init__(self, mask: Tensor | None) -> None:
        self._mask = mask if mask is None else mask[:, None, :]

    @property
    def scales(self) -> bool:
        """Whether it is no copy."""
        return self._mask is not None

    def __reduce__(self) -> Any:
        return _Mask, (None,)

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self._mask is None:
            return inputs
        context, *rest = inputs  # (sub-models * rows, tokens, heads * head_dim)
        mask = self._mask = self._mask.to(context)  # once: then device and dtype are right
        if len(context) % len(mask):
            raise InputError(
                f"the batch has {len(context)} rows for {len(mask)} sub-models: "
                "give the same number of rows for each"
            )
        blocks = context.reshape(len(mask), -1, context.shape[-1])
        return ((blocks * mask).view_as(context), *rest)
