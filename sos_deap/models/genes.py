"""Which gene of a chromosome stands for which attention head of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from sos_deap.errors import InputError, unknown
from sos_deap.models.families import FALLBACK_FAMILIES, FAMILIES
from sos_deap.models.slicing import AttentionLayer, Family, attention_layers

#: What one gene stands for: a query head, or a key/value head with all its query heads.
UNITS = ("head", "group")


@dataclass(frozen=True)
class HeadMap:
    """The mapping between the genes of a chromosome and the query heads of a model.

    Genes are ordered by layer, then by head. ``len()`` is the number of genes.

    :param family: the model's architecture.
    :param layers: the attention layers.
    :param unit: one of :data:`UNITS`.
    """

    family: Family
    layers: tuple[AttentionLayer, ...]
    unit: str = "head"

    def __len__(self) -> int:
        return sum(self.genes_per_layer)

    @property
    def heads_per_layer(self) -> tuple[int, ...]:
        """The number of query heads of each attention layer."""
        return tuple(layer.heads for layer in self.layers)

    @property
    def genes_per_layer(self) -> tuple[int, ...]:
        """The number of genes of each attention layer."""
        return tuple(layer.heads // self.heads_per_gene(layer) for layer in self.layers)

    def heads_per_gene(self, layer: AttentionLayer) -> int:
        """The number of query heads of a layer that one gene stands for."""
        return layer.heads // layer.kv_heads if self.unit == "group" else 1

    def checked(self, chromosome: Sequence[int]) -> Sequence[int]:
        """Return a chromosome unchanged if it fits the model.

        :param chromosome: one gene, 0 or 1, per head or group.
        :raises InputError: if it is not a sequence, if its length is wrong, or if a gene is neither
            0 nor 1.
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
        if invalid := [gene for gene in chromosome if not _is_gene(gene)]:
            raise InputError(
                f"a gene is {invalid[0]!r}: genes are 1 (head kept) or 0 (head removed)"
            )
        return chromosome

    def head_genes(self, chromosome: Sequence[int]) -> list[list[int]]:
        """Return for each layer one value per query head: 1 if it is kept, 0 if it is removed.

        :param chromosome: one gene per head or group.
        :raises InputError: for a chromosome that does not fit the model.
        """
        genes = iter(self.checked(chromosome))
        return [
            [gene for _ in range(count) for gene in [int(next(genes))] * self.heads_per_gene(layer)]
            for layer, count in zip(self.layers, self.genes_per_layer, strict=True)
        ]

    def kept_heads(self, chromosome: Sequence[int]) -> list[list[int]]:
        """Return for each layer the indices of the query heads that are kept, in rising order.

        :param chromosome: one gene per head or group.
        :raises InputError: for a chromosome that does not fit the model.
        """
        return [
            [head for head, gene in enumerate(genes) if gene]
            for genes in self.head_genes(chromosome)
        ]

    def without(self, removed: Mapping[int, Sequence[int]]) -> list[int]:
        """Return the chromosome that removes certain query heads and keeps all others.

        :param removed: from the index of a layer to the indices of the query heads to remove.
        :raises InputError: for a layer or head that the model does not have, and with
            ``unit="group"`` for a part of a group.
        """
        if unknown_layers := sorted(set(removed) - set(range(len(self.layers)))):
            raise InputError(
                f"there is no layer {unknown_layers[0]}: the model has {len(self.layers)}"
            )
        chromosome: list[int] = []
        for number, layer in enumerate(self.layers):
            heads = set(removed.get(number, ()))
            if unknown_heads := sorted(heads - set(range(layer.heads))):
                raise InputError(
                    f"layer {number} has no head {unknown_heads[0]}: it has {layer.heads}"
                )
            size = self.heads_per_gene(layer)
            groups = [set(range(i, i + size)) for i in range(0, layer.heads, size)]
            if any(group & heads and not group <= heads for group in groups):
                raise InputError(f"layer {number}: remove whole groups of {size} heads, or none")
            chromosome += [int(not group & heads) for group in groups]
        return chromosome


def _is_gene(gene: Any) -> bool:
    try:
        return gene in (0, 1) and int(gene) == gene  # int() fails for a complex number
    except (TypeError, ValueError):  # such as a row of an array
        return False


def head_map(model: nn.Module, unit: str = "head") -> HeadMap:
    """Find the attention heads of a transformers model.

    :param model: any model class, with or without a task head, of an architecture in
        :data:`sos_deap.models.families.FAMILIES` or one whose attention modules have the names of
        Llama's or BART's.
    :param unit: ``"head"`` for one gene per query head; ``"group"`` for one gene per key/value
        head, which stands for all query heads that share it.
    :returns: the head map; its ``len()`` is the number of genes.
    :raises InputError: if no attention layer is found, if the model is already pruned, and for an
        unknown unit.
    """
    if unit not in UNITS:
        raise unknown("unit", unit, UNITS)
    config = getattr(model, "config", None)
    if getattr(config, "kept_heads", None) is not None:
        raise InputError(
            "the model is already pruned: prune the original, with all the heads to remove"
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
    except AttributeError:  # modules with these names and another structure
        return ()
