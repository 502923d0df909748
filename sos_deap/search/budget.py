"""Costs of genes, and chromosomes filled up to, or repaired down to, a bound on their sparsity."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from sos_deap.search.chromosome import within

#: Draws genes: a function from candidates and a number to that many of them, or to all of them in
#: an order of preference.
Draw = Callable[[list[int], int], list[int]]

_ROUNDING = 1e-9  # the tolerance of `within`


@dataclass(frozen=True)
class Costs:
    """What the removal of each gene adds to the sparsity of a chromosome.

    The exact sparsity need not be a sum over genes: with grouped-query attention, a key/value head
    is removed with the last of its query heads, and measured times are interpolated. So bounds on
    the costs serve for choosing genes, and the exact sparsity decides whether they fit.

    :param sparsity: function from genes to the exact share that they remove, from 0 to 1. It must
        not fall when a gene is removed.
    :param estimates: for each gene, an estimate of the share that it removes; at least 0.
    """

    sparsity: Callable[[Sequence[int]], float]
    estimates: tuple[float, ...]

    @cached_property
    def relative(self) -> list[float]:
        """The cost of each gene relative to the largest, above 0; equal costs are all 1."""
        largest = max(self.estimates, default=0.0)
        if not largest > 0:
            return [1.0] * len(self.estimates)
        return [max(cost / largest, _ROUNDING) for cost in self.estimates]

    @cached_property
    def bounds(self) -> tuple[list[float], list[float]]:
        """For each gene the least and the most that its removal adds to the sparsity.

        They are the extremes of three costs: the estimate, the cost in the model without other
        removals, and the cost in the model where all other genes are removed.
        """
        genes = range(len(self.estimates))
        everything = self.sparsity([0] * len(genes))
        alone = [self.sparsity([int(i != gene) for i in genes]) for gene in genes]
        last = [everything - self.sparsity([int(i == gene) for i in genes]) for gene in genes]
        three = list(zip(self.estimates, alone, last, strict=True))
        return [min(costs) for costs in three], [max(costs) for costs in three]

    def room(self, genes: Sequence[int], bound: float) -> float:
        """Return how much the sparsity may rise, up to rounding; negative above the bound."""
        return bound + _ROUNDING - self.sparsity(genes)

    def fitting(
        self, genes: Sequence[int], bound: float, among: Iterable[int] | None = None
    ) -> list[int]:
        """Return the kept genes each of which can be removed within the bound.

        :param genes: 0/1 genes.
        :param bound: the maximum sparsity, from 0 to 1.
        :param among: indices of the genes to consider; default: all.
        """
        room = self.room(genes, bound)
        candidates = range(len(genes)) if among is None else among
        return [i for i in candidates if genes[i] and self._fits(genes, i, room, bound)]

    def full(self, genes: Sequence[int], bound: float) -> bool:
        """Whether genes are within the bound, and no kept gene can be removed within it."""
        room = self.room(genes, bound)
        kept = (i for i, gene in enumerate(genes) if gene)
        return room >= 0 and not any(self._fits(genes, i, room, bound) for i in kept)

    def filled(
        self, genes: Sequence[int], bound: float, draw: Draw, among: Iterable[int] | None = None
    ) -> list[int]:
        """Return genes of which more are removed, until none of the kept ones fits any more.

        With equal additive costs it draws once, as many genes as fit.

        :param genes: 0/1 genes, which are not changed.
        :param bound: the maximum sparsity, from 0 to 1.
        :param draw: draws the genes to remove; called with a number of genes that certainly fits,
            or with one that may be refused.
        :param among: indices of the genes to consider; default: all.
        """
        child, refused, added = list(genes), set[int](), False
        candidates = range(len(child)) if among is None else among
        least, most = self.bounds
        while True:
            room = self.room(child, bound)
            possible = [i for i in candidates if child[i] and least[i] <= room]
            if left := [i for i in possible if i not in refused]:
                count = _whole(room, max(most[i] for i in left), len(left), math.floor)
                before = sum(child)
                refused |= self._remove(child, draw(left, count), bound)
                added |= sum(child) < before
            elif possible and added:
                refused, added = set(), False  # what was removed since may have changed their cost
            else:
                return child

    def repaired(
        self, genes: Sequence[int], bound: float, draw: Draw, spared: Collection[int] = ()
    ) -> list[int]:
        """Return genes of which some are restored, until the sparsity is within the bound.

        :param genes: 0/1 genes, which are not changed.
        :param bound: the maximum sparsity, from 0 to 1.
        :param draw: draws the genes to restore; asked for a number that is necessary at least.
        :param spared: removed genes that are restored only if no others are left.
        """
        child = list(genes)
        while not within(sparsity := self.sparsity(child), bound):
            removed = [i for i, gene in enumerate(child) if not gene]
            left = [i for i in removed if i not in spared] or removed
            if not left:
                return child
            largest = max(self.bounds[1][i] for i in left)
            count = _whole(sparsity - bound - _ROUNDING, largest, len(left), math.ceil)
            for i in draw(left, count)[:count]:
                child[i] = 1
        return child

    def settled(
        self,
        genes: Sequence[int],
        before: Sequence[int],
        bound: float,
        remove: Draw = random.sample,
        restore: Draw = random.sample,
    ) -> list[int]:
        """Return genes after moves, with more genes restored or removed to fill the bound.

        Genes that the moves removed are restored, and genes that they restored are removed, only if
        no others are left.

        :param genes: 0/1 genes after the moves, which are not changed.
        :param before: the genes before the moves.
        :param bound: the maximum sparsity, from 0 to 1.
        :param remove: draws genes to remove.
        :param restore: draws genes to restore.
        """
        pairs = list(zip(before, genes, strict=True))
        removed = {i for i, (old, new) in enumerate(pairs) if old and not new}
        restored = {i for i, (old, new) in enumerate(pairs) if new and not old}
        child = self.repaired(genes, bound, restore, removed)
        others = [i for i in range(len(child)) if i not in restored]
        child = self.filled(child, bound, remove, others)
        return self.filled(child, bound, remove) if restored else child

    def _fits(self, genes: Sequence[int], gene: int, room: float, bound: float) -> bool:
        """Whether a kept gene can be removed within the bound."""
        least, most = self.bounds
        if least[gene] > room or most[gene] <= room:
            return least[gene] <= room
        return within(self.sparsity([*genes[:gene], 0, *genes[gene + 1 :]]), bound)

    def _remove(self, child: list[int], chosen: Sequence[int], bound: float) -> set[int]:
        """Remove genes in an order, those that fit, and return the first ones that do not."""
        least, most = self.bounds
        refused: set[int] = set()
        room, start = self.room(child, bound), 0
        while start < len(chosen):
            stop, total = start, 0.0
            while stop < len(chosen) and (total := total + most[chosen[stop]]) <= room:
                stop += 1
            batch = chosen[start : max(stop, start + 1)]
            if least[batch[0]] > room:
                start += 1
                continue
            fitting = self._fitting_first(child, batch, bound)
            for i in batch[:fitting]:
                child[i] = 0
            refused |= set(batch[fitting : fitting + 1])
            start += fitting + (fitting < len(batch))
            room = self.room(child, bound)
        return refused

    def _fitting_first(self, child: Sequence[int], batch: Sequence[int], bound: float) -> int:
        """Return how many of the first genes of a batch can be removed together, by bisection."""

        def fit(count: int) -> bool:
            removed = set(batch[:count])
            genes = [0 if i in removed else gene for i, gene in enumerate(child)]
            return within(self.sparsity(genes), bound)

        if fit(len(batch)):
            return len(batch)
        low, high = 0, len(batch)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fit(middle) else (low, middle)
        return low


def _whole(share: float, cost: float, most: int, rounded: Callable[[float], int]) -> int:
    """Return a share as a number of genes of some cost, rounded, from 1 to ``most``."""
    if share >= cost * most:
        return most
    return max(1, rounded(share / cost))


def exchanged(genes: Sequence[int], moves: int) -> list[int]:
    """Return genes after exchange moves, each of which restores one gene and removes another.

    :param genes: 0/1 genes, which are not changed.
    :param moves: number of exchanges; limited to those possible.
    """
    child = list(genes)
    removed, kept = removed_and_kept(genes)
    moves = min(moves, len(removed), len(kept))
    pairs = zip(random.sample(removed, moves), random.sample(kept, moves), strict=True)
    for restored, dropped in pairs:
        child[restored], child[dropped] = 1, 0
    return child


def removed_and_kept(
    genes: Sequence[int], among: Iterable[int] | None = None
) -> tuple[list[int], list[int]]:
    """Return the indices of the genes that are 0, and of those that are 1.

    :param genes: a chromosome.
    :param among: the indices to look at; default: all.
    """
    indices = range(len(genes)) if among is None else list(among)
    return [i for i in indices if not genes[i]], [i for i in indices if genes[i]]


def by_rank(worth: Sequence[float]) -> tuple[Draw, Draw]:
    """Return draws without randomness: of the genes to remove, and of the genes to restore.

    :param worth: for each gene, the loss from its removal per cost; genes of the lowest worth are
        removed first, and genes of the highest are restored first. Of equal ones the last is
        removed first, and the first restored first: parts may be in order of importance.
    """
    return (
        lambda genes, count: sorted(genes, key=lambda gene: (worth[gene], -gene)),
        lambda genes, count: sorted(genes, key=lambda gene: (-worth[gene], gene)),
    )
