"""What an importance of the genes says about which are to go: weights, and draws by them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any


def removal_weights(importance: Sequence[float], exploration: float = 0.0) -> list[float]:
    """How much sooner than the average each gene is to go, by the rank of its importance.

    :param importance: of each gene: the greater, the more is lost without it.
    :param exploration: the share of the weights that is the same for all genes, from 0 to 1.
    :returns: weights between 0 and 2 of mean 1, the greatest for the least important gene.
    """
    order = sorted(range(len(importance)), key=importance.__getitem__)
    weights = [0.0] * len(order)
    for rank, gene in enumerate(order):
        by_rank = 2 - (2 * rank + 1) / len(order)
        weights[gene] = exploration + (1 - exploration) * by_rank
    return weights


class RemovalWeights(Sequence[float]):
    """:func:`removal_weights` that are made when they are first asked for.

    :param importance: makes the importance of each gene, which may take many evaluations.
    :param exploration: as there.
    """

    def __init__(self, importance: Callable[[], Sequence[float]], exploration: float) -> None:
        self._importance, self._exploration = importance, exploration

    @cached_property
    def made(self) -> list[float]:
        """The weights."""
        return removal_weights(self._importance(), self._exploration)

    def __getitem__(self, index: Any) -> Any:
        return self.made[index]

    def __len__(self) -> int:
        return len(self.made)


def drawn(genes: Iterable[int], weights: Sequence[float], count: int) -> list[int]:
    """Some of the genes, without replacement, each with its weight (Efraimidis and Spirakis, 2006).

    :param genes: numbers of genes.
    :param weights: of every gene, by its number; above 0.
    :param count: how many.
    """
    keys = {gene: random.random() ** (1 / weights[gene]) for gene in genes}
    return sorted(keys, key=keys.__getitem__, reverse=True)[:count]
