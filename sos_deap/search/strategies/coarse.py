"""Coarse-to-fine search: first how many genes of each part to remove, then which."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cached_property
from itertools import permutations
from typing import Any

from sos_deap.errors import InputError
from sos_deap.search.budget import removed_and_kept
from sos_deap.search.space import Space
from sos_deap.search.strategies.exchange import Exchange, few_moves


class CoarseToFine(Exchange):
    """Search for the number of genes that each part keeps, then for the genes.

    A part holds the genes of one kind in one layer, such as its heads; kinds with one gene per
    layer form one part over all layers. In the first part of the budget, a move restores the most
    important removed gene of one part and removes the least important kept gene of another part,
    by a prior. In the second, a move exchanges two genes of one part. If the costs of the genes
    differ, more genes are restored or removed, in the order of the prior.

    :param prior: name of an importance in ``space.priors``, which gives the individual to start
        from and the order of the genes in each layer.
    :param coarse: share of the budget for the first part, from 0 to 1.
    :param children: number of children per generation, at least 1; default: the size of the initial
        population.
    :param moves: maximum number of moves per child, at least 1.
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
        self._fine = self.left * (1 - coarse)  # budget left when part two begins

    def initial(self) -> list[Any]:
        """Return the individual that removes the least important genes, and children of it."""
        assert self._worth is not None
        self.incumbent = self.space.keeping_best(self._worth)
        return [self.incumbent, *self._offspring(self._children - 1)]

    @cached_property
    def _parts(self) -> list[list[int]]:
        """The indices of the genes of each part; parts of one gene are joined by their kind."""
        parts: dict[object, list[int]] = {}
        for number, (part, span) in enumerate(zip(self.space.parts, self.space.spans, strict=True)):
            parts.setdefault(part.kind if part.size == 1 else number, []).extend(span)
        return list(parts.values())

    def _offspring(self, count: int) -> list[Any]:
        return [self._moved() for _ in range(count)]

    def _moved(self) -> Any:
        genes = list(self.incumbent)
        for _ in range(few_moves(self._moves)):
            move = self._within(genes) if self.left <= self._fine else self._between(genes)
            for gene in move:
                genes[gene] = 1 - genes[gene]
        return self.space.individual(self.space.settled(genes, self.incumbent, self._worth))

    def _between(self, genes: Sequence[int]) -> list[int]:
        """Return a gene of one part to restore and one of another to remove, if possible."""
        worth = self._worth
        assert worth is not None
        parts = [removed_and_kept(genes, part) for part in self._parts]
        pairs = [
            (removed, kept)
            for (removed, _), (_, kept) in permutations(parts, 2)
            if removed and kept
        ]
        if not pairs:
            return []
        removed, kept = random.choice(pairs)
        return [max(removed, key=worth.__getitem__), min(kept, key=worth.__getitem__)]

    def _within(self, genes: Sequence[int]) -> list[int]:
        """Return a removed and a kept gene of one part; no genes if no part has both."""
        parts = [removed_and_kept(genes, part) for part in self._parts]
        mixed = [part for part in parts if all(part)]
        return [random.choice(side) for side in random.choice(mixed)] if mixed else []
