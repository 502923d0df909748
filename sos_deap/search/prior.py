"""Removal weights from an importance of the genes, and draws by these weights."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any


def removal_weights(importance: Sequence[float], exploration: float = 0.0) -> list[float]:
    """Return a removal weight for each gene, which falls linearly with its rank by importance.

    :param importance: importance of each gene; higher means that more is lost without it.
    :param exploration: share of the weights that is equal for all genes, from 0 to 1.
    :returns: weights between 0 and 2, of mean 1; the highest is that of the least important gene.
    """
    order = sorted(range(len(importance)), key=importance.__getitem__)
    weights = [0.0] * len(order)
    for rank, gene in enumerate(order):
        by_rank = 2 - (2 * rank + 1) / len(order)
        weights[gene] = exploration + (1 - exploration) * by_rank
    return weights


class RemovalWeights(Sequence[float]):
    """Removal weights, see :func:`removal_weights`, computed on first access.

    :param importance: function that computes the importance of each gene, which may take many
        evaluations.
    :param exploration: share of the weights that is equal for all genes, from 0 to 1.
    """

    def __init__(self, importance: Callable[[], Sequence[float]], exploration: float) -> None:
        self._importance, self._exploration = importance, exploration

    @cached_property
    def made(self) -> list[float]:
        """The weights, one per gene."""
        return removal_weights(self._importance(), self._exploration)

    def __getitem__(self, index: Any) -> Any:
        return self.made[index]

    def __len__(self) -> int:
        return len(self.made)


def drawn(genes: Iterable[int], weights: Sequence[float], count: int) -> list[int]:
    """Return genes drawn by weight without replacement (Efraimidis and Spirakis, 2006).

    :param genes: indices of the genes to draw from.
    :param weights: weight of every gene, by index; above 0.
    :param count: number of genes to draw.
    """
    keys = {gene: random.random() ** (1 / weights[gene]) for gene in genes}
    return sorted(keys, key=keys.__getitem__, reverse=True)[:count]
