"""EvoPress: one parent, many children, a selection in stages on fresh and growing data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sos_deap.errors import InputError
from sos_deap.search.space import Space, exchanged
from sos_deap.search.strategies.exchange import few_moves
from sos_deap.search.strategies.strategy import Strategy, check_at_least_one, value


class EvoPress(Strategy):
    """(1 + lambda) at constant sparsity (Sieberling et al., 2024), for genes of two levels.

    A generation draws fresh examples. All children are scored on a few of them, the best on more;
    the last stage takes in the parent, and its best is the next parent. Fitness is compared on the
    same examples only.

    :param children: children a generation.
    :param moves: most exchange moves of a child, the paper's level switches.
    :param survivors: children that reach the next stage, or each further one.
    :param growth: how many times the examples of one stage the next has.
    :param generations: how many to plan for; the budget then says how many examples a stage has, at
        least one, so that a small one allows fewer generations.
    :raises InputError: for a number below 1, and survivors that become more.
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
                f"survivors is {survivors}: give numbers that do not grow from stage to stage, "
                f"from {children} children to 1"
            )
        self._children, self._moves = children, moves
        self._survivors, self._growth = survivors, growth
        self.left -= 1  # the final score on all examples
        # Of a generation, in evaluations on the last stage's examples; 1 is the parent's. Who
        # reaches a stage was scored on the beginning of its examples before, which costs nothing.
        fresh = 1 - 1 / growth
        sizes = [growth ** (i - len(survivors)) for i in range(len(stages) - 1)]
        self._cost = 1 + children * sizes[0]
        self._cost += sum(n * size * fresh for n, size in zip(survivors, sizes[1:], strict=True))
        self._windows = space.windows(self.left / (generations * self._cost))
        self._stage = 0
        self._window = (0, 1)
        self._racing: list[list[int]] = []
        self._scored = 0.0  # share of all examples that those who race were scored on

    def generate(self) -> list[Any]:
        """The children of a stage on its examples, in the last stage with their parent."""
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
        """Drop the worse ones, and at the last stage find the next parent."""
        self.spend(individuals)
        self.left += len(self._racing) * self._scored  # what the evaluator knew of these
        # Of equals the children come first, so that a plateau is no end.
        ranked = sorted(individuals, key=value, reverse=True)
        if self._stage < len(self._survivors):
            self._racing = [list(one) for one in ranked[: self._survivors[self._stage]]]
            self._stage += 1
            self._scored = self.space.share(individuals[0])
            return
        self.incumbent, self._stage, self._scored = ranked[0], 0, 0.0
        # Of examples that are whole numbers, so that the plan may be over sooner or later.
        self.done = self.left < self._cost * self.space.share(ranked[0])

    def finalists(self) -> list[Any]:
        """The parent; before there is one, the best of the first generation so far."""
        return super().finalists() or [self.space.individual(genes) for genes in self._racing[:1]]

    def _offspring(self) -> list[list[int]]:
        if self.incumbent is None:
            return [list(individual) for individual in self.initial()]
        return [exchanged(self.incumbent, few_moves(self._moves)) for _ in range(self._children)]

    def _examples(self) -> tuple[int, int]:
        """The beginning of the window, longer at every stage."""
        start, stop = self._window
        size = (stop - start) / self._growth ** (len(self._survivors) - self._stage)
        return start, start + max(1, round(size))
