"""Chromosomes: lists of 0/1 genes with a fitness, as DEAP's algorithms expect individuals."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

from deap import base

from sos_deap.search.prior import drawn

#: The fitness of a chromosome that must not win: over the maximum sparsity, or without a finite
#: metric. Finite, so that DEAP's statistics and operators that subtract or average stay defined
#: (DEAP compares NaN as both greater and smaller, and NaN would take the hall of fame).
WORST_FITNESS = -1e30


class Fitness(base.Fitness):  # type: ignore[misc]
    """One value, of which a greater one is better."""

    weights = (1.0,)


class ParetoFitness(base.Fitness):  # type: ignore[misc]
    """Two values, of each of which a greater one is better, as for NSGA-II."""

    weights = (1.0, 1.0)


class Chromosome(list[int]):
    """One sub-model: gene 1 keeps its attention head, gene 0 removes it.

    :param genes: the genes, in layer order.
    :param fitness: the class of its fitness, which says how many values that has.
    :param examples: from which to which calibration example it is to be scored; ``None`` for all.
    """

    def __init__(
        self,
        genes: Iterable[int] = (),
        fitness: type[base.Fitness] = Fitness,
        examples: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(genes)
        self.fitness: Any = fitness()
        self.examples = examples

    @property
    def sparsity(self) -> float:
        """The share of heads removed."""
        return sparsity(self)


def sparsity(genes: Sequence[int]) -> float:
    """The share of genes that are 0; 0.0 for no genes.

    :param genes: a chromosome, or any individual made with DEAP's ``creator``.
    """
    # Of numpy's small integers the sum would overflow.
    return (len(genes) - sum(map(int, genes))) / len(genes) if len(genes) else 0.0


def diversity(population: Sequence[Sequence[int]]) -> float:
    """The mean Hamming distance between two chromosomes of a population, as a share of the genes.

    Of n chromosomes of which z lack a gene, z (n - z) pairs differ in it: so the sum over all pairs
    takes no more than counting (Wineberg and Oppacher, 2003, "The Underlying Similarity of
    Diversity Measures Used in Evolutionary Computation").

    :param population: chromosomes of one length.
    :returns: from 0, for copies of one and for less than two, to n / (2 (n - 1)), where each gene
        is missing in half of an even number.
    """
    size = len(population)
    if size < 2 or not len(population[0]):
        return 0.0
    kept = (sum(map(int, genes)) for genes in zip(*population, strict=True))
    different = sum(count * (size - count) for count in kept)
    return different / (len(population[0]) * (size * (size - 1) // 2))


def within(sparsity: float, max_sparsity: float) -> bool:
    """Whether a sparsity does not exceed a bound, but for rounding."""
    return sparsity <= max_sparsity + 1e-9


def random_genes(
    length: int, initial_sparsity: float, weights: Sequence[float] | None = None
) -> list[int]:
    """Genes with a fixed share removed at random (section III.B of the paper).

    :param length: number of genes.
    :param initial_sparsity: share to remove, rounded to whole genes.
    :param weights: how much sooner than the average each gene goes; ``None`` for all alike.
    :returns: the genes, drawn from Python's global generator, as DEAP's operators do.
    """
    count = round(length * initial_sparsity)
    everyone = range(length)
    gone = set(
        random.sample(everyone, count) if weights is None else drawn(everyone, weights, count)
    )
    return [int(gene not in gone) for gene in range(length)]


def is_worst(individual: Any) -> bool:
    """Whether an individual was given the worst fitness, or none yet."""
    fitness = individual.fitness
    return not fitness.valid or min(fitness.wvalues) <= WORST_FITNESS
