"""Baselines from the literature: searches at constant sparsity with the same budget."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from sos_deap.errors import InputError
from sos_deap.search.space import Space, removed_and_kept
from sos_deap.search.strategies.strategy import Strategy, best, value


class RandomSearch(Strategy):
    """Random search (Bergstra and Bengio, 2012): the best of random chromosomes."""

    def generate(self) -> list[Any]:
        """Return the initial population at the sparsity; later, as many random individuals."""
        count = self.affordable(len(self.population))
        like = self.population if self.incumbent is None else [()] * count
        return [self.space.random(like=genes) for genes in like[:count]]

    def update(self, individuals: list[Any]) -> None:
        """Keep the best individual."""
        self.spend(individuals)
        self.done = self.left < 1
        known = [] if self.incumbent is None else [self.incumbent]
        self.incumbent = best([*known, *individuals])


class OneShot(Strategy):
    """One-shot pruning: one ranking of all genes, the lowest of which are removed together.

    Without a prior, each gene is removed alone from the dense model, and its importance is the loss
    in fitness (Michel, Levy and Neubig, 2019, section 3.2). This takes one evaluation per gene, and
    one for the result. If the budget allows less, the ranking uses fewer examples, at least one; it
    is completed even beyond the budget.

    :param prior: name of an importance in ``space.priors`` to rank by, such as ``wanda``. Default:
        a ranking by evaluations.
    :param share: share of all examples to rank on, above 0, at most 1. Default: as large as the
        budget allows.
    :raises InputError: for an unknown prior, a share out of range, and a prior with a share.
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
        space.cost_of(prior)  # raises for an unknown prior
        self._prior = prior
        # One evaluation of the budget is for the winner.
        self._windows = space.windows((budget - 1) / len(space) if share is None else share)

    def generate(self) -> list[Any]:
        """Return the dense model without each gene in turn; then the result of the ranking."""
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
        """Rank the genes; then finish."""
        if self.incumbent is None:
            self.incumbent = self.space.keeping_best([-value(i) for i in individuals])
        else:
            self.incumbent, self.done = individuals[0], True


class Greedy(Strategy):
    """Greedy pruning: removes one gene at a time, the one whose removal costs least.

    If the budget does not allow all candidates at each step, it evaluates a random sample of them
    (stochastic greedy; Mirzasoleiman et al., 2015), at least one. If the budget ends first, the
    remaining genes are removed at random.
    """

    def __init__(self, space: Space, population: Sequence[Any], budget: float) -> None:
        super().__init__(space, population, budget)
        self.incumbent = space.without([])
        self.left -= 1  # for the final score

    def generate(self) -> list[Any]:
        """Return candidates: the current sub-model without one more gene."""
        removed, kept = removed_and_kept(self.incumbent)
        steps = self.space.removed - len(removed)
        allowed = max(1, int(min(self.left / max(1, steps), len(kept))))
        # Sorted, so that consecutive candidates share as many layers as possible.
        candidates = sorted(random.sample(kept, allowed)) if steps else []
        return [self.space.without([*removed, gene]) for gene in candidates] or [self.incumbent]

    def update(self, individuals: list[Any]) -> None:
        """Continue with the best individual."""
        self.spend(individuals)
        self.incumbent = best(individuals)
        self.done = len(self.incumbent) - sum(self.incumbent) >= self.space.removed


class Layers(Strategy):
    """The attention half of SLEB (Song et al., 2024): removes whole attention layers greedily.

    After each removal the remaining layers are evaluated again. If fewer genes are left to remove
    than a layer has, genes of the next best layer are removed at random. Each removal takes one
    evaluation per remaining layer, whatever the budget; if a limit ends the search early, the
    remaining genes are removed at random.
    """

    def __init__(self, space: Space, population: Sequence[Any], budget: float) -> None:
        super().__init__(space, population, budget)
        self.incumbent = space.without([])

    def generate(self) -> list[Any]:
        """Return the current sub-model without one more layer; at the end, a part of a layer."""
        removed = removed_and_kept(self.incumbent)[0]
        left = self.space.removed - len(removed)
        complete = [layer for layer in self.space.layers if layer[0] not in removed]
        return [
            self.space.without([*removed, *random.sample(layer, min(left, len(layer)))])
            for layer in [layer for layer in complete if len(layer) <= left] or complete
        ]

    def update(self, individuals: list[Any]) -> None:
        """Continue with the best individual."""
        self.incumbent = best(individuals)
        self.done = len(self.incumbent) - sum(self.incumbent) >= self.space.removed
