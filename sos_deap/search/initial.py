"""The initial individuals of a search: random, feasible, and biased by a prior if there is one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from deap import base

from sos_deap.search.chromosome import Chromosome, random_genes


@dataclass(frozen=True)
class Initializer:
    """Makes individuals for ``toolbox.individual`` and ``toolbox.population``.

    :param genes: number of genes of an individual.
    :param sparsity: share of genes removed, from 0 to 1, before the repair.
    :param fitness: the class of an individual's fitness.
    :param weights: for each gene, how likely it is to be removed, relative to the average;
        ``None`` for equal weights.
    :param repair: decorator that makes the individuals feasible that a function returns, such as
        :func:`sos_deap.search.operators.limit_sparsity` gives.
    """

    genes: int
    sparsity: float
    fitness: type[base.Fitness]
    weights: Sequence[float] | None
    repair: Callable[[Callable[..., Any]], Callable[..., Any]]

    def individual(self) -> Chromosome:
        """Return a random individual."""
        genes = random_genes(self.genes, self.sparsity, self.weights)
        chromosome = Chromosome(genes, self.fitness)
        self._repair(chromosome)
        return chromosome

    def population(self, toolbox: Any, n: int) -> list[Any]:
        """Return ``n`` individuals, of which with weights the first removes the likeliest genes.

        :param toolbox: makes each individual by its ``individual``, whatever is registered.
        :param n: number of individuals.
        """
        individuals = [toolbox.individual() for _ in range(n)]
        if self.weights is not None and individuals:
            weights = self.weights
            order = sorted(range(self.genes), key=lambda gene: -weights[gene])
            removed = set(order[: round(self.genes * self.sparsity)])
            individuals[0][:] = [int(gene not in removed) for gene in range(self.genes)]
            self._repair(individuals[0])
        return individuals

    def _repair(self, individual: Any) -> None:
        self.repair(lambda: (individual,))()
