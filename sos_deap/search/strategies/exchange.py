"""Search at constant sparsity by exchange moves."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from sos_deap.errors import InputError
from sos_deap.search.space import Space
from sos_deap.search.strategies.strategy import Strategy, best, check_at_least_one, value
from sos_deap.search.strategies.surrogate import Surrogate


def few_moves(most: int) -> int:
    """Return a random number of exchange moves: the minimum of two draws from 1 to ``most``."""
    return min(random.randint(1, most), random.randint(1, most))


class Exchange(Strategy):
    """A (1 + lambda) evolution strategy whose mutation exchanges removed and kept genes.

    Children are mutations of the best individual so far; the best child replaces it if its fitness
    is at least as high. The number of exchanges is the minimum of two uniform draws, as in EvoPress
    (Sieberling et al., 2024).

    With ``screen`` above 1, more children are made than evaluated: a surrogate model, fitted to all
    evaluations, selects the most promising ones, provided that its recent predictions were good
    enough (:attr:`sos_deap.search.strategies.surrogate.Surrogate.trusted`). A share of the children
    is evaluated without that selection, so that the surrogate's errors show.

    :param children: number of children per generation, at least 1; default: the size of the initial
        population.
    :param moves: maximum number of exchanges per child, at least 1.
    :param screen: number of children made per child evaluated; 1 uses no surrogate.
    :param unscreened: share of the children that are evaluated without selection, from 0 to 1.
    :param prior: name of an importance in ``space.priors``; the search starts from the individual
        that removes the least important genes, and the importance is the surrogate's prior mean.
        Default: the search starts from the initial population.
    :raises InputError: for a number below 1, a share outside [0, 1], and an unknown prior.
    """

    def __init__(
        self,
        space: Space,
        population: Sequence[Any],
        budget: float,
        children: int | None = None,
        moves: int = 3,
        screen: int = 1,
        unscreened: float = 0.15,
        prior: str | None = None,
    ) -> None:
        super().__init__(space, population, budget)
        self._children = len(population) if children is None else children
        check_at_least_one(children=self._children, moves=moves, screen=screen)
        if not 0 <= unscreened <= 1:
            raise InputError(f"unscreened is {unscreened}: give a share from 0 to 1")
        self._moves, self._screen, self._unscreened = moves, screen, unscreened
        self._prior = prior
        self.left -= space.cost_of(prior)

    def generate(self) -> list[Any]:
        """Return the initial population at the sparsity; later, children of the best individual."""
        if self.incumbent is None:
            return self.initial()
        count = self.affordable(self._children)
        if self._screen == 1 or not self._surrogate.trusted:
            return self._offspring(count)
        return self._screened(self._offspring(count * self._screen), count)

    def update(self, individuals: list[Any]) -> None:
        """Replace the best individual by a child of at least its fitness, also on a plateau."""
        self.spend(individuals)
        self.done = self.left < 1
        if self._screen > 1:
            self._surrogate.learn(individuals)
        child = best(individuals)
        if self.incumbent is None or value(child) >= value(self.incumbent):
            self.incumbent = child

    def initial(self) -> list[Any]:
        """Return the initial population; with a prior its first individual follows the prior."""
        individuals = super().initial()
        if self._worth is not None:
            individuals[0] = self.space.keeping_best(self._worth)
        return individuals

    @cached_property
    def _worth(self) -> Sequence[float] | None:
        return None if self._prior is None else self.space.importance(self._prior)

    @cached_property
    def _surrogate(self) -> Surrogate:
        return Surrogate(self._worth)

    def _offspring(self, count: int) -> list[Any]:
        return [
            self.space.individual(self.space.exchanged(self.incumbent, few_moves(self._moves)))
            for _ in range(count)
        ]

    def _screened(self, children: list[Any], count: int) -> list[Any]:
        """Return some of the children unselected, and the most promising of the others."""
        free = round(self._unscreened * count)
        others = children[free:]
        predicted = self._surrogate.predict(others)
        order = sorted(range(len(others)), key=lambda i: -predicted[i])
        return children[:free] + [others[i] for i in order[: count - free]]
