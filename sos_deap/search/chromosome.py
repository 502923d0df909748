"""Chromosomes: lists of 0/1 genes with a fitness, as DEAP's algorithms expect individuals."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from typing import Any

from deap import base

#: The fitness of a chromosome that must not win: over the maximum sparsity, or without a finite
#: metric. Finite, so that DEAP's statistics and operators that subtract or average stay defined
#: (DEAP compares NaN as both greater and smaller, and NaN would take the hall of fame).
WORST_FITNESS = -1e30


class Fitness(base.Fitness):  # type: ignore[misc]
    """One value, of which a greater one is better."""

    weights = (1.0,)


class Chromosome(list[int]):
    """One sub-model: gene 1 keeps its attention head, gene 0 removes it.

    :param genes: the genes, in layer order.
    """

    def __init__(self, genes: Iterable[int] = ()) -> None:
        super().__init__(genes)
        self.fitness: Any = Fitness()

    @property
    def sparsity(self) -> float:
        """The share of heads removed."""
        return sparsity(self)


def sparsity(genes: Sequence[int]) -> float:
    """The share of genes that are 0; 0.0 for no genes.

    :param genes: a chromosome, or any individual made with DEAP's ``creator``.
    """
    return (len(genes) - sum(genes)) / len(genes) if len(genes) else 0.0


def most_removed(length: int, max_sparsity: float) -> int:
    """How many of ``length`` genes may be 0 without exceeding a sparsity."""
    return math.floor(length * max_sparsity + 1e-9)  # 0.3 of 10 is 3, not 2.9999


def random_genes(length: int, initial_sparsity: float, max_sparsity: float = 1.0) -> list[int]:
    """Genes with a fixed share removed at random (section III.B of the paper).

    :param length: number of genes.
    :param initial_sparsity: share to remove, rounded to whole genes.
    :param max_sparsity: bound that the rounding does not cross.
    :returns: the genes, drawn from Python's global generator, as DEAP's operators do.
    """
    removed = min(round(length * initial_sparsity), most_removed(length, max_sparsity))
    gone = set(random.sample(range(length), removed))
    return [int(gene not in gone) for gene in range(length)]


def is_worst(individual: Any) -> bool:
    """Whether an individual was given the worst fitness, or none yet."""
    fitness = individual.fitness
    return not fitness.valid or min(fitness.wvalues) <= WORST_FITNESS
