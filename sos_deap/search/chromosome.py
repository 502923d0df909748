"""Chromosomes: lists of 0/1 genes with a fitness, the individuals of DEAP's algorithms."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

from deap import base

from sos_deap.search.prior import drawn

#: The fitness of an infeasible chromosome: above the maximum sparsity, or without a finite metric.
#: It is finite so that statistics and operators that subtract or average stay defined. (DEAP
#: compares NaN as both greater and smaller, so that NaN would enter the hall of fame.)
WORST_FITNESS = -1e30


class Fitness(base.Fitness):  # type: ignore[misc]
    """A fitness of one value; higher is better."""

    weights = (1.0,)


class ParetoFitness(base.Fitness):  # type: ignore[misc]
    """A fitness of two values, for algorithms such as NSGA-II; higher is better in each."""

    weights = (1.0, 1.0)


class Chromosome(list[int]):
    """One sub-model: a list of genes, of which 1 keeps a unit, such as a head, and 0 removes it.

    :param genes: the genes, 0 or 1, in layer order.
    :param fitness: class of the fitness, which determines its number of values.
    :param examples: range ``(start, stop)`` of the calibration examples to score the chromosome
        on; default: all. Strategies that compare sub-models on a part of the examples set this
        attribute; the evaluator reads it.
    """

    def __init__(
        self,
        genes: Iterable[int] = (),
        fitness: type[base.Fitness] = Fitness,
        examples: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(genes)
        #: The fitness; valid once its ``values`` are set.
        self.fitness: Any = fitness()
        #: Range ``(start, stop)`` of the calibration examples to score on; ``None`` for all.
        self.examples: tuple[int, int] | None = examples

    @property
    def sparsity(self) -> float:
        """The share of genes removed, from 0 to 1."""
        return sparsity(self)


def sparsity(genes: Sequence[int]) -> float:
    """Return the share of genes that are 0, from 0 to 1; 0 for an empty sequence.

    :param genes: a chromosome, or any individual made with DEAP's ``creator``.
    """
    # Genes may be numpy's 8-bit integers, whose sum would overflow.
    return (len(genes) - sum(map(int, genes))) / len(genes) if len(genes) else 0.0


def diversity(population: Sequence[Sequence[int]]) -> float:
    """Return the mean Hamming distance between two chromosomes, as a share of the genes.

    If z of n chromosomes lack a gene, z (n - z) pairs differ in it, so that counting z per gene
    gives the sum over all pairs (Wineberg and Oppacher, 2003, "The Underlying Similarity of
    Diversity Measures Used in Evolutionary Computation").

    :param population: n chromosomes of equal length.
    :returns: 0 for equal chromosomes and for fewer than two; at most n / (2 (n - 1)), if every gene
        is missing in half of the chromosomes.
    """
    size = len(population)
    if size < 2 or not len(population[0]):
        return 0.0
    kept = (sum(map(int, genes)) for genes in zip(*population, strict=True))
    different = sum(count * (size - count) for count in kept)
    return different / (len(population[0]) * (size * (size - 1) // 2))


def within(sparsity: float, max_sparsity: float) -> bool:
    """Whether a sparsity is at most a bound, up to rounding (1e-9)."""
    return sparsity <= max_sparsity + 1e-9


def random_genes(
    length: int, initial_sparsity: float, weights: Sequence[float] | None = None
) -> list[int]:
    """Return genes of which a fixed share is removed at random (section III.B of the paper).

    Draws from Python's global generator, as DEAP's operators do.

    :param length: number of genes.
    :param initial_sparsity: share to remove, from 0 to 1, rounded to whole genes.
    :param weights: for each gene, how likely it is to be removed, relative to the average;
        default: equal weights.
    """
    count = round(length * initial_sparsity)
    genes = range(length)
    removed = set(random.sample(genes, count) if weights is None else drawn(genes, weights, count))
    return [int(gene not in removed) for gene in genes]


def is_worst(individual: Any) -> bool:
    """Whether an individual has the worst fitness, or none yet."""
    fitness = individual.fitness
    return not fitness.valid or min(fitness.wvalues) <= WORST_FITNESS
