"""Knapsack: the set of genes with the least sum of single-gene losses that fills the budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sos_deap.search.strategies.baselines import OneShot

_RESOLUTION = 20_000  # parts of S that costs are rounded to


class Knapsack(OneShot):
    """The exact 0/1 knapsack over additive losses and costs.

    Each gene is removed alone from the dense model, as in :class:`OneShot`. Under the assumption
    that losses add up, which Puzzle (Bercovich et al., 2024, arXiv 2411.19146) makes as well, the
    best sub-model is the solution of a knapsack problem: the least sum of losses over the removed
    genes, with a removed cost of at most S and above S less the cost of the cheapest gene.

    Puzzle solves a mixed-integer program that chooses one variant of each sub-layer, whose quality
    was measured as a whole, under upper limits on memory and time. Here each gene is measured by
    itself, so that losses are assumed to add up within a sub-layer as well. The program is solved
    by dynamic programming over costs that are rounded to S / 20,000; the result is then settled by
    the exact sparsity. With equal costs the result is that of ``one-shot``.

    :param prior: name of an importance in ``space.priors`` that gives the losses. Default:
        evaluations.
    :param share: share of all examples to evaluate on, above 0, at most 1. Default: as large as the
        budget allows.
    :raises InputError: for an unknown prior, a share out of range, and a prior with a share.
    """

    def _chosen(self, losses: Sequence[float]) -> Any:
        """Return the solution by the loss from the removal of each gene alone."""
        space = self.space
        genes = [1] * len(space)
        for gene in least_loss(losses, space.budget.estimates, space.max_sparsity):
            genes[gene] = 0
        return space.individual(space.settled(genes, genes, losses))


def least_loss(losses: Sequence[float], costs: Sequence[float], bound: float) -> list[int]:
    """Return the genes whose losses have the least sum, for costs that fill a bound.

    The sum of their costs is at most the bound, and above the bound less the cost of the cheapest
    gene. If no set of genes has such costs, it is the highest sum within the bound that a set has.

    :param losses: the loss of each gene.
    :param costs: the cost of each gene, at least 0.
    :param bound: the largest sum of costs, above 0; costs are rounded to 1/20,000 of it.
    """
    if not losses or not bound > 0:
        return []
    scaled = [round(cost / bound * _RESOLUTION) for cost in costs]
    least = np.full(_RESOLUTION + 1, np.inf)  # the least loss by the exact sum of costs
    least[0] = 0.0
    taken = np.zeros((len(losses), _RESOLUTION + 1), bool)
    for gene, (loss, cost) in enumerate(zip(losses, scaled, strict=True)):
        if cost > _RESOLUTION:
            continue
        with_gene = np.full_like(least, np.inf)
        with_gene[cost:] = least[: _RESOLUTION + 1 - cost] + loss
        taken[gene] = with_gene < least
        least = np.where(taken[gene], with_gene, least)
    reachable = np.flatnonzero(np.isfinite(least))
    wanted = reachable[reachable > _RESOLUTION - max(1, min(scaled))]
    total = int(wanted[np.argmin(least[wanted])] if len(wanted) else reachable[-1])
    chosen: list[int] = []
    for gene in reversed(range(len(losses))):
        if taken[gene, total]:
            chosen.append(gene)
            total -= scaled[gene]
    return chosen[::-1]
