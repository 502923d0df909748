"""What an importance of the genes says about which are to go: weights, and draws by them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence


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


def drawn(genes: Iterable[int], weights: Sequence[float], count: int) -> list[int]:
    """Some of the genes, without replacement, each with its weight (Efraimidis and Spirakis, 2006).

    :param genes: numbers of genes.
    :param weights: of every gene, by its number; above 0.
    :param count: how many.
    """
    keys = {gene: random.random() ** (1 / weights[gene]) for gene in genes}
    return sorted(keys, key=keys.__getitem__, reverse=True)[:count]
