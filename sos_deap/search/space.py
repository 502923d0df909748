"""The search space of strategies: genes in layers, of which a fixed number is removed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from sos_deap.errors import InputError, unknown
from sos_deap.search.chromosome import Chromosome, within

#: Computes the importance of each gene; higher means that more is lost without the gene.
Prior = Callable[[], Sequence[float]]


@dataclass(frozen=True)
class Space:
    """The space of chromosomes of one model, for searches at constant sparsity.

    :param genes_per_layer: number of genes in each layer, in order.
    :param removed: number of genes that a solution removes.
    :param individual: function that makes an individual from genes.
    :param examples: number of calibration examples. An individual whose attribute ``examples`` is a
        range ``(start, stop)`` is scored on these alone.
    :param tokens: number of tokens in all examples, the cost of one evaluation.
    :param priors: functions that compute the importance of each gene, by name.
    :param prior_cost: function from the name of a prior to its cost, in evaluations on all
        examples; raises :class:`InputError` for a prior that cannot be computed.
    """

    genes_per_layer: tuple[int, ...]
    removed: int
    individual: Callable[[Iterable[int]], Any] = Chromosome
    examples: int = 1
    tokens: int = 0
    priors: Mapping[str, Prior] = field(default_factory=dict)
    prior_cost: Callable[[str], float] = lambda name: 1.0

    def __len__(self) -> int:
        return sum(self.genes_per_layer)

    @property
    def layers(self) -> list[range]:
        """The indices of each layer's genes."""
        ends = list(accumulate(self.genes_per_layer))
        return [
            range(end - size, end) for end, size in zip(ends, self.genes_per_layer, strict=True)
        ]

    def without(self, removed: Iterable[int]) -> Any:
        """Return the individual that removes the genes of given indices."""
        excluded = set(removed)
        return self.individual([int(gene not in excluded) for gene in range(len(self))])

    def keeping_best(self, importance: Sequence[float], removed: int | None = None) -> Any:
        """Return the individual that removes the least important genes.

        :param importance: importance of each gene.
        :param removed: number of genes to remove; default: that of a solution.
        """
        order = sorted(range(len(self)), key=lambda gene: importance[gene])
        return self.without(order[: self.removed if removed is None else removed])

    def importance(self, prior: str) -> Sequence[float]:
        """Return the importance of each gene, by the name of a prior."""
        self.cost_of(prior)
        return self.priors[prior]()

    def cost_of(self, prior: str | None) -> float:
        """Return the cost of a prior, in evaluations on all examples.

        :param prior: name of the prior; ``None`` costs nothing.
        :raises InputError: for an unknown prior, and for one that cannot be computed.
        """
        if prior is None:
            return 0.0
        if not self.priors:
            raise InputError(
                f"the prior {prior} is unknown, the space has no priors: give it priors, or let "
                "sos_deap.register fill the toolbox"
            )
        if prior not in self.priors:
            raise unknown("prior", prior, self.priors)
        return self.prior_cost(prior)

    def random(self, like: Sequence[int] = (), draw: Any = random) -> Any:
        """Return a random individual that removes as many genes as a solution does.

        :param like: genes to start from; only as many as necessary are removed or restored.
            Default: all genes kept.
        :param draw: a ``random.Random``; default: Python's global generator.
        """
        genes = list(like) or [1] * len(self)
        removed, kept = removed_and_kept(genes)
        for gene in draw.sample(kept, max(0, self.removed - len(removed))):
            genes[gene] = 0
        for gene in draw.sample(removed, max(0, len(removed) - self.removed)):
            genes[gene] = 1
        return self.individual(genes)

    def solves(self, individual: Any) -> bool:
        """Whether an individual was scored on all examples and removes ``removed`` genes."""
        on_all = self._examples_of(individual) == (0, self.examples)
        removed = len(individual) - sum(individual)
        return on_all and individual.fitness.valid and removed == self.removed

    def windows(self, share: float) -> Iterator[tuple[int, int]]:
        """Yield disjoint ranges ``(start, stop)`` of examples in random order, without end.

        After all ranges were given, they follow in a new random order.

        :param share: share of all examples in a range, rounded down to at least one example.
        """
        size = max(1, math.floor(self.examples * min(share, 1.0) + 1e-9))
        starts = [size * i for i in range(self.examples // size)]
        while True:
            yield from ((start, start + size) for start in random.sample(starts, len(starts)))

    def share(self, individual: Any) -> float:
        """Return the share of all examples that an individual is scored on, from 0 to 1."""
        start, stop = self._examples_of(individual)
        return (stop - start) / self.examples

    def _examples_of(self, individual: Any) -> tuple[int, int]:
        """Return the range of examples to score on; an individual of the user's may have none."""
        examples: tuple[int, int] = getattr(individual, "examples", None) or (0, self.examples)
        return examples


def most_removed(
    length: int, max_sparsity: float, measure: Callable[[Sequence[int]], float]
) -> int:
    """Return how many genes can be removed within a sparsity, whichever genes these are.

    :param length: number of genes of a chromosome.
    :param max_sparsity: S, the largest share removed, from 0 to 1.
    :param measure: function from genes to the share that they remove. The genes of whole leading
        layers are assumed to remove most for their number, because a key/value head is removed with
        its last query head.
    """
    fitting = (
        n
        for n in range(length, 0, -1)
        if within(measure([0] * n + [1] * (length - n)), max_sparsity)
    )
    return next(fitting, 0)


def removed_and_kept(genes: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the indices of the genes that are 0, and of those that are 1."""
    return [i for i, gene in enumerate(genes) if not gene], [i for i, g in enumerate(genes) if g]


def exchanged(genes: Sequence[int], moves: int) -> list[int]:
    """Return genes after exchange moves, each of which restores one gene and removes another.

    :param genes: 0/1 genes, which are not changed.
    :param moves: number of exchanges; limited to those possible.
    """
    child = list(genes)
    removed, kept = removed_and_kept(genes)
    moves = min(moves, len(removed), len(kept))
    pairs = zip(random.sample(removed, moves), random.sample(kept, moves), strict=True)
    for restored, dropped in pairs:
        child[restored], child[dropped] = 1, 0
    return child
