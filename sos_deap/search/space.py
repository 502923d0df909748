"""What a search chooses from: genes in layers, and how many of them go."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from sos_deap.errors import InputError, unknown
from sos_deap.search.chromosome import Chromosome, within

#: An importance for each gene, made when it is asked for: the greater, the more is lost without it.
Prior = Callable[[], Sequence[float]]


@dataclass(frozen=True)
class Space:
    """The space of chromosomes of one model.

    :param genes_per_layer: genes in each layer, in order.
    :param removed: how many genes a search at constant sparsity removes.
    :param individual: makes an individual of genes.
    :param examples: calibration examples; an individual with an attribute ``examples``, a pair
        ``(start, stop)``, is scored on those alone.
    :param tokens: in all examples; what an evaluation costs.
    :param priors: importances of the genes, by name.
    :param prior_cost: what one costs, by its name, in evaluations on all examples; raises
        :class:`InputError` for one that cannot be made.
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
        """The numbers of each layer's genes."""
        ends = list(accumulate(self.genes_per_layer))
        return [
            range(end - size, end) for end, size in zip(ends, self.genes_per_layer, strict=True)
        ]

    def without(self, removed: Iterable[int]) -> Any:
        """An individual that removes some genes, by their numbers."""
        gone = set(removed)
        return self.individual([int(gene not in gone) for gene in range(len(self))])

    def keeping_best(self, importance: Sequence[float], removed: int | None = None) -> Any:
        """The individual that removes the least important genes.

        :param importance: of each gene.
        :param removed: how many; as many as are to go unless told.
        """
        order = sorted(range(len(self)), key=lambda gene: importance[gene])
        return self.without(order[: self.removed if removed is None else removed])

    def importance(self, prior: str) -> Sequence[float]:
        """The importance of each gene by the name of a prior."""
        self.cost_of(prior)
        return self.priors[prior]()

    def cost_of(self, prior: str | None) -> float:
        """What a prior costs, in evaluations on all examples; nothing for ``None``.

        :raises InputError: for one that is none, or does not fit.
        """
        if prior is None:
            return 0.0
        if not self.priors:
            raise InputError(
                f"there is no prior {prior}, as the space has none: give it priors, or let "
                "sos_deap.register fill the toolbox"
            )
        if prior not in self.priors:
            raise unknown("prior", prior, self.priors)
        return self.prior_cost(prior)

    def random(self, like: Sequence[int] = (), draw: Any = random) -> Any:
        """An individual that removes as many genes as are to go, at random.

        :param like: genes to begin with: no more than it takes are removed or given back.
        :param draw: a ``random.Random`` of the caller's; DEAP's, the module, unless told.
        """
        genes = list(like) or [1] * len(self)
        removed, kept = removed_and_kept(genes)
        for gene in draw.sample(kept, max(0, self.removed - len(removed))):
            genes[gene] = 0
        for gene in draw.sample(removed, max(0, len(removed) - self.removed)):
            genes[gene] = 1
        return self.individual(genes)

    def solves(self, individual: Any) -> bool:
        """Whether an individual removes just as many genes as are to go, and was scored on all."""
        whole = getattr(individual, "examples", None) in (None, (0, self.examples))
        removed = len(individual) - sum(individual)
        return whole and individual.fitness.valid and removed == self.removed

    def windows(self, share: float) -> Iterator[tuple[int, int]]:
        """Windows of examples without overlap, in random order, and again when all were given.

        :param share: of all examples in a window, rounded down to a whole number, at least one.
        """
        size = max(1, math.floor(self.examples * min(share, 1.0) + 1e-9))
        starts = [size * i for i in range(self.examples // size)]
        while True:
            yield from ((start, start + size) for start in random.sample(starts, len(starts)))

    def share(self, individual: Any) -> float:
        """The share of all examples that an individual is scored on."""
        start, stop = getattr(individual, "examples", None) or (0, self.examples)
        return (stop - start) / self.examples


def most_removed(
    length: int, max_sparsity: float, measure: Callable[[Sequence[int]], float]
) -> int:
    """How many genes can be removed, whichever they are, within a sparsity.

    :param length: genes of a chromosome.
    :param max_sparsity: S, the largest share removed.
    :param measure: from genes to the share that they remove. Whole layers are taken to remove most
        for their number of genes, as with the last query head goes its key/value head.
    """
    fitting = (
        n
        for n in range(length, 0, -1)
        if within(measure([0] * n + [1] * (length - n)), max_sparsity)
    )
    return next(fitting, 0)


def removed_and_kept(genes: Sequence[int]) -> tuple[list[int], list[int]]:
    """The numbers of the genes that are 0, and of those that are 1."""
    return [i for i, gene in enumerate(genes) if not gene], [i for i, g in enumerate(genes) if g]


def exchanged(genes: Sequence[int], moves: int) -> list[int]:
    """Genes after exchange moves: each restores one that was removed and removes one that was kept.

    :param genes: 0/1 genes, which stay as they are.
    :param moves: exchanges, at most as many as are possible.
    """
    child = list(genes)
    removed, kept = removed_and_kept(genes)
    moves = min(moves, len(removed), len(kept))
    for back, gone in zip(random.sample(removed, moves), random.sample(kept, moves), strict=True):
        child[back], child[gone] = 1, 0
    return child
