"""Which gene of a chromosome stands for which heads, channels and experts of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sos_deap.errors import InputError
from sos_deap.models.family import Family
from sos_deap.models.sites import ATTENTION, EXPERTS, FEED_FORWARD, Site

#: The kinds of genes: the kind of site whose units they stand for, and what one gene is called.
KINDS: dict[str, tuple[tuple[str, ...], str]] = {
    "heads": ((ATTENTION,), "head"),
    "groups": ((ATTENTION,), "group"),
    "channels": ((FEED_FORWARD,), "channel block"),
    "experts": ((EXPERTS,), "expert"),
    "attention": ((ATTENTION,), "attention sub-layer"),
    "ffn": ((FEED_FORWARD, EXPERTS), "feed-forward sub-layer"),
    "layers": ((ATTENTION, FEED_FORWARD, EXPERTS), "layer"),
}

#: Default number of genes of kind ``channels`` in a layer.
CHANNEL_BLOCKS = 16


@dataclass(frozen=True)
class Part:
    """Consecutive genes of one kind that belong to one site, or of kind ``layers`` to one layer.

    :param layer: number of the layer, over the whole model, from 0.
    :param kind: a key of :data:`KINDS`.
    :param size: number of genes.
    """

    layer: int
    kind: str
    size: int


@dataclass(frozen=True)
class GeneMap:
    """The mapping between the genes of a chromosome and the units of a model's sites.

    Genes are ordered by layer, in a layer by site (attention first), and in a site by unit; those
    of kind ``channels`` by decreasing importance of their channels. ``len()`` is the number of
    genes. Each unit belongs to at most one gene; units without a gene are always kept.

    :param family: the model's architecture.
    :param sites: all its attention modules, feed-forward modules and mixtures of experts.
    :param genes: the kinds of genes, keys of :data:`KINDS` joined by ``+``.
    :param parts: the genes by site.
    :param gene_of: for each site the index of each unit's gene; -1 for a unit without a gene.
    :param channel_blocks: the most genes of kind ``channels`` in a layer.
    :param channel_order: for each feed-forward site its channels by decreasing importance; ``None``
        without genes of kind ``channels``.
    """

    family: Family
    sites: tuple[Site, ...]
    genes: str
    parts: tuple[Part, ...]
    gene_of: tuple[tuple[int, ...], ...]
    channel_blocks: int = CHANNEL_BLOCKS
    channel_order: tuple[tuple[int, ...], ...] | None = None

    def __len__(self) -> int:
        return sum(part.size for part in self.parts)

    @property
    def kinds(self) -> list[str]:
        """The kinds of genes."""
        return self.genes.split("+")

    @property
    def gene_name(self) -> str:
        """What one gene is called: ``"head"``, ``"group"``, ...; ``"gene"`` for several kinds."""
        return KINDS[self.genes][1] if self.genes in KINDS else "gene"

    @property
    def attention(self) -> list[Site]:
        """The attention sites."""
        return [site for site in self.sites if site.kind == ATTENTION]

    @property
    def feed_forward(self) -> list[Site]:
        """The feed-forward sites; empty if the architecture's row has none."""
        return [site for site in self.sites if site.kind == FEED_FORWARD]

    @property
    def experts(self) -> list[Site]:
        """The mixtures of experts; empty if the architecture's row has none."""
        return [site for site in self.sites if site.kind == EXPERTS]

    @property
    def heads_per_layer(self) -> tuple[int, ...]:
        """The number of query heads of each attention site."""
        return tuple(site.units for site in self.attention)

    @property
    def removes_heads(self) -> bool:
        """Whether any gene stands for heads."""
        return any(ATTENTION in KINDS[kind][0] for kind in self.kinds)

    @cached_property
    def site_genes(self) -> tuple[tuple[int, ...], ...]:
        """For each site the indices of the genes that its units belong to, in rising order."""
        return tuple(tuple(sorted(set(genes) - {-1})) for genes in self.gene_of)

    @cached_property
    def _indices(self) -> list[Tensor]:
        return [torch.tensor(genes, dtype=torch.long) for genes in self.gene_of]

    def masks(self, chromosomes: Sequence[Sequence[int]]) -> list[Tensor]:
        """Return for each site a mask of its units, (chromosomes, units): 1 if kept, 0 if removed.

        :param chromosomes: sequences of genes, 0 or 1.
        :raises InputError: for a chromosome that does not fit the model.
        """
        # The last column is always 1: it is the value of units without a gene.
        rows = [[*map(int, self.checked(chromosome)), 1] for chromosome in chromosomes]
        values = torch.tensor(rows)
        return [values[:, index] for index in self._indices]

    def kept(self, chromosome: Sequence[int]) -> list[list[int]]:
        """Return for each site the indices of the units that are kept, in rising order.

        :param chromosome: one gene, 0 or 1, for each that the map has.
        :raises InputError: for a chromosome that does not fit the model.
        """
        return [mask[0].nonzero().flatten().tolist() for mask in self.masks([chromosome])]

    def kept_in(self, site: int, values: Sequence[int]) -> tuple[int, ...]:
        """Return the indices of a site's kept units, in rising order.

        :param site: index of the site.
        :param values: the values, 0 or 1, of the site's genes, in the order of :attr:`site_genes`.
        """
        gene_of = self._indices[site]
        of = torch.ones(len(self) + 1, dtype=torch.bool)  # the last one for units without a gene
        of[list(self.site_genes[site])] = torch.tensor(list(values), dtype=torch.bool)
        return tuple(of[gene_of].nonzero().flatten().tolist())

    def kept_heads(self, chromosome: Sequence[int]) -> list[list[int]]:
        """Return for each attention site the indices of its kept heads, in rising order."""
        return self.of_kind(ATTENTION, self.kept(chromosome))

    def kept_channels(self, chromosome: Sequence[int]) -> list[list[int]]:
        """Return for each feed-forward site the indices of its kept channels, in rising order."""
        return self.of_kind(FEED_FORWARD, self.kept(chromosome))

    def kept_experts(self, chromosome: Sequence[int]) -> list[list[int]]:
        """Return for each mixture of experts the indices of its kept experts, in rising order."""
        return self.of_kind(EXPERTS, self.kept(chromosome))

    def of_kind(self, kind: str, kept: Sequence[list[int]]) -> list[list[int]]:
        """Return the kept units of the sites of one kind.

        :param kind: kind of the sites, such as :data:`sos_deap.models.sites.ATTENTION`.
        :param kept: for each site the indices of its kept units.
        """
        return [keep for site, keep in zip(self.sites, kept, strict=True) if site.kind == kind]

    def described(self) -> dict[str, Any]:
        """Return what the genes stand for, as the arguments of :func:`sos_deap.gene_map`."""
        if self.channel_order is None:
            return {"genes": self.genes}
        return {
            "genes": self.genes,
            "channel_blocks": self.channel_blocks,
            "channel_order": [list(channels) for channels in self.channel_order],
        }

    def checked(self, chromosome: Sequence[int]) -> Sequence[int]:
        """Return a chromosome unchanged if it fits the model.

        :param chromosome: one gene, 0 or 1, for each that the map has.
        :raises InputError: if it is not a sequence, if its length is wrong, or if a gene is neither
            0 nor 1.
        """
        name = self.gene_name
        if not hasattr(chromosome, "__getitem__") or isinstance(chromosome, Mapping):
            kind = type(chromosome).__name__
            raise InputError(
                f"the chromosome is of type {kind}: give a list of {len(self)} genes, 0 or 1, one "
                f"per {name}"
            )
        if len(chromosome) != len(self):
            raise InputError(
                f"the chromosome has {len(chromosome)} genes, the model {len(self)} {name}s "
                f"({len({part.layer for part in self.parts})} layers): give one gene per {name}"
            )
        if invalid := [gene for gene in chromosome if not _is_gene(gene)]:
            raise InputError(
                f"a gene is {invalid[0]!r}: genes are 1 ({name} kept) or 0 ({name} removed)"
            )
        return chromosome

    def without(self, removed: Mapping[int, Sequence[int]]) -> list[int]:
        """Return the chromosome that removes certain query heads and keeps all others.

        :param removed: from the number of an attention module to the indices of the query heads to
            remove.
        :raises InputError: for a layer or head that the model does not have, and for a part of a
            gene.
        """
        attention = [i for i, site in enumerate(self.sites) if site.kind == ATTENTION]
        if unknown_layers := sorted(set(removed) - set(range(len(attention)))):
            raise InputError(
                f"there is no layer {unknown_layers[0]}: the model has {len(attention)}"
            )
        chromosome = [1] * len(self)
        for layer, heads in removed.items():
            site, gene_of = self.sites[attention[layer]], self.gene_of[attention[layer]]
            if unknown_heads := sorted(set(heads) - set(range(site.units))):
                raise InputError(
                    f"layer {layer} has no head {unknown_heads[0]}: it has {site.units}"
                )
            for gene in {gene_of[head] for head in heads}:
                units = {unit for unit, other in enumerate(gene_of) if other == gene}
                if gene < 0 or not units <= set(heads):
                    raise InputError(
                        f"layer {layer}: remove whole {self.gene_name}s of {len(units)} heads, or "
                        "none"
                    )
                chromosome[gene] = 0
        return chromosome


def _is_gene(gene: Any) -> bool:
    try:
        return gene in (0, 1) and int(gene) == gene  # int() fails for a complex number
    except (TypeError, ValueError):  # such as a row of an array
        return False
