"""EvoPress: one parent, many children, selection in stages on new and growing data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sos_deap.errors import InputError
from sos_deap.search.space import Space
from sos_deap.search.strategies.exchange import few_moves
from sos_deap.search.strategies.strategy import Strategy, check_at_least_one, value


class EvoPress(Strategy):
    """A (1 + lambda) evolution strategy with multi-stage selection (Sieberling et al., 2024).

    At constant sparsity, for genes of two levels: the exchanges are level switches, corrected for
    cost if the genes' costs differ. Each generation draws new examples. All children are scored on
    a few of them, and the best children on more; the last stage includes the parent,
    and its best individual is the next parent. Only fitness on the same examples is compared.

    :param children: number of children per generation, at least 1.
    :param moves: maximum number of exchanges per child (level switches in the EvoPress paper), at
        least 1.
    :param survivors: number of children that reach the second stage, or one number for each further
        stage, not increasing.
    :param growth: ratio of the number of examples of a stage to that of the stage before, at least
        1.
    :param generations: number of generations to plan for, at least 1; with the budget it sets the
        number of examples of a stage, at least one, so that a small budget allows fewer
        generations.
    :raises InputError: for a number below 1, and for increasing survivors.
    """

    def __init__(
        self,
        space: Space,
        population: Sequence[Any],
        budget: float,
        children: int = 16,
        moves: int = 3,
        survivors: int | Sequence[int] = (3,),
        growth: float = 4,
        generations: int = 60,
    ) -> None:
        super().__init__(space, population, budget)
        survivors = [survivors] if isinstance(survivors, int) else list(survivors)
        check_at_least_one(children=children, moves=moves, growth=growth, generations=generations)
        stages = [children, *survivors, 1]
        if not all(type(n) is int for n in stages) or sorted(stages, reverse=True) != stages:
            raise InputError(
                f"survivors is {survivors}: give integers from {children} (the children) to 1, "
                "none larger than the one before"
            )
        self._children, self._moves = children, moves
        self._survivors, self._growth = survivors, growth
        self.left -= 1  # the final score on all examples
        # The cost of a generation, in evaluations on the last stage's examples; 1 is the parent's.
        # Children that reach a stage were scored on the first part of its examples before, which
        # the evaluator has cached.
        fresh = 1 - 1 / growth
        sizes = [growth ** (i - len(survivors)) for i in range(len(stages) - 1)]
        self._cost = 1 + children * sizes[0]
        self._cost += sum(n * size * fresh for n, size in zip(survivors, sizes[1:], strict=True))
        self._windows = space.windows(self.left / (generations * self._cost))
        self._stage = 0
        self._window = (0, 1)
        self._racing: list[list[int]] = []
        self._scored = 0.0  # share of all examples that the remaining children were scored on

    def generate(self) -> list[Any]:
        """Return the children of a stage with its examples; in the last stage also the parent."""
        if self._stage == 0:
            self._window = next(self._windows)
            self._racing = self._offspring()
        last = self._stage == len(self._survivors)
        parent = [list(self.incumbent)] if last and self.incumbent is not None else []
        individuals = [self.space.individual(genes) for genes in (*self._racing, *parent)]
        for individual in individuals:
            individual.examples = self._examples()
        return individuals

    def update(self, individuals: list[Any]) -> None:
        """Keep the best children; after the last stage, the best one is the next parent."""
        self.spend(individuals)
        self.left += len(self._racing) * self._scored  # the part that the evaluator had cached
        # The sort is stable: a child precedes a parent of equal fitness, also on a plateau.
        ranked = sorted(individuals, key=value, reverse=True)
        if self._stage < len(self._survivors):
            self._racing = [list(one) for one in ranked[: self._survivors[self._stage]]]
            self._stage += 1
            self._scored = self.space.share(individuals[0])
            return
        self.incumbent, self._stage, self._scored = ranked[0], 0, 0.0
        # Numbers of examples are rounded, so that more or fewer generations may fit the budget.
        self.done = self.left < self._cost * self.space.share(ranked[0])

    def finalists(self) -> list[Any]:
        """Return the parent; in the first generation, the best of its children so far."""
        return super().finalists() or [self.space.individual(genes) for genes in self._racing[:1]]

    def _offspring(self) -> list[list[int]]:
        if self.incumbent is None:
            return [list(individual) for individual in self.initial()]
        return [
            self.space.exchanged(self.incumbent, few_moves(self._moves))
            for _ in range(self._children)
        ]

    def _examples(self) -> tuple[int, int]:
        """Return the examples of the stage: the first part of the window, larger at each stage."""
        start, stop = self._window
        size = (stop - start) / self._growth ** (len(self._survivors) - self._stage)
        return start, start + max(1, round(size))
