"""Costs of sub-models: the share of genes, parameters, operations or time that one removes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel

from sos_deap.errors import InputError, unknown
from sos_deap.models.examples import random_inputs
from sos_deap.models.families import why_unsliceable
from sos_deap.models.family import Family
from sos_deap.models.flops import Flops
from sos_deap.models.genes import GeneMap
from sos_deap.models.sites import ATTENTION, EXPERTS, Site, features
from sos_deap.models.slices import head_parameters, site_slices
from sos_deap.models.time_table import TimeTable

#: What sparsity can be a share of.
SPARSITIES = ("genes", "parameters", "operations", "time")

#: Default number of tokens of the forward pass whose operations are counted.
TOKENS = 128

#: Default of S, the maximum sparsity, by what sparsity is a share of. In the paper's Table II, the
#: sizes of LLaMA-2 7B imply that 317 of 1,024 heads were removed; its abstract states a size
#: reduced by about 27 % and a speed-up of 1.28.
MAX_SPARSITY = {
    "genes": 0.31,
    "parameters": 0.27,
    "operations": 0.27,
    "time": 1 - 1 / 1.28,
}

#: The same for heads alone: the 317 heads are 9.5 % of the bytes.
MAX_SPARSITY_OF_HEADS = {**MAX_SPARSITY, "parameters": 0.095, "operations": 0.095}


def sparsity_defaults(
    genes: str, sparsity_of: str | None, max_sparsity: float | None
) -> tuple[str, float]:
    """Return what sparsity is a share of, and S, with the defaults for a kind of genes.

    :param genes: what the genes stand for; see :func:`sos_deap.gene_map`.
    :param sparsity_of: one of :data:`SPARSITIES`; ``None`` for the share of genes if these are
        heads or groups alone, otherwise of parameters.
    :param max_sparsity: S; ``None`` for the value in :data:`MAX_SPARSITY` or
        :data:`MAX_SPARSITY_OF_HEADS`.
    :raises InputError: for an unknown ``sparsity_of``, and for ``"heads"``, the former name of
        ``"genes"``.
    """
    if sparsity_of == "heads":
        raise InputError("sparsity_of heads is now called genes: give sparsity_of genes")
    heads = genes in ("heads", "groups")
    of = sparsity_of or ("genes" if heads else "parameters")
    if of not in SPARSITIES:
        raise unknown("sparsity_of", of, SPARSITIES)
    usual = MAX_SPARSITY_OF_HEADS if heads else MAX_SPARSITY
    return of, usual[of] if max_sparsity is None else max_sparsity


class Sparsity(Protocol):
    """From a chromosome to its sparsity, between 0 (nothing removed) and 1."""

    @property
    def costs(self) -> tuple[float, ...]:
        """For each gene its part of the sparsity with all genes removed, an additive estimate."""

    def __call__(self, chromosome: Sequence[int]) -> float:
        """Return the sparsity of a chromosome, exactly."""


class ShareOfGenes:
    """The share of genes that are 0.

    :param genes: the number of genes.
    """

    def __init__(self, genes: int) -> None:
        self.costs = (1 / genes,) * genes

    def __call__(self, chromosome: Sequence[int]) -> float:
        """Return the share of genes that are 0."""
        genes = len(chromosome)
        # Genes may be numpy's 8-bit integers, whose sum would overflow.
        return (genes - sum(map(int, chromosome))) / genes if genes else 0.0


class ShareOfSites:
    """A share of a quantity that each site has a part of, which depends on the units it keeps.

    The estimate for a gene is its share of its sites' units times what the sites save without any
    unit.

    :param genes: the model's gene map.
    :param removed: from the index of a site and the units that it keeps to what it saves; it may
        depend on the numbers of kept units and key/value heads only.
    :param total: the quantity of the whole model.
    """

    def __init__(
        self, genes: GeneMap, removed: Callable[[int, Sequence[int]], float], total: float
    ) -> None:
        self._genes, self._removed, self._total = genes, removed, total
        self._cached: dict[tuple[int, bytes], float] = {}
        self._by_size: dict[tuple[int, int, int], float] = {}
        costs = [0.0] * len(genes)
        for number, site in enumerate(genes.sites):
            whole = removed(number, ()) / total if genes.site_genes[number] else 0.0
            for gene in genes.gene_of[number]:
                if gene >= 0:
                    costs[gene] += whole / site.units
        self.costs = tuple(_alike(costs))

    def __call__(self, chromosome: Sequence[int]) -> float:
        """Return the share of the quantity that a chromosome removes."""
        checked = self._genes.checked(chromosome)
        saved: float = 0
        for number, own in enumerate(self._genes.site_genes):
            if own:
                values = bytes(int(checked[gene]) for gene in own)
                if 0 in values:
                    saved += self._saved(number, values)
        return saved / self._total

    def _saved(self, number: int, values: bytes) -> float:
        if (number, values) not in self._cached:
            site, keep = self._genes.sites[number], self._genes.kept_in(number, values)
            groups = len(site.group_counts(keep)) if site.kind == ATTENTION else 0
            # All units of a site have one width: their numbers determine what it saves.
            size = number, len(keep), groups
            if size not in self._by_size:
                self._by_size[size] = self._removed(number, keep)
            self._cached[number, values] = self._by_size[size]
        return self._cached[number, values]


def _alike(costs: list[float]) -> list[float]:
    """Make costs exactly equal that differ by the rounding of their sums only."""
    exact: list[float] = []
    for cost in costs:
        near = (other for other in dict.fromkeys(exact) if abs(other - cost) <= 1e-12 * abs(cost))
        exact.append(next(near, cost))
    return exact


def check_time_options(sparsity_of: str, **options: Any) -> None:
    """Raise :class:`InputError` for an option of time tables if sparsity is no share of time.

    :param sparsity_of: one of :data:`SPARSITIES`.
    :param options: the options by name; ``None`` if not given.
    """
    for name, value in options.items():
        if value is not None and sparsity_of != "time":
            raise InputError(
                f"{name} is only for the sparsity_of time, and sparsity_of is {sparsity_of}: leave "
                f"{name} out, or give sparsity_of time"
            )


def check_sparsity(model: PreTrainedModel, genes: GeneMap, sparsity_of: str) -> None:
    """Check that sparsity is defined for a model.

    :param model: the model, not pruned.
    :param genes: its gene map.
    :param sparsity_of: one of :data:`SPARSITIES`.
    :raises InputError: for an unknown ``sparsity_of``, and for any but ``"genes"`` if the model
        cannot be sliced.
    """
    if sparsity_of not in SPARSITIES:
        raise unknown("sparsity_of", sparsity_of, SPARSITIES)
    why = why_unsliceable(genes.family, model.config, genes.removes_heads)
    if why and sparsity_of != "genes":
        raise InputError(
            f"a {model.config.model_type} model cannot be sliced, so its sparsity_of {sparsity_of} "
            f"is undefined: {why}; use sparsity_of genes"
        )


def sparsity_measure(
    model: PreTrainedModel,
    genes: GeneMap,
    sparsity_of: str,
    tokens: int = TOKENS,
    times: TimeTable | None = None,
) -> Sparsity:
    """Return the function that computes the sparsity of a chromosome.

    :param model: the model, not pruned.
    :param genes: its gene map.
    :param sparsity_of: one of :data:`SPARSITIES`: ``"genes"``; ``"parameters"`` of the whole model
        (the share of bytes is the same, since all weights have one dtype); ``"operations"`` of a
        forward pass of the whole model; or the ``"time"`` of the whole model.
    :param tokens: number of tokens of that forward pass.
    :param times: the model's time table, for ``"time"``.
    :raises InputError: as :func:`check_sparsity` does, and for ``"time"`` without a time table.
    """
    check_sparsity(model, genes, sparsity_of)
    if sparsity_of == "genes":
        return ShareOfGenes(len(genes))
    if sparsity_of == "time":
        if times is None:
            raise InputError("sparsity_of time needs a time table: measure one")
        table = times
        return ShareOfSites(genes, lambda number, keep: table.saved(genes, number, keep), 1)
    if sparsity_of == "parameters":

        def removed(number: int, keep: Sequence[int]) -> int:
            return _removed_parameters(model, genes, genes.sites[number], keep)

        return ShareOfSites(genes, removed, _parameters(model))
    flops = dense_flops(model, genes, tokens)
    return ShareOfSites(genes, flops.saved, flops.total)


def dense_flops(model: PreTrainedModel, genes: GeneMap, tokens: int) -> Flops:
    """Count the operations of a forward pass of the dense model on one random sequence.

    :param model: the model.
    :param genes: its gene map.
    :param tokens: length of the sequence, and of the decoder's sequence in an encoder-decoder;
        without effect on a model of images.
    """
    batch = random_inputs(model, 1, tokens, tokens)

    def run() -> Any:
        with torch.inference_mode():
            return model(**batch)

    return Flops(model, genes, [], run)


def layer_parameters(model: PreTrainedModel, genes: GeneMap) -> int:
    """Return the number of parameters in the layers of a model, without embeddings and heads."""
    parts = dict.fromkeys(site.part for site in genes.sites)
    return sum(_parameters(model.get_submodule(part)) for part in parts)


def _removed_parameters(model: nn.Module, genes: GeneMap, site: Site, keep: Sequence[int]) -> int:
    """The number of parameters that slicing a site to some of its units removes."""
    if len(keep) == site.units:
        return 0
    if site.kind == EXPERTS:
        parts = site_slices(model, genes.family, site, keep)
        each = sum(_parameters(part.module) // site.units for part in parts)
        return each * (site.units - len(keep))
    consumer, *producers = site_slices(model, genes.family, site, keep)
    outputs, inputs = features(consumer.module)
    removed = outputs * (inputs - len(consumer.kept))
    if not keep and site.kind == ATTENTION:
        # The attention module is removed, except for the bias of the output projection.
        attention = model.get_submodule(site.module)
        own = _parameters(attention) - _parameters(consumer.module) * genes.family.output_inside
        return own - _kept_without_heads(attention, genes.family) + removed
    for part in producers:
        if not part.whole:
            own, units = _parameters(part.module), features(part.module)[part.axis]
            removed += own // units * (units - len(part.kept))
    module = model.get_submodule(site.module)
    for name, parameter in head_parameters(model, genes.family, site, keep).items():
        removed += module.get_parameter(name).numel() - parameter.numel()
    return removed


def _kept_without_heads(attention: nn.Module, family: Family) -> int:
    """The number of parameters besides the output projection that attention without heads keeps."""
    if family.norm:
        return _parameters(attention.get_submodule(family.norm))
    if not family.returns_bias:
        return 0
    projections = (family.query, family.key, family.value, family.output)
    own = (module for name, module in attention.named_children() if name not in projections)
    return sum(map(_parameters, own))


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
