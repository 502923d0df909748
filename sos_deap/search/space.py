"""The search space of strategies: genes of several kinds and costs, and how much may be removed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from itertools import accumulate
from typing import Any

from sos_deap.errors import InputError, unknown
from sos_deap.search.budget import Costs, Draw, by_rank, exchanged
from sos_deap.search.chromosome import Chromosome
from sos_deap.search.chromosome import sparsity as share_of_zeros

#: Computes the importance of each gene; higher means that more is lost without the gene.
Prior = Callable[[], Sequence[float]]

#: Kinds of genes that remove a whole sub-layer or layer, so that a model has few of them.
WHOLE = ("attention", "ffn", "layers")


@dataclass(frozen=True)
class Part:
    """Consecutive genes of one kind in one layer.

    :param layer: number of the layer (the transformer block) in the model, from 0.
    :param kind: what a gene removes, such as ``"heads"`` or ``"channels"``.
    :param size: number of genes.
    :param ordered: whether the genes are in the order of falling importance.
    """

    layer: int
    kind: str
    size: int
    ordered: bool = False


@dataclass(frozen=True)
class Space:
    """The space of chromosomes of one model, for searches at constant sparsity.

    A solution is within the maximum sparsity S and *full*: no kept gene can be removed within S, so
    that its sparsity is less than the cost of one gene below S. Only the space draws, fills,
    repairs and ranks genes; searches do not count them.

    With equal costs a solution removes a fixed number of genes.

    :param parts: the parts of a chromosome, in order.
    :param max_sparsity: S, the largest share removed, from 0 to 1.
    :param sparsity: function from genes to the exact share that they remove, from 0 to 1, which
        must not fall when a gene is removed; default: the share of genes that are 0.
    :param costs: for each gene an estimate of the share that it removes; their sum is about the
        sparsity with every gene removed. Default: that sparsity in equal shares.
    :param individual: function that makes an individual from genes.
    :param examples: number of calibration examples. An individual whose attribute ``examples`` is a
        range ``(start, stop)`` is scored on these alone.
    :param tokens: number of tokens in all examples, the cost of one evaluation.
    :param priors: functions that compute the importance of each gene, by name.
    :param prior_cost: function from the name of a prior to its cost, in evaluations on all
        examples; raises :class:`InputError` for a prior that cannot be computed.
    :raises InputError: if the number of costs is not that of the genes.
    """

    parts: tuple[Part, ...]
    max_sparsity: float
    sparsity: Callable[[Sequence[int]], float] = share_of_zeros
    costs: tuple[float, ...] = ()
    individual: Callable[[Iterable[int]], Any] = Chromosome
    examples: int = 1
    tokens: int = 0
    priors: Mapping[str, Prior] = field(default_factory=dict)
    prior_cost: Callable[[str], float] = lambda name: 1.0

    def __post_init__(self) -> None:
        """Check the number of costs."""
        if self.costs and len(self.costs) != len(self):
            raise InputError(
                f"the space has {len(self.costs)} costs and {len(self)} genes: give one per gene"
            )

    def __len__(self) -> int:
        return sum(part.size for part in self.parts)

    @cached_property
    def spans(self) -> list[range]:
        """The indices of each part's genes."""
        ends = list(accumulate(part.size for part in self.parts))
        return [range(end - part.size, end) for end, part in zip(ends, self.parts, strict=True)]

    @cached_property
    def layers(self) -> list[list[int]]:
        """The indices of each layer's genes, of all its parts together."""
        genes: dict[int, list[int]] = {}
        for part, span in zip(self.parts, self.spans, strict=True):
            genes.setdefault(part.layer, []).extend(span)
        return [genes[layer] for layer in sorted(genes)]

    @cached_property
    def kinds(self) -> list[str]:
        """The kind of each gene."""
        return [part.kind for part in self.parts for _ in range(part.size)]

    @cached_property
    def budget(self) -> Costs:
        """The costs of the genes."""
        genes = len(self)
        equal = (self.sparsity([0] * genes) / genes,) * genes if genes else ()
        return Costs(self.sparsity, self.costs or equal)

    @property
    def equal(self) -> bool:
        """Whether all genes have the same cost."""
        return len(set(self.costs)) < 2

    @property
    def removal_rate(self) -> float:
        """The mean probability of removal at which independent genes reach S."""
        total = sum(self.budget.estimates)
        if self.equal and len(self):
            return self.steps([1] * len(self)) / len(self)
        return min(1.0, self.max_sparsity / total) if total else 0.0

    def without(self, removed: Iterable[int]) -> Any:
        """Return the individual that removes the genes of given indices."""
        excluded = set(removed)
        return self.individual([int(gene not in excluded) for gene in range(len(self))])

    def bound(self, share: float | Fraction = 1) -> float:
        """Return the maximum sparsity of an individual that uses a share of the budget.

        :param share: share of S, from 0 to 1. With equal costs it is rounded to whole genes.
        """
        if share == 1:
            return self.max_sparsity
        if self.equal and len(self):
            count = self.steps([1] * len(self))
            return round(count * share) * self.budget.estimates[0]
        return self.max_sparsity * float(share)

    def steps(self, genes: Sequence[int]) -> int:
        """Return how many more genes can be removed, estimated by their mean cost."""
        room = self.budget.room(genes, self.max_sparsity)
        costs = [self.budget.estimates[i] for i, gene in enumerate(genes) if gene]
        costs = [cost for cost in costs if cost <= room]
        return min(len(costs), math.floor(room * len(costs) / sum(costs))) if sum(costs) else 0

    def fitting(self, genes: Sequence[int]) -> list[int]:
        """Return the kept genes each of which can be removed within S."""
        return self.budget.fitting(genes, self.max_sparsity)

    def full(self, genes: Sequence[int]) -> bool:
        """Whether genes are within S, and none of the kept ones can be removed within S."""
        return self.budget.full(genes, self.max_sparsity)

    def filled(
        self,
        genes: Sequence[int],
        draw: Draw = random.sample,
        share: float | Fraction = 1,
        among: Iterable[int] | None = None,
    ) -> list[int]:
        """Return genes of which more are removed, until none of the kept ones fits any more.

        :param genes: 0/1 genes, which are not changed.
        :param draw: draws the genes to remove; default: at random.
        :param share: share of S to fill, from 0 to 1.
        :param among: indices of the genes to consider; default: all.
        """
        return self.budget.filled(genes, self.bound(share), draw, among)

    def ranked(
        self, genes: Sequence[int], loss: Sequence[float], share: float | Fraction = 1
    ) -> list[int]:
        """Return genes of which more are removed, those of the lowest loss per cost that fit.

        :param genes: 0/1 genes, which are not changed.
        :param loss: the loss from the removal of each gene.
        :param share: share of S to fill, from 0 to 1.
        """
        return self.filled(genes, by_rank(self.per_cost(loss))[0], share)

    def settled(
        self, genes: Sequence[int], before: Sequence[int], loss: Sequence[float] | None = None
    ) -> list[int]:
        """Return genes after moves, with more genes restored or removed so that they fill S.

        :param genes: 0/1 genes after the moves, which are not changed.
        :param before: the genes before the moves; what the moves changed is reverted last.
        :param loss: the loss from the removal of each gene; the further genes follow the loss per
            cost. Default: they are random.
        """
        draws = by_rank(self.per_cost(loss)) if loss is not None else (random.sample, random.sample)
        return self.budget.settled(genes, before, self.max_sparsity, *draws)

    def exchanged(self, genes: Sequence[int], moves: int) -> list[int]:
        """Return genes after exchanges of one removed and one kept gene, corrected for cost.

        :param genes: 0/1 genes, which are not changed.
        :param moves: number of exchanges; limited to those possible.
        """
        return self.settled(exchanged(genes, moves), genes)

    def per_cost(self, loss: Sequence[float]) -> list[float]:
        """Return the loss of each gene over its cost, as a proportion of the largest cost."""
        return [one / cost for one, cost in zip(loss, self.budget.relative, strict=True)]

    def keeping_best(self, loss: Sequence[float], share: float | Fraction = 1) -> Any:
        """Return the individual that removes the genes of the lowest loss per cost.

        :param loss: the loss from the removal of each gene, or its importance.
        :param share: share of S to fill, from 0 to 1.
        """
        return self.individual(self.ranked([1] * len(self), loss, share))

    def random(self, like: Sequence[int] = (), draw: Any = random) -> Any:
        """Return a random individual that fills S.

        :param like: genes to start from; only as many as necessary are removed or restored.
            Default: all genes kept.
        :param draw: a ``random.Random``; default: Python's global generator.
        """
        genes = self.budget.repaired(list(like) or [1] * len(self), self.max_sparsity, draw.sample)
        return self.individual(self.filled(genes, draw.sample))

    def rates(self, indpb: float) -> list[float] | None:
        """Return a factor for the probability that a mutation flips each gene.

        Genes of a kind in :data:`WHOLE` are few, so that at a low rate hardly any of them would
        flip: their rate is raised to one expected flip of each such kind per child.

        :param indpb: probability of a flip per gene, from 0 to 1.
        :returns: a factor per gene, at least 1; ``None`` if all are 1.
        """
        few = {kind: 1 / self.kinds.count(kind) for kind in WHOLE if kind in self.kinds}
        if not any(0 < indpb < least for least in few.values()):
            return None
        return [max(1.0, few.get(kind, indpb) / indpb) for kind in self.kinds]

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

    def solves(self, individual: Any) -> bool:
        """Whether an individual was scored on all examples, is within S, and is full."""
        on_all = self._examples_of(individual) == (0, self.examples)
        return on_all and individual.fitness.valid and self.full(individual)

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
