"""The field's searches at constant sparsity, behind the same evaluator and budget."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from sos_deap.errors import InputError
from sos_deap.search.space import Space, removed_and_kept
from sos_deap.search.strategies.strategy import Strategy, best, value


class RandomSearch(Strategy):
    """Chromosomes at random, of which the best wins (Bergstra and Bengio, 2012)."""

    def generate(self) -> list[Any]:
        """As many as the initial population, and at first that, brought to the sparsity."""
        count = self.affordable(len(self.population))
        like = self.population if self.incumbent is None else [()] * count
        return [self.space.random(like=genes) for genes in like[:count]]

    def update(self, individuals: list[Any]) -> None:
        """Keep the best."""
        self.spend(individuals)
        self.done = self.left < 1
        known = [] if self.incumbent is None else [self.incumbent]
        self.incumbent = best([*known, *individuals])


class OneShot(Strategy):
    """One ranking of all genes, of which the last go together.

    Without a prior each gene is removed alone from the whole model, and its importance is what that
    costs, as in Michel, Levy and Neubig (2019), section 3.2. A ranking takes one evaluation per
    gene and one. Where the budget allows less, it is on fewer examples, at least one; that it
    finishes, also where this overruns the budget.

    :param prior: an importance in ``space.priors`` to rank by instead, such as ``wanda``.
    :param share: of all examples to rank on; what the budget allows unless told.
    :raises InputError: for an unknown prior, a share of nothing or more than all, and both at once.
    """

    def __init__(
        self,
        space: Space,
        population: Sequence[Any],
        budget: float,
        prior: str | None = None,
        share: float | None = None,
    ) -> None:
        super().__init__(space, population, budget)
        if share is not None and not 0 < share <= 1:
            raise InputError(f"share is {share}: give a share of the examples above 0, at most 1")
        if share is not None and prior is not None:
            raise InputError(f"share is for a ranking by evaluations: leave it or {prior=} out")
        space.cost_of(prior)  # which refuses what is none
        self._prior = prior
        # Of the budget one is kept for the winner.
        self._windows = space.windows((budget - 1) / len(space) if share is None else share)

    def generate(self) -> list[Any]:
        """The whole model without each gene in turn; then what is left of the ranking."""
        if self._prior is not None:
            self.incumbent = self.space.keeping_best(self.space.importance(self._prior))
        if self.incumbent is not None:
            return [self.incumbent]
        alone = [self.space.without([gene]) for gene in range(len(self.space))]
        window = next(self._windows)
        for individual in alone:
            individual.examples = window
        return alone

    def update(self, individuals: list[Any]) -> None:
        """Rank."""
        if self.incumbent is None:
            self.incumbent = self.space.keeping_best([-value(i) for i in individuals])
        else:
            self.incumbent, self.done = individuals[0], True


class Greedy(Strategy):
    """Removes one gene after another, each time the one that costs least there.

    Where the budget does not allow all candidates each time, so many are drawn at random
    (stochastic greedy; Mirzasoleiman et al., 2015), at least one; what a budget below one
    evaluation a gene leaves to remove goes at random (:meth:`Strategy.finalists`).
    """

    def __init__(self, space: Space, population: Sequence[Any], budget: float) -> None:
        super().__init__(space, population, budget)
        self.incumbent = space.without([])
        self.left -= 1  # for the end, whatever it is

    def generate(self) -> list[Any]:
        """The current sub-model without one more gene."""
        removed, kept = removed_and_kept(self.incumbent)
        steps = self.space.removed - len(removed)
        allowed = max(1, int(min(self.left / max(1, steps), len(kept))))
        # In order, so that neighbours share the most layers.
        candidates = sorted(random.sample(kept, allowed)) if steps else []
        return [self.space.without([*removed, gene]) for gene in candidates] or [self.incumbent]

    def update(self, individuals: list[Any]) -> None:
        """Go on with the best."""
        self.spend(individuals)
        self.incumbent = best(individuals)
        self.done = len(self.incumbent) - sum(self.incumbent) >= self.space.removed


class Layers(Strategy):
    """The attention half of SLEB (Song et al., 2024): whole attention layers go, greedily.

    After each the others are evaluated again. What is left of the sparsity below a whole layer is
    taken from the next best layer, at random. It takes an evaluation a layer for each layer that
    goes, whatever the budget; where the search is ended before, the rest goes at random.
    """

    def __init__(self, space: Space, population: Sequence[Any], budget: float) -> None:
        super().__init__(space, population, budget)
        self.incumbent = space.without([])

    def generate(self) -> list[Any]:
        """The current sub-model without one more layer; at last without a part of the best."""
        gone = removed_and_kept(self.incumbent)[0]
        left = self.space.removed - len(gone)
        whole = [layer for layer in self.space.layers if layer[0] not in gone]
        return [
            self.space.without([*gone, *random.sample(layer, min(left, len(layer)))])
            for layer in [layer for layer in whole if len(layer) <= left] or whole
        ]

    def update(self, individuals: list[Any]) -> None:
        """Go on with the best."""
        self.incumbent = best(individuals)
        self.done = len(self.incumbent) - sum(self.incumbent) >= self.space.removed
