"""Baselines from the literature: searches at constant sparsity with the same budget."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from sos_deap.errors import InputError
from sos_deap.search.budget import removed_and_kept
from sos_deap.search.space import Space
from sos_deap.search.strategies.strategy import Strategy, best, value


class RandomSearch(Strategy):
    """Random search (Bergstra and Bengio, 2012): the best of random chromosomes."""

    def generate(self) -> list[Any]:
        """Return the initial population at S; later, as many random individuals."""
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
    one for the result; one more for the dense model, if the genes' costs differ, because the
    ranking is by loss per cost. If the budget allows less, the ranking uses fewer examples, at
    least one; it is completed even beyond the budget.

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
        asked = len(space) + (not space.equal)
        # One evaluation of the budget is for the winner.
        self._windows = space.windows((budget - 1) / asked if share is None else share)

    def generate(self) -> list[Any]:
        """Return the dense model without each gene in turn; then the result of the ranking."""
        if self._prior is not None:
            self.incumbent = self._chosen(self.space.importance(self._prior))
        if self.incumbent is not None:
            return [self.incumbent]
        dense = [] if self.space.equal else [self.space.without([])]
        asked = [*dense, *(self.space.without([gene]) for gene in range(len(self.space)))]
        window = next(self._windows)
        for individual in asked:
            individual.examples = window
        return asked

    def update(self, individuals: list[Any]) -> None:
        """Rank the genes; then finish."""
        if self.incumbent is None:
            values = list(map(value, individuals))
            reference = 0.0 if self.space.equal else values.pop(0)
            losses = [reference - one for one in values]
            self.losses = None if self.space.equal else losses  # else all have the same offset
            self.incumbent = self._chosen(losses)
        else:
            self.incumbent, self.done = individuals[0], True

    def _chosen(self, losses: Sequence[float]) -> Any:
        """Return the solution by the loss from the removal of each gene alone."""
        return self.space.keeping_best(losses)


class Greedy(Strategy):
    """Greedy pruning: removes one gene at a time, the one with the least loss per cost.

    If the budget does not allow all candidates at each step, it evaluates a random sample of them
    (stochastic greedy; Mirzasoleiman et al., 2015), at least one. If the budget ends first, the
    remaining genes are removed at random. If the genes' costs differ, the dense model is evaluated
    as well, which losses are measured from.
    """

    def __init__(self, space: Space, population: Sequence[Any], budget: float) -> None:
        super().__init__(space, population, budget)
        self.incumbent = space.without([])
        self._candidates: list[int] = []  # the genes whose removal is evaluated
        self.left -= 1  # for the final score

    def generate(self) -> list[Any]:
        """Return candidates: the current sub-model without one more gene."""
        removed = removed_and_kept(self.incumbent)[0]
        fitting = self.space.fitting(self.incumbent)
        if not fitting:
            self._candidates = []
            return [self.incumbent]
        steps = max(1, self.space.steps(self.incumbent))
        allowed = max(1, int(min(self.left / steps, len(fitting))))
        # Sorted, so that consecutive candidates share as many layers as possible.
        self._candidates = sorted(random.sample(fitting, allowed))
        children = [self.space.without([*removed, gene]) for gene in self._candidates]
        return children if self._comparable else [self.incumbent, *children]

    def update(self, individuals: list[Any]) -> None:
        """Continue with the best individual, by its loss per cost."""
        self.spend(individuals)
        if len(individuals) > len(self._candidates):  # the first is the current sub-model
            [self.incumbent, *individuals] = individuals
        if self._candidates:
            known = self.incumbent.fitness.valid and not self.space.equal
            reference = value(self.incumbent) if known else 0.0
            relative = self.space.budget.relative
            losses = [
                (reference - value(one)) / relative[gene]
                for one, gene in zip(individuals, self._candidates, strict=True)
            ]
            self.incumbent = individuals[losses.index(min(losses))]
        self.done = self.space.full(self.incumbent)

    @property
    def _comparable(self) -> bool:
        """Whether losses per cost can be compared without the fitness of the current sub-model."""
        return self.space.equal or self.incumbent.fitness.valid
