"""Local search: the best of the neighbours, the promising ones first."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from sos_deap.search.space import Space, removed_and_kept
from sos_deap.search.strategies.strategy import Strategy, best, check_at_least_one, value

Move = tuple[int, int]  # the gene that comes back, and the one that goes


class LocalSearch(Strategy):
    """Best improvement at constant sparsity, from a prior's choice to a local optimum.

    A neighbour is one exchange away. Those that the prior finds best are evaluated first, a round
    at a time; the best of a round is the next sub-model if it is better, and then its neighbours
    are looked at anew. Where none of all the neighbours is better it is done.

    :param neighbours: how many are evaluated in a round.
    :param prior: an importance in ``space.priors`` to begin with; without one the search begins
        with the first of the initial population, and looks at neighbours in the genes' order.
    :raises InputError: for less than one neighbour, and an unknown prior.
    """

    def __init__(
        self,
        space: Space,
        population: Sequence[Any],
        budget: float,
        neighbours: int = 24,
        prior: str | None = None,
    ) -> None:
        super().__init__(space, population, budget)
        check_at_least_one(neighbours=neighbours)
        self._neighbours = neighbours
        self._prior = prior
        self.left -= space.cost_of(prior)
        self._moves: list[Move] = []  # from the incumbent, not tried yet

    def generate(self) -> list[Any]:
        """Where to begin; then a round of neighbours."""
        if self.incumbent is None:
            if self._prior is None:
                return self.initial()[:1]
            return [self.space.keeping_best(self._importance)]
        count = self.affordable(self._neighbours)
        now, self._moves = self._moves[:count], self._moves[count:]
        return [self._moved(move) for move in now]

    def update(self, individuals: list[Any]) -> None:
        """Move if that is better."""
        self.spend(individuals)
        neighbour = best(individuals)
        if self.incumbent is None or value(neighbour) > value(self.incumbent):
            self.incumbent = neighbour
            removed, kept = removed_and_kept(neighbour)
            moves = [(back, gone) for back in removed for gone in kept]
            self._moves = sorted(moves, key=self._loss)
        self.done = self.left < 1 or not self._moves

    @cached_property
    def _importance(self) -> Sequence[float]:
        if self._prior is None:
            return [0.0] * len(self.space)
        return self.space.importance(self._prior)

    def _loss(self, move: Move) -> float:
        """What a move costs by the prior."""
        back, gone = move
        return self._importance[gone] - self._importance[back]

    def _moved(self, move: Move) -> Any:
        genes = list(self.incumbent)
        back, gone = move
        genes[back], genes[gone] = 1, 0
        return self.space.individual(genes)
