"""Bonsai: rounds of pruning by a regression of the fitness over random sub-models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import cached_property
from typing import Any

from sos_deap.errors import InputError
from sos_deap.search.budget import removed_and_kept
from sos_deap.search.prior import drawn, removal_weights
from sos_deap.search.space import Space
from sos_deap.search.strategies.strategy import Strategy, check_at_least_one, value
from sos_deap.search.strategies.surrogate import ridge_regression


class Bonsai(Strategy):
    """Perturbative pruning with forward passes only (Dery et al., 2024).

    Each round evaluates random sub-models of the current sub-model, regresses their fitness on the
    genes that they keep, and removes the genes with the lowest coefficients per cost. The budget
    is split evenly among the rounds. A round has at least two sub-models; without a budget it has
    two per gene. If a limit ends the search early, the remaining genes are removed at random.

    :param rounds: number of rounds, at least 1; each removes the same share of S.
    :param ridge: penalty of the regression, above 0, in units of the mean variance of a gene.
    :param prior: name of an importance in ``space.priors``; the random sub-models remove genes
        of less importance per cost more often. Default: they remove all genes equally often.
    :raises InputError: for less than one round, a ridge that is not positive, and an unknown prior.
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
        """Return random sub-models of the current one, at the sparsity after this round."""
        if self._round == self._rounds:
            return [self.incumbent]

        def draw(genes: list[int], count: int) -> list[int]:
            return drawn(genes, self._weights, count)

        return [
            self.space.individual(self.space.filled(self.incumbent, draw, self._share()))
            for _ in range(self._size)
        ]

    def update(self, individuals: list[Any]) -> None:
        """Remove the genes with the lowest coefficients per cost."""
        if self._round == self._rounds:
            self.done = True
            return
        kept = removed_and_kept(self.incumbent)[1]
        masks = [[individual[gene] for gene in kept] for individual in individuals]
        worth, _ = ridge_regression(masks, [value(one) for one in individuals], self._ridge)
        loss = [0.0] * len(self.space)
        for gene, coefficient in zip(kept, worth.tolist(), strict=True):
            loss[gene] = coefficient
        genes = self.space.ranked(self.incumbent, loss, self._share())
        self.incumbent = self.space.individual(genes)
        self._round += 1

    @cached_property
    def _weights(self) -> list[float]:
        if self._prior is None:
            return [1.0] * len(self.space)
        return removal_weights(self.space.per_cost(self.space.importance(self._prior)))

    def _share(self) -> Fraction:
        """Return the share of S that is removed after this round."""
        return Fraction(self._round + 1, self._rounds)
