"""Estimation of distribution at constant sparsity: PBIL and UMDA.

Both keep for each gene a probability of being removed, propose individuals drawn by these
probabilities, and learn the probabilities from the better ones. An individual is drawn from the
independent genes *given that as many are removed as are to go*, the conditional Bernoulli
distribution (Chen, Dempster and Liu, 1994): what throwing away all draws of another sparsity would
leave, gene after gene without any waste. (Weighted draws without replacement are simpler, but
remove the likely genes less often, and the unlikely ones more often, than the probabilities say.)
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from sos_deap.errors import InputError
from sos_deap.search.space import Space
from sos_deap.search.strategies.strategy import Strategy, best, value


class Distribution(Strategy):
    """A probability for each gene, learned from the better individuals of each generation.

    The first generation is the initial population, brought to the sparsity.

    :param children: individuals a generation.
    :param learning_rate: how far the probabilities go towards the shares in which the better ones
        remove each gene, from 0 to 1.
    :param selected: the share of the individuals that count as better; at least one does.
    :param margin: probabilities stay this far from 0 and 1, so that no gene is ever settled;
        ``None`` for one over the number of genes, at most a third.
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
                f"margin is {margin}: probabilities keep away from 0 and 1 by less than 0.5"
            )
        #: The probability that a gene is removed, by gene.
        self.removal = [space.removed / length] * length

    def generate(self) -> list[Any]:
        """The initial population, brought to the sparsity; then draws from the distribution."""
        if self.incumbent is None:
            return self.initial()
        draw = ConditionalBernoulli(self.removal, self.space.removed)
        return [self.space.without(draw()) for _ in range(self.affordable(self._children))]

    def update(self, individuals: list[Any]) -> None:
        """Move the probabilities towards what the better individuals remove."""
        self.spend(individuals)
        leader = best(individuals)
        if self.incumbent is None or value(leader) > value(self.incumbent):
            self.incumbent = leader
        count = max(1, round(len(individuals) * self._selected))
        better = sorted(individuals, key=value, reverse=True)[:count]
        low, high = self._margin, 1 - self._margin
        for gene, old in enumerate(self.removal):
            share = sum(not individual[gene] for individual in better) / count
            self.removal[gene] = min(high, max(low, old + self._rate * (share - old)))
        settled = all(probability in (0.0, 1.0) for probability in self.removal)
        self.done = settled or self.left < 1


class PBIL(Distribution):
    """Population-based incremental learning (Baluja, 1994), at constant sparsity.

    Each generation the probabilities take a step towards the best individual. Where Baluja also
    shifts them at random now and then, they stay away from 0 and 1 by a margin.

    :param children: individuals a generation; as many as the initial population unless told.
    :param learning_rate: the length of the step, from 0 to 1.
    :param selected: the share of the individuals it goes towards; at least the best.
    :param margin: the least distance of a probability from 0 and 1; ``None`` for one over the
        number of genes, at most a third.
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
    """The univariate marginal distribution algorithm (Muehlenbein and Paass, 1996), likewise.

    The probabilities are the shares in which the better individuals of the last generation remove
    each gene (truncation selection), within a margin.

    :param children: individuals a generation; five times the initial population unless told, since
        the shares are of these alone.
    :param learning_rate: 1 forgets all earlier generations, as published.
    :param selected: the share of the individuals that count as better.
    :param margin: the least distance of a probability from 0 and 1; ``None`` for one over the
        number of genes, at most a third.
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
    """Draws genes with given probabilities, independently but for how many there are in all.

    :param probabilities: of each gene.
    :param count: how many genes a draw has.
    """

    def __init__(self, probabilities: Sequence[float], count: int) -> None:
        self._probabilities, self._count = probabilities, count
        # chances[i][k]: that of the genes from i on just k are drawn, if each is drawn on its own.
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
        """The numbers of the genes drawn, in order."""
        drawn: list[int] = []
        for gene, probability in enumerate(self._probabilities):
            left = self._count - len(drawn)
            if not left:
                break
            chance = probability * self._chances[gene + 1][left - 1] / self._chances[gene][left]
            if random.random() < chance:
                drawn.append(gene)
        return drawn
