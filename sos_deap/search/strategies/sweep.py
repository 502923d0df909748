"""Sweep: rank the genes in context, exchange the misjudged ones, and repeat."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from statistics import mean
from typing import Any

from sos_deap.errors import InputError
from sos_deap.isotonic import falling
from sos_deap.search.budget import removed_and_kept
from sos_deap.search.space import Space
from sos_deap.search.strategies.exchange import few_moves
from sos_deap.search.strategies.strategy import Strategy, check_at_least_one, value

# Numbers of misjudged pairs to exchange at once, up to a sixth of the genes.
_STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_TRIES = 16  # number of exchanges to evaluate, of misjudged and of random pairs
_PATIENCE = 5  # maximum number of consecutive rounds of exchanges without improvement

Span = tuple[int, int]


class Sweep(Strategy):
    """Iterated ablation: the value of a gene depends on which other genes are kept.

    The search starts with a one-shot ranking, by a prior or by a first sweep that removes each gene
    alone from the dense model. Each further sweep flips every gene of the current sub-model, which
    measures the loss from each gene's removal in that context: the gain from restoring a removed
    gene, the loss from removing a kept one. Losses are averaged over the sweeps, with weights that
    decay. Then the most valuable removed genes are exchanged for the least valuable kept genes: one
    pair, two, three, and so on. These sub-models are evaluated, and the best becomes the current
    one if it is better. The value of a gene is its loss over its share of the budget; if these
    shares differ, an exchange restores or removes more genes in this order, until it fills S.

    The losses of genes that are in order of importance, such as blocks of channels, are smoothed by
    isotonic regression before they are used, which reduces their noise.

    Each sweep is scored on a few examples that are new, so that averaging reduces the noise and the
    search does not overfit to reused examples. An exchange is judged by its scores on two sets of
    examples, one of them new, and by the averaged losses: the scores include the interaction of
    genes, the losses more text. The flips of a sub-model share their first layers, which the
    evaluator computes once.

    If the budget allows all examples in each sweep, scores have no noise. Random exchanges are then
    evaluated as well, because they can find interactions that single flips miss, and further
    rounds of them as long as none is better, because the same flips would give the same scores.

    If the budget does not allow a sweep on a single example, the first sweep exceeds it.

    :param sweeps: number of sweeps to plan for, at least 1; with the budget it sets the number of
        examples of each.
    :param decay: factor for the weight of earlier losses after each sweep, from 0 to 1.
    :param trust: weight of the losses in judging an exchange, from 0 (its scores only) to 1.
    :param candidates: number of last current sub-models that are scored on all examples at the end,
        at least 1.
    :param prior: name of an importance in ``space.priors`` for the first ranking, such as
        ``wanda``. Default: a sweep of the dense model.
    :param curve: number of lower sparsities, at least 0, for which a sub-model without the genes of
        the lowest loss per cost is scored on all examples at the end, which gives the loss as a
        function of the sparsity.
    :param near: share of the genes that sweeps after the first one flip at most, above 0 and at
        most 1: those at the boundary between removed and kept genes. Of genes in order of
        importance these are the last kept and the first removed gene of each part; of the others,
        those whose loss per cost is nearest to the boundary. Fewer flips leave more examples for
        each.
    :raises InputError: for less than one sweep or candidate, a decay or trust outside [0, 1],
        a negative curve, a share outside (0, 1], and an unknown prior.
    """

    def __init__(
        self,
        space: Space,
        population: Sequence[Any],
        budget: float,
        sweeps: int = 5,
        decay: float = 0.7,
        trust: float = 0.5,
        candidates: int = 2,
        prior: str | None = None,
        curve: int = 0,
        near: float = 1.0,
    ) -> None:
        super().__init__(space, population, budget)
        check_at_least_one(sweeps=sweeps, candidates=candidates)
        for name, weight in (("decay", decay), ("trust", trust)):
            if not 0 <= weight <= 1:
                raise InputError(f"{name} is {weight}: give a weight from 0 to 1")
        if curve < 0:
            raise InputError(f"curve is {curve}: give a number of sparsities, 0 or more")
        if not 0 < near <= 1:
            raise InputError(f"near is {near}: give a share of the genes above 0, at most 1")
        self._curve = curve
        self._prior = prior
        self._steps = [step for step in _STEPS if step <= max(24, len(space) // 6)]
        self._near = max(2, round(near * len(space)))
        # Maximum numbers of individuals in the first sweep and in a later one.
        others = 2 * len(self._steps) + 3
        first, self._asks = len(space) + others, min(self._near, len(space)) + others
        self.left -= candidates + curve + space.cost_of(prior)
        self._windows = space.windows(self.left / (first + (sweeps - 1) * self._asks))
        self._losses, self._trust = _Losses(len(space), decay), trust
        self._candidates = candidates
        self._current: list[int] = [1] * len(space)
        self._best: list[list[int]] = []
        self._exchanges: list[list[int]] = []  # to evaluate next; if empty, flips are next
        self._seen: Span = next(self._windows)  # the examples that flips are scored on
        self._fruitless = 0

    def generate(self) -> list[Any]:
        """Return the prior's sub-model; later, the current one with its flips or exchanges."""
        if self._prior is not None and not self._best:
            self._move(list(self.space.keeping_best(self.space.importance(self._prior))))
            return self._on(self._seen, ())
        if not self._exchanges:
            flips = (_flipped(self._current, gene) for gene in self._to_flip())
            return self._on(self._seen, flips)
        windows = [self._seen] if self._exact else [self._seen, next(self._windows)]
        return [one for window in windows for one in self._on(window, self._exchanges)]

    def update(self, individuals: list[Any]) -> None:
        """Learn the losses of genes from flips; move to the best exchange if it is better."""
        if len(individuals) == 1:  # the prior's sub-model, whose cost is counted with its flips
            [self.incumbent] = individuals
            return
        self.spend(individuals)
        if self._exchanges:
            self._fruitless = 0 if self._take_best(individuals) else self._fruitless + 1
            self._exchanges = []
            if self._exact and self._fruitless:
                self._plan_random()
        else:
            self._losses.learn(self._current, individuals)
            self.losses = self._smoothed()
            self._misjudged(individuals[0])
        if not self._exchanges:
            self._seen = next(self._windows)
        needed = len(self._exchanges) + 1 if self._exchanges else self._asks
        self.done = self.left < needed * (self._seen[1] - self._seen[0]) / self.space.examples

    def finalists(self) -> list[Any]:
        """Return the last current sub-models, newest first; then those of the curve."""
        last = [self.space.individual(genes) for genes in self._best[: -self._candidates - 1 : -1]]
        points = range(1, self._curve + 1) if self._best else range(0)
        shares = [Fraction(i, self._curve + 1) for i in points]
        return last + [self.space.keeping_best(self._smoothed(), share) for share in shares]

    def _on(self, span: Span, others: Iterable[Sequence[int]]) -> list[Any]:
        """Return the current sub-model and others, to be scored on a range of examples."""
        individuals = [self.space.individual(genes) for genes in (self._current, *others)]
        for individual in individuals:
            individual.examples = span
        return individuals

    def _to_flip(self) -> list[int]:
        """Return the genes to flip in a sweep, in order: all in the first one."""
        genes = range(len(self.space))
        if not self._losses.learned or self._near >= len(genes):
            return list(genes)
        ordered, edges = self._ordered_and_edges()
        removed, kept = ([i for i in side if i not in ordered] for side in self._by_loss())
        wanted = self._near - len(edges)
        few = min(wanted // 2, len(removed))
        return sorted([*edges, *removed[:few], *kept[: wanted - few]])

    def _ordered_and_edges(self) -> tuple[set[int], list[int]]:
        """Return the genes in order of importance, and those at the boundary of their part."""
        ordered, edges = set[int](), list[int]()
        for part, span in zip(self.space.parts, self.space.spans, strict=True):
            if part.ordered:
                ordered.update(span)
                edges += [i for i in span if self._current[i]][-1:]
                edges += [i for i in span if not self._current[i]][:1]
        return ordered, edges[: self._near]

    def _by_loss(self) -> tuple[list[int], list[int]]:
        """Return the removed genes by falling loss per cost, and the kept ones by rising loss."""
        removed, kept = removed_and_kept(self._current)
        per_cost = self.space.per_cost(self._smoothed())
        removed.sort(key=lambda gene: (-per_cost[gene], gene))
        kept.sort(key=lambda gene: (per_cost[gene], -gene))
        return removed, kept

    def _smoothed(self) -> list[float]:
        """Return the losses; those of ordered genes fall, as they would without noise."""
        losses = list(self._losses.mean)
        if not self._exact:
            for part, span in zip(self.space.parts, self.space.spans, strict=True):
                if part.ordered:
                    losses[span.start : span.stop] = falling(losses[span.start : span.stop])
        return losses

    def _misjudged(self, current: Any) -> None:
        """After flips, plan the exchanges to evaluate; after the first flips, apply the ranking."""
        losses = self._smoothed()
        if not self._best:
            self._move(list(self.space.keeping_best(losses)))
            return
        self.incumbent = current
        per_cost = self.space.per_cost(losses)
        pairs = list(zip(*self._by_loss(), strict=False))
        # Both lists are sorted by loss per cost, so that the misjudged pairs come first.
        wrong = sum(per_cost[restored] > per_cost[dropped] for restored, dropped in pairs)
        self._exchanges = [self._exchange(pairs[:step]) for step in self._steps if step <= wrong]
        if pairs and self._exact:
            self._exchanges += self._at_random(_TRIES - len(self._exchanges))

    def _exchange(self, pairs: Iterable[tuple[int, int]]) -> list[int]:
        """Return the current genes with pairs flipped, settled in the order of loss per cost."""
        genes = _flipped(self._current, *(gene for pair in pairs for gene in pair))
        return self.space.settled(genes, self._current, self._smoothed())

    def _plan_random(self) -> None:
        """Plan random exchanges; after too many rounds without success, perturb the sub-model."""
        if self._fruitless <= _PATIENCE:
            self._exchanges = self._at_random(_TRIES)
            return
        self._fruitless = 0
        self._current = self.space.exchanged(self._current, self._current.count(0) // 2)

    def _at_random(self, count: int) -> list[list[int]]:
        return [self.space.exchanged(self._current, few_moves(3)) for _ in range(count)]

    def _take_best(self, individuals: list[Any]) -> bool:
        """After exchanges, move to the best if it gains; return whether it does."""
        size = len(self._exchanges) + 1
        windows = [individuals[i : i + size] for i in range(0, len(individuals), size)]
        gains = [
            self._gain([on[0] for on in windows], [on[i] for on in windows]) for i in range(size)
        ]
        best = gains.index(max(gains))  # index 0 is the current sub-model, of gain 0
        if best:
            self._move(list(individuals[best]))
        self.incumbent = individuals[best]
        return best > 0

    def _gain(self, current: Sequence[Any], other: Sequence[Any]) -> float:
        """Return the gain in fitness of another sub-model, scored on the same windows."""
        measured = mean(value(b) - value(a) for a, b in zip(current, other, strict=True))
        if self._exact:
            return measured
        return (1 - self._trust) * measured + self._trust * _gain(
            self._smoothed(), current[0], other[0]
        )

    @property
    def _exact(self) -> bool:
        """Whether a sweep uses all examples, so that scores have no noise."""
        return self._seen == (0, self.space.examples)

    def _move(self, genes: list[int]) -> None:
        self._current = genes
        self._best.append(genes)


class _Losses:
    """The loss in fitness from removing each gene: a mean in which older sweeps weigh less.

    :param genes: number of genes.
    :param decay: factor for the weight of earlier sweeps after each sweep.
    """

    def __init__(self, genes: int, decay: float) -> None:
        self.mean = [0.0] * genes
        self._weights, self._decay = [0.0] * genes, decay
        #: Whether any losses were learned.
        self.learned = False

    def learn(self, current: Sequence[int], flips: Sequence[Any]) -> None:
        """Update the losses from flips.

        :param current: genes of the current sub-model.
        :param flips: evaluated individuals: the current sub-model, then others that differ from it
            in one gene each.
        """
        self.learned = True
        reference, *others = flips
        for other in others:
            [gene] = (i for i, (a, b) in enumerate(zip(current, other, strict=True)) if a != b)
            loss = value(reference) - value(other)
            cost = loss if current[gene] else -loss
            self.mean[gene] += (cost - self.mean[gene]) / (self._weights[gene] + 1)
            self._weights[gene] = (self._weights[gene] + 1) * self._decay


def _gain(losses: Sequence[float], genes: Sequence[int], others: Sequence[int]) -> float:
    """Return the gain from changing genes to others, under the assumption of no interaction."""
    return sum(loss * (b - a) for loss, a, b in zip(losses, genes, others, strict=True))


def _flipped(genes: Sequence[int], *flips: int) -> list[int]:
    child = list(genes)
    for gene in flips:
        child[gene] = 1 - child[gene]
    return child
