"""Estimation of distribution algorithms at constant sparsity: PBIL and UMDA.

Both hold a removal probability for each gene, draw individuals by these probabilities, and learn
the probabilities from the better individuals. Individuals follow the conditional Bernoulli
distribution (Chen, Dempster and Liu, 1994): independent genes, conditional on the number of removed
genes. It equals rejection sampling of the independent genes, without the rejections. (Weighted
draws without replacement are simpler, but remove likely genes less often, and unlikely genes more
often, than their probabilities.)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from sos_deap.errors import InputError
from sos_deap.search.prior import drawn
from sos_deap.search.space import Space
from sos_deap.search.strategies.strategy import Strategy, best, value

_LEAST_CHANCE = 1e-6  # of genes of probability 0, which are drawn only if no others are left


class Distribution(Strategy):
    """The base class of PBIL and UMDA: a removal probability for each gene.

    The first generation is the initial population, with genes removed or restored to fill S.

    If the genes' costs differ, no number of genes is given: genes are drawn independently, and the
    individual is repaired, as in evolutionary algorithms for the knapsack problem (Chu and Beasley,
    1998). Genes drawn by their probabilities are restored above S, and removed below it.

    :param children: number of individuals per generation, at least 1.
    :param learning_rate: step of the probabilities towards the shares of the selected individuals
        that remove each gene, above 0, at most 1.
    :param selected: share of the individuals that are selected, the best by fitness, above 0, at
        most 1; at least one individual is.
    :param margin: minimum distance of the probabilities from 0 and 1, from 0 to below 0.5; above 0
        no gene is ever fixed. ``None`` for 1 / (number of genes), at most 1/3.
    :raises InputError: for a value out of range.
    """

    def __init__(
        self,
        space: Space,
        population: Sequence[Any],
        budget: float,
        children: int,
        learning_rate: float,
        selected: float,
        margin: float | None,
    ) -> None:
        super().__init__(space, population, budget)
        length = len(space)
        self._children = children
        self._rate, self._selected = learning_rate, selected
        self._margin = 1 / max(length, 3) if margin is None else margin
        if children < 1:
            raise InputError(f"children is {children}: give at least 1")
        for name, share in (("learning_rate", learning_rate), ("selected", selected)):
            if not 0 < share <= 1:
                raise InputError(f"{name} is {share}: give a share above 0, at most 1")
        if not 0 <= self._margin < 0.5:
            raise InputError(
                f"margin is {margin}: give a distance of the probabilities from 0 and 1, below 0.5"
            )
        #: The removal probability of each gene.
        self.removal = [space.removal_rate] * length

    def generate(self) -> list[Any]:
        """Return the initial population at S; later, draws from the distribution."""
        if self.incumbent is None:
            return self.initial()
        draw = self._draw()
        return [self._settled(draw()) for _ in range(self.affordable(self._children))]

    def update(self, individuals: list[Any]) -> None:
        """Move the probabilities towards the shares in which the selected remove each gene."""
        self.spend(individuals)
        leader = best(individuals)
        if self.incumbent is None or value(leader) > value(self.incumbent):
            self.incumbent = leader
        count = max(1, round(len(individuals) * self._selected))
        chosen = sorted(individuals, key=value, reverse=True)[:count]
        low, high = self._margin, 1 - self._margin
        for gene, old in enumerate(self.removal):
            share = sum(not individual[gene] for individual in chosen) / count
            self.removal[gene] = min(high, max(low, old + self._rate * (share - old)))
        fixed = all(probability in (0.0, 1.0) for probability in self.removal)
        self.done = fixed or self.left < 1

    def _draw(self) -> Callable[[], list[int]]:
        """Return a function that draws indices of genes to remove."""
        if self.space.equal:
            return ConditionalBernoulli(self.removal, self.space.steps([1] * len(self.space)))
        return lambda: [
            gene for gene, chance in enumerate(self.removal) if random.random() < chance
        ]

    def _settled(self, removed: Iterable[int]) -> Any:
        """Return the individual without some genes, repaired to fill S."""
        remove, restore = (
            partial(_drawn, chances)
            for chances in (self.removal, [1 - chance for chance in self.removal])
        )
        space, genes = self.space, self.space.without(removed)
        return space.individual(
            space.budget.settled(genes, genes, space.max_sparsity, remove, restore)
        )


def _drawn(chances: Sequence[float], genes: list[int], count: int) -> list[int]:
    """Return genes drawn without replacement, in proportion to their chances."""
    return drawn(genes, [max(chance, _LEAST_CHANCE) for chance in chances], count)


class PBIL(Distribution):
    """Population-based incremental learning (Baluja, 1994), at constant sparsity.

    In each generation the probabilities take a step towards the best individuals. Baluja also
    perturbs the probabilities at random; here a margin keeps them away from 0 and 1 instead.

    :param children: number of individuals per generation, at least 1; default: the size of the
        initial population.
    :param learning_rate: step towards the selected individuals, above 0, at most 1.
    :param selected: share of the individuals that are selected, above 0, at most 1; at least one
        individual is.
    :param margin: minimum distance of the probabilities from 0 and 1, below 0.5; default:
        1 / (number of genes), at most 1/3.
    :raises InputError: for a value out of range.
    """

    def __init__(
        self,
        space: Space,
        population: Sequence[Any],
        budget: float,
        children: int | None = None,
        learning_rate: float = 0.1,
        selected: float = 0.1,
        margin: float | None = None,
    ) -> None:
        children = len(population) if children is None else children
        super().__init__(space, population, budget, children, learning_rate, selected, margin)


class UMDA(Distribution):
    """The univariate marginal distribution algorithm (Muehlenbein and Paass, 1996).

    At constant sparsity. The probabilities are the shares of the better individuals of the last
    generation (truncation selection) that remove each gene, within a margin.

    :param children: number of individuals per generation, at least 1; default: five times the size
        of the initial population, because the shares depend on one generation only.
    :param learning_rate: step towards the selected individuals, above 0; 1, as published, discards
        all earlier generations.
    :param selected: share of the individuals that are selected, above 0, at most 1; at least one
        individual is.
    :param margin: minimum distance of the probabilities from 0 and 1, below 0.5; default:
        1 / (number of genes), at most 1/3.
    :raises InputError: for a value out of range.
    """

    def __init__(
        self,
        space: Space,
        population: Sequence[Any],
        budget: float,
        children: int | None = None,
        learning_rate: float = 1.0,
        selected: float = 0.3,
        margin: float | None = None,
    ) -> None:
        children = 5 * len(population) if children is None else children
        super().__init__(space, population, budget, children, learning_rate, selected, margin)


class ConditionalBernoulli:
    """Draws sets of genes from the conditional Bernoulli distribution.

    :param probabilities: probability of each gene if genes were independent.
    :param count: number of genes in a draw, on which the distribution is conditional.
    """

    def __init__(self, probabilities: Sequence[float], count: int) -> None:
        self._probabilities, self._count = probabilities, count
        # chances[i][k]: probability of exactly k independent draws among the genes from i on.
        self._chances = [[1.0] + [0.0] * count]
        for probability in reversed(probabilities):
            later = self._chances[-1]
            self._chances.append(
                [(1 - probability) * later[0]]
                + [
                    probability * fewer + (1 - probability) * same
                    for fewer, same in pairwise(later)
                ]
            )
        self._chances.reverse()

    def __call__(self) -> list[int]:
        """Return the indices of the genes drawn, in order."""
        drawn: list[int] = []
        for gene, probability in enumerate(self._probabilities):
            left = self._count - len(drawn)
            if not left:
                break
            chance = probability * self._chances[gene + 1][left - 1] / self._chances[gene][left]
            if random.random() < chance:
                drawn.append(gene)
        return drawn
