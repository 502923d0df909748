"""Bonsai: what each gene is worth, by regression over random sub-models, in rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from sos_deap.errors import InputError
from sos_deap.search.prior import drawn, removal_weights
from sos_deap.search.space import Space, removed_and_kept
from sos_deap.search.strategies.strategy import Strategy, check_at_least_one, value
from sos_deap.search.strategies.surrogate import ridge_regression


class Bonsai(Strategy):
    """Perturbative pruning with forward passes only (Dery et al., 2024).

    Each round evaluates random sub-models of the current one, regresses their fitness on the genes
    they keep, and removes the genes of the smallest coefficients. The budget is spread evenly over
    the rounds; a round has at least two sub-models, and without a budget two a gene. What is not
    removed when the search is ended goes at random.

    :param rounds: how many; each removes the same share of what is to go.
    :param ridge: the regression's penalty, in units of the mean variance of a gene.
    :param prior: an importance in ``space.priors``: what matters less is removed more often in the
        random sub-models. ``None`` draws uniformly.
    :raises InputError: for less than one round, a ridge that is not positive, an unknown prior.
    """

    def __init__(
        self,
        space: Space,
        population: Sequence[Any],
        budget: float,
        rounds: int = 4,
        ridge: float = 1.0,
        prior: str | None = None,
    ) -> None:
        super().__init__(space, population, budget)
        check_at_least_one(rounds=rounds)
        if not ridge > 0:
            raise InputError(f"ridge is {ridge}: give a penalty above 0")
        self._rounds, self._ridge, self._round = rounds, ridge, 0
        self.left -= space.cost_of(prior)
        each = (self.left - 1) / rounds
        self._size = max(2, int(each)) if math.isfinite(each) else 2 * len(space)
        self._prior = prior
        self.incumbent = space.without([])

    def generate(self) -> list[Any]:
        """Sub-models of the current one, which remove as many more as this round will."""
        if self._round == self._rounds:
            return [self.incumbent]
        removed, kept = removed_and_kept(self.incumbent)
        more = self._target() - len(removed)
        return [
            self.space.without([*removed, *drawn(kept, self._weights, more)])
            for _ in range(self._size)
        ]

    def update(self, individuals: list[Any]) -> None:
        """Remove the genes that the regression finds least worth keeping."""
        if self._round == self._rounds:
            self.done = True
            return
        removed, kept = removed_and_kept(self.incumbent)
        masks = [[individual[gene] for gene in kept] for individual in individuals]
        worth, _ = ridge_regression(masks, [value(one) for one in individuals], self._ridge)
        order = sorted(range(len(kept)), key=worth.__getitem__)
        more = self._target() - len(removed)
        self.incumbent = self.space.without([*removed, *(kept[i] for i in order[:more])])
        self._round += 1

    @cached_property
    def _weights(self) -> list[float]:
        if self._prior is None:
            return [1.0] * len(self.space)
        return removal_weights(self.space.importance(self._prior))

    def _target(self) -> int:
        """How many genes are gone after this round."""
        return round(self.space.removed * (self._round + 1) / self._rounds)
