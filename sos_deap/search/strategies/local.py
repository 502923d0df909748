"""Local search: move to the best neighbour, with the promising ones evaluated first."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from sos_deap.search.budget import removed_and_kept
from sos_deap.search.space import Space
from sos_deap.search.strategies.strategy import Strategy, best, check_at_least_one, value

Move = tuple[int, int]  # the gene to restore, and the gene to remove


class LocalSearch(Strategy):
    """Best-improvement local search at constant sparsity, down to a local optimum.

    A neighbour differs by one exchange; if the costs of the two genes differ, more genes are
    restored or removed, in the order of their loss per cost. Neighbours are evaluated in rounds, in
    the order of their loss by the prior. If the best of a round is better than the current
    sub-model, it becomes the current one, with new neighbours. The search is finished when no
    neighbour is better.

    :param neighbours: number of neighbours evaluated in a round, at least 1.
    :param prior: name of an importance in ``space.priors``; the search starts from the individual
        that removes the least important genes. Default: it starts from the first of the initial
        population, and the neighbours are in the order of their genes.
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
        self._moves: list[Move] = []  # from the incumbent, not evaluated yet

    def generate(self) -> list[Any]:
        """Return the individual to start from; later, a round of neighbours."""
        if self.incumbent is None:
            if self._prior is None:
                return self.initial()[:1]
            return [self.space.keeping_best(self._importance)]
        count = self.affordable(self._neighbours)
        now, self._moves = self._moves[:count], self._moves[count:]
        return [self._moved(move) for move in now]

    def update(self, individuals: list[Any]) -> None:
        """Move to the best neighbour of the round if it is better."""
        self.spend(individuals)
        neighbour = best(individuals)
        if self.incumbent is None or value(neighbour) > value(self.incumbent):
            self.incumbent = neighbour
            removed, kept = removed_and_kept(neighbour)
            moves = [(restored, dropped) for restored in removed for dropped in kept]
            self._moves = sorted(moves, key=self._loss)
        self.done = self.left < 1 or not self._moves

    @cached_property
    def _importance(self) -> Sequence[float]:
        if self._prior is None:
            return [0.0] * len(self.space)
        return self.space.importance(self._prior)

    @cached_property
    def _per_cost(self) -> list[float]:
        return self.space.per_cost(self._importance)

    def _loss(self, move: Move) -> float:
        """Return the loss in importance per cost from a move, by the prior."""
        restored, dropped = move
        return self._per_cost[dropped] - self._per_cost[restored]

    def _moved(self, move: Move) -> Any:
        genes = list(self.incumbent)
        restored, dropped = move
        genes[restored], genes[dropped] = 1, 0
        return self.space.individual(self.space.settled(genes, self.incumbent, self._importance))
