"""Search at constant sparsity by exchange moves."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from sos_deap.search.space import Space, exchanged
from sos_deap.search.strategy import Strategy, best, check_at_least_one, value


def few_moves(most: int) -> int:
    """A number of exchange moves, mostly few: the less of two draws from 1 to ``most``."""
    return min(random.randint(1, most), random.randint(1, most))


class Exchange(Strategy):
    """(1 + lambda) by exchange moves: children of the best so far, which the best child replaces.

    The number of moves is the less of two uniform draws, as in EvoPress (Sieberling et al., 2024).

    :param children: children a generation; as many as the initial population unless told.
    :param moves: most exchange moves of a child.
    :raises InputError: for a number below 1.
    """

    def __init__(
        self,
        space: Space,
        population: Sequence[Any],
        budget: float,
        children: int | None = None,
        moves: int = 3,
    ) -> None:
        super().__init__(space, population, budget)
        self._children = len(population) if children is None else children
        check_at_least_one(children=self._children, moves=moves)
        self._moves = moves

    def generate(self) -> list[Any]:
        """The initial population, brought to the sparsity; then children of the best."""
        if self.incumbent is None:
            return self.initial()
        return [
            self.space.individual(exchanged(self.incumbent, few_moves(self._moves)))
            for _ in range(self.affordable(self._children))
        ]

    def update(self, individuals: list[Any]) -> None:
        """A child as good as the best replaces it, so that a plateau is no end."""
        self.spend(individuals)
        self.done = self.left < 1
        child = best(individuals)
        if self.incumbent is None or value(child) >= value(self.incumbent):
            self.incumbent = child
