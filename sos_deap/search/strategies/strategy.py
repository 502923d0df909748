"""Searches that propose and learn: DEAP's ask and tell, for `algorithms.eaGenerateUpdate`.

A strategy is made of a space, an initial population and a budget. Registered as ``generate`` and
``update`` it runs under stock DEAP:

    strategy = Exchange(toolbox.search.space, toolbox.population(n=10), budget=1000)
    toolbox.register("generate", strategy.generate)
    toolbox.register("update", strategy.update)
    algorithms.eaGenerateUpdate(toolbox, ngen=100)
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from sos_deap.errors import InputError
from sos_deap.search.space import Space


class Strategy(ABC):
    """A search at constant sparsity; subclasses say what to propose and what to learn of it.

    :param space: what to choose from.
    :param population: individuals to begin with.
    :param budget: evaluations on all examples that it may plan with; ``inf`` for no end.
    """

    def __init__(self, space: Space, population: Sequence[Any], budget: float) -> None:
        self.space = space
        self.population = population
        #: What is left of the budget, for :meth:`spend`.
        self.left = budget
        #: The best individual so far, evaluated or not; ``None`` before there is any.
        self.incumbent: Any = None
        #: Whether there is nothing left to propose.
        self.done = False

    def initial(self) -> list[Any]:
        """The initial population, brought to the sparsity."""
        return [self.space.random(like=genes) for genes in self.population]

    @abstractmethod
    def generate(self) -> list[Any]:
        """The individuals to evaluate next; at least one."""

    @abstractmethod
    def update(self, individuals: list[Any]) -> None:
        """Learn from the individuals of :meth:`generate`, evaluated."""

    def spend(self, individuals: Sequence[Any]) -> None:
        """Take from the budget what evaluating individuals costs; :meth:`update` may plan by it."""
        self.left -= sum(map(self.space.share, individuals))

    def affordable(self, wanted: int) -> int:
        """How many of the individuals wanted the budget still allows; at least 1."""
        return max(1, int(min(wanted, self.left)))

    def finalists(self) -> list[Any]:
        """Individuals to score on all examples at the end, of which the best wins.

        A search that is ended on its way to the sparsity goes the rest of it at random.
        """
        if self.incumbent is None:
            return []
        if len(self.incumbent) - sum(self.incumbent) == self.space.removed:
            return [self.incumbent]
        # This is asked in every generation, and the search must not depend on how often.
        return [self.space.random(like=self.incumbent, draw=random.Random(0))]


def check_at_least_one(**numbers: float) -> None:
    """Raise :class:`InputError` for a parameter below 1."""
    for name, number in numbers.items():
        if not number >= 1:
            raise InputError(f"{name} is {number}: give at least 1")


def value(individual: Any) -> float:
    """An individual's fitness, of which a greater one is better."""
    fitness: float = individual.fitness.wvalues[0]
    return fitness


def best(individuals: Sequence[Any]) -> Any:
    """The individual of the greatest fitness, the first of equals."""
    return max(individuals, key=value)
