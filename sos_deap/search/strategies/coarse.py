"""Coarse to fine: how many genes of each layer go, and then which."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import permutations
from typing import Any

from sos_deap.errors import InputError
from sos_deap.search.space import Space
from sos_deap.search.strategies.exchange import Exchange, few_moves


class CoarseToFine(Exchange):
    """How many heads each layer keeps, and then which.

    In the first part of the budget a move gives a layer its most important removed gene back and
    takes the least important kept one of another layer, by a prior. Then moves are exchanges within
    a layer.

    :param prior: an importance in ``space.priors``; to begin with, and the order in each layer.
    :param coarse: the share of the budget for how many.
    :param children: children a generation; as many as the initial population unless told.
    :param moves: most moves of a child.
    :raises InputError: for a number below 1, a share outside [0, 1], and an unknown prior.
    """

    def __init__(
        self,
        space: Space,
        population: Sequence[Any],
        budget: float,
        prior: str = "wanda",
        coarse: float = 0.5,
        children: int | None = None,
        moves: int = 3,
    ) -> None:
        super().__init__(space, population, budget, children, moves, prior=prior)
        if not 0 <= coarse <= 1:
            raise InputError(f"coarse is {coarse}: give a share of the budget from 0 to 1")
        self._fine = self.left * (1 - coarse)  # what is left when it begins

    def initial(self) -> list[Any]:
        """The prior's choice, and children of it."""
        assert self._worth is not None
        self.incumbent = self.space.keeping_best(self._worth)
        return [self.incumbent, *self._offspring(self._children - 1)]

    def _offspring(self, count: int) -> list[Any]:
        return [self._moved() for _ in range(count)]

    def _moved(self) -> Any:
        genes = list(self.incumbent)
        for _ in range(few_moves(self._moves)):
            move = self._within(genes) if self.left <= self._fine else self._between(genes)
            for gene in move:
                genes[gene] = 1 - genes[gene]
        return self.space.individual(genes)

    def _between(self, genes: Sequence[int]) -> list[int]:
        """The next gene of one layer to come back and of another to go; none in a single layer."""
        worth = self._worth
        assert worth is not None
        layers = [_removed_and_kept(layer, genes) for layer in self.space.layers]
        pairs = [
            (removed, kept)
            for (removed, _), (_, kept) in permutations(layers, 2)
            if removed and kept
        ]
        if not pairs:
            return []
        removed, kept = random.choice(pairs)
        return [max(removed, key=worth.__getitem__), min(kept, key=worth.__getitem__)]

    def _within(self, genes: Sequence[int]) -> list[int]:
        """Two genes of one layer to change places; none where all layers are whole or gone."""
        layers = [_removed_and_kept(layer, genes) for layer in self.space.layers]
        mixed = [layer for layer in layers if all(layer)]
        return [random.choice(part) for part in random.choice(mixed)] if mixed else []


def _removed_and_kept(layer: Sequence[int], genes: Sequence[int]) -> tuple[list[int], list[int]]:
    """The numbers of a layer's genes that are 0, and of those that are 1."""
    return [i for i in layer if not genes[i]], [i for i in layer if genes[i]]
