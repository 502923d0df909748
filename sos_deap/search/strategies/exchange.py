"""Search at constant sparsity by exchange moves."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from sos_deap.errors import InputError
from sos_deap.search.space import Space, exchanged
from sos_deap.search.strategies.strategy import Strategy, best, check_at_least_one, value
from sos_deap.search.strategies.surrogate import Surrogate


def few_moves(most: int) -> int:
    """A number of exchange moves, mostly few: the less of two draws from 1 to ``most``."""
    return min(random.randint(1, most), random.randint(1, most))


class Exchange(Strategy):
    """(1 + lambda) by exchange moves: children of the best so far, which the best child replaces.

    The number of moves is the less of two uniform draws, as in EvoPress (Sieberling et al., 2024).

    With ``screen`` many more children are made than evaluated: a surrogate, which learns from all
    evaluations, picks the most promising, as long as its predictions have been good enough. A share
    of the children is taken as it comes, so that what it is wrong about is found out.

    :param children: children a generation; as many as the initial population unless told.
    :param moves: most exchange moves of a child.
    :param screen: children made for each that is evaluated; 1 is without a surrogate.
    :param unscreened: the share of children that are taken as they come.
    :param prior: an importance in ``space.priors`` to begin with, which is the surrogate's prior
        mean, too.
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
        """The initial population, brought to the sparsity; then children of the best."""
        if self.incumbent is None:
            return self.initial()
        count = self.affordable(self._children)
        if self._screen == 1 or not self._surrogate.trusted:
            return self._offspring(count)
        return self._screened(self._offspring(count * self._screen), count)

    def update(self, individuals: list[Any]) -> None:
        """A child as good as the best replaces it, so that a plateau is no end."""
        self.spend(individuals)
        self.done = self.left < 1
        if self._screen > 1:
            self._surrogate.learn(individuals)
        child = best(individuals)
        if self.incumbent is None or value(child) >= value(self.incumbent):
            self.incumbent = child

    def initial(self) -> list[Any]:
        """The initial population, of which a prior's choice takes the first place."""
        people = super().initial()
        if self._worth is not None:
            people[0] = self.space.keeping_best(self._worth)
        return people

    @cached_property
    def _worth(self) -> Sequence[float] | None:
        return None if self._prior is None else self.space.importance(self._prior)

    @cached_property
    def _surrogate(self) -> Surrogate:
        return Surrogate(self._worth)

    def _offspring(self, count: int) -> list[Any]:
        return [
            self.space.individual(exchanged(self.incumbent, few_moves(self._moves)))
            for _ in range(count)
        ]

    def _screened(self, children: list[Any], count: int) -> list[Any]:
        """The first ones as they come, and the most promising of the others."""
        free = round(self._unscreened * count)
        others = children[free:]
        promise = self._surrogate.predict(others)
        order = sorted(range(len(others)), key=lambda i: -promise[i])
        return children[:free] + [others[i] for i in order[: count - free]]
