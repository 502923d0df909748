"""Spaces for tests of searches without a model."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from sos_deap.search.space import Part, Space

#: A kind's genes in a layer, and the cost of one of them.
SIZES = {
    "heads": (4, 3.0),
    "groups": (2, 6.0),
    "channels": (5, 4.0),
    "attention": (1, 12.0),
    "ffn": (1, 20.0),
    "layers": (1, 32.0),
}


def heads(sizes: Sequence[int], share: float, **fields: Any) -> Space:
    """Return a space of layers with heads of equal costs."""
    parts = tuple(Part(layer, "heads", size) for layer, size in enumerate(sizes))
    return Space(parts, share, **fields)


def mixed(
    kinds: str, share: float, seed: int = 0, layers: int = 4, additive: bool = True, **fields: Any
) -> Space:
    """Return a space of several kinds of genes, whose costs vary by up to 20 %.

    :param additive: whether the sparsity is the sum of the costs. Otherwise half of the cost of
        each gene is removed only with the last gene of its part, in pairs, as a key/value head is.
    """
    draw = random.Random(seed)
    parts, costs = list[Part](), list[float]()
    for layer in range(layers):
        for kind in kinds.split("+"):
            size, cost = SIZES[kind]
            parts.append(Part(layer, kind, size))
            costs += [cost * draw.uniform(0.8, 1.2) for _ in range(size)]
    total = sum(costs) / draw.uniform(0.5, 1)
    shares = tuple(cost / total for cost in costs)

    def sparsity(genes: Sequence[int]) -> float:
        if additive:
            return sum(cost for cost, gene in zip(shares, genes, strict=True) if not gene)
        removed, start = 0.0, 0
        for part in parts:
            for first in range(start, start + part.size, 2):
                pair = range(first, min(first + 2, start + part.size))
                whole = not any(genes[i] for i in pair)
                removed += sum(shares[i] * (1 if whole else 0.5) for i in pair if not genes[i])
            start += part.size
        return removed

    return Space(tuple(parts), share, sparsity, shares, **fields)


def is_full(space: Space, genes: Sequence[int]) -> bool:
    """Whether genes are within S and no kept gene fits, by trying each of them."""
    if space.sparsity(genes) > space.max_sparsity + 1e-9:
        return False
    return all(
        space.sparsity([*genes[:i], 0, *genes[i + 1 :]]) > space.max_sparsity + 1e-9
        for i, gene in enumerate(genes)
        if gene
    )
