"""The base class of searches with DEAP's ask-and-tell interface, ``algorithms.eaGenerateUpdate``.

A strategy is made from a space, an initial population and a budget. Registered as ``generate`` and
``update``, it runs under stock DEAP:

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
    """A search at constant sparsity; subclasses implement :meth:`generate` and :meth:`update`.

    :param space: the space to search.
    :param population: the initial individuals, of any sparsity.
    :param budget: the cost to plan with, in evaluations on all examples; ``inf`` for no limit.
    """

    def __init__(self, space: Space, population: Sequence[Any], budget: float) -> None:
        self.space = space
        self.population = population
        #: The rest of the budget, in evaluations on all examples; reduced by :meth:`spend`.
        self.left = budget
        #: The best individual so far, evaluated or not; ``None`` before the first update.
        self.incumbent: Any = None
        #: The loss in fitness from the removal of each gene, as far as the search has measured it.
        self.losses: Sequence[float] | None = None
        #: Whether the search is finished: it has no proposals left.
        self.done = False

    def initial(self) -> list[Any]:
        """Return the initial population, with genes removed or restored to fill S."""
        return [self.space.random(like=genes) for genes in self.population]

    @abstractmethod
    def generate(self) -> list[Any]:
        """Return the individuals to evaluate next, at least one."""

    @abstractmethod
    def update(self, individuals: list[Any]) -> None:
        """Learn from the individuals that :meth:`generate` returned, after their evaluation."""

    def spend(self, individuals: Sequence[Any]) -> None:
        """Subtract the cost of evaluating individuals from the budget."""
        self.left -= sum(map(self.space.share, individuals))

    def affordable(self, wanted: int) -> int:
        """Return how many of ``wanted`` individuals the budget still allows, at least 1."""
        return max(1, int(min(wanted, self.left)))

    def finalists(self) -> list[Any]:
        """Return the individuals to score on all examples at the end; the best of them wins.

        If the incumbent does not fill S yet, genes drawn at random are removed.
        """
        if self.incumbent is None:
            return []
        if self.space.full(self.incumbent):
            return [self.incumbent]
        # This is called after every generation and must not change the state of the generator.
        return [self.space.random(like=self.incumbent, draw=random.Random(0))]


def check_at_least_one(**numbers: float) -> None:
    """Raise :class:`InputError` for a parameter below 1.

    :param numbers: values of the parameters, by name.
    """
    for name, number in numbers.items():
        if not number >= 1:
            raise InputError(f"{name} is {number}: give at least 1")


def value(individual: Any) -> float:
    """Return the first weighted fitness value of an individual; higher is better."""
    fitness: float = individual.fitness.wvalues[0]
    return fitness


def best(individuals: Sequence[Any]) -> Any:
    """Return the individual of the highest fitness, the first of several."""
    return max(individuals, key=value)
