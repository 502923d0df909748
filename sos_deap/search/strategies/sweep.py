"""Sweep: rank every gene in the company of the others, exchange what was misjudged, and again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import mean
from typing import Any

from sos_deap.errors import InputError
from sos_deap.search.space import Space, exchanged, removed_and_kept
from sos_deap.search.strategies.exchange import few_moves
from sos_deap.search.strategies.strategy import Strategy, check_at_least_one, value

_STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24)  # numbers of misjudged pairs exchanged at once
_TRIES = 16  # exchanges to evaluate, these and random ones
_PATIENCE = 5  # rounds of exchanges in vain

Span = tuple[int, int]


class Sweep(Strategy):
    """Iterated ablation: what a gene is worth depends on which others are there.

    It begins with a one-shot ranking: by a prior, or by a first sweep that removes each gene alone
    from the whole model. Each further sweep flips every gene of the best sub-model so far, which
    tells what each removed gene would bring and each kept one would cost *there*. These costs are
    averaged with those of earlier sweeps, which weigh less and less. Then the genes that were
    misjudged are exchanged, the most valuable removed ones for the least valuable kept ones: one
    pair, two, three, ...; these are evaluated, and the best is taken if it is better.

    Every sweep is scored on few examples, and fresh ones: averaging the costs makes up for the
    noise, and nothing is fitted to examples that were seen before. An exchange is judged on two
    sets of examples, one of which the flips have not seen, and by what the costs say of it: the
    examples know what the genes do together, the costs have seen more text. The flips of a
    sub-model share their first layers, which the evaluator computes once.

    Where the budget allows all examples at each sweep there is no noise. Then exchanges at random
    are tried as well, which find what no gene shows alone, and more of them as long as none is
    better: flips that were seen would tell nothing new.

    A budget that does not allow a sweep on a single example is overrun by the first.

    :param sweeps: how many to plan for; the budget then says how many examples each is scored on.
    :param decay: weight of a sweep's costs from one sweep to the next.
    :param trust: how far the costs judge an exchange, from 0, by its own scores alone, to 1.
    :param candidates: last sub-models that are scored on all examples in the end.
    :param prior: an importance in ``space.priors`` to begin with, such as ``wanda``.
    :param curve: lower sparsities at which, in the end, the genes of the least cost are removed and
        scored on all examples, too: what pruning costs by how much is pruned.
    :raises InputError: for less than one sweep or candidate, a decay or trust outside [0, 1],
        a negative curve, and an unknown prior.
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
    ) -> None:
        super().__init__(space, population, budget)
        check_at_least_one(sweeps=sweeps, candidates=candidates)
        for name, weight in (("decay", decay), ("trust", trust)):
            if not 0 <= weight <= 1:
                raise InputError(f"{name} is {weight}: give a weight from 0 to 1")
        if curve < 0:
            raise InputError(f"curve is {curve}: give a number of sparsities, 0 or more")
        self._curve = curve
        self._prior = prior
        self._asks = len(space) + 2 * len(_STEPS) + 3  # of a sweep, at most
        self.left -= candidates + curve + space.cost_of(prior)
        self._windows = space.windows(self.left / (sweeps * self._asks))
        self._costs, self._trust = _Costs(len(space), decay), trust
        self._candidates = candidates
        self._current: list[int] = [1] * len(space)
        self._best: list[list[int]] = []
        self._exchanges: list[list[int]] = []  # to evaluate next; none: flips
        self._seen: Span = next(self._windows)  # what flips are scored on
        self._fruitless = 0

    def generate(self) -> list[Any]:
        """The prior's choice; the current sub-model with its flips, or with exchanges in it."""
        if self._prior is not None and not self._best:
            self._move(list(self.space.keeping_best(self.space.importance(self._prior))))
            return self._on(self._seen, ())
        if not self._exchanges:
            flips = (_flipped(self._current, gene) for gene in range(len(self.space)))
            return self._on(self._seen, flips)
        windows = [self._seen] if self._exact else [self._seen, next(self._windows)]
        return [one for window in windows for one in self._on(window, self._exchanges)]

    def update(self, individuals: list[Any]) -> None:
        """Learn what genes cost from flips; take the best exchange if it is better."""
        if len(individuals) == 1:  # the prior's choice, which is spent with its flips
            [self.incumbent] = individuals
            return
        self.spend(individuals)
        if self._exchanges:
            self._fruitless = 0 if self._take_best(individuals) else self._fruitless + 1
            self._exchanges = []
            if self._exact and self._fruitless:
                self._go_on()
        else:
            self._costs.learn(self._current, individuals)
            self._misjudged(individuals[0])
        if not self._exchanges:
            self._seen = next(self._windows)
        needed = len(self._exchanges) + 1 if self._exchanges else self._asks
        self.done = self.left < needed * (self._seen[1] - self._seen[0]) / self.space.examples

    def finalists(self) -> list[Any]:
        """The last sub-models, newest first; then those of the curve."""
        last = [self.space.individual(genes) for genes in self._best[: -self._candidates - 1 : -1]]
        share = self.space.removed / (self._curve + 1)
        counts = [round(share * i) for i in range(1, self._curve + 1)] if self._best else []
        return last + [self.space.keeping_best(self._costs.mean, count) for count in counts]

    def _on(self, span: Span, others: Iterable[Sequence[int]]) -> list[Any]:
        """The current sub-model and others, to be scored on some examples."""
        individuals = [self.space.individual(genes) for genes in (self._current, *others)]
        for individual in individuals:
            individual.examples = span
        return individuals

    def _misjudged(self, current: Any) -> None:
        """After flips: the exchanges to evaluate, or after the first ones the ranking."""
        costs = self._costs.mean
        if not self._best:
            self._move(list(self.space.keeping_best(costs)))
            return
        self.incumbent = current
        removed, kept = removed_and_kept(self._current)
        removed.sort(key=lambda gene: -costs[gene])
        kept.sort(key=lambda gene: costs[gene])
        pairs = list(zip(removed, kept, strict=False))
        wrong = sum(costs[back] > costs[gone] for back, gone in pairs)  # both in order: a beginning
        self._exchanges = [
            _flipped(self._current, *(gene for pair in pairs[:step] for gene in pair))
            for step in _STEPS
            if step <= wrong
        ]
        if pairs and self._exact:
            self._exchanges += self._at_random(_TRIES - len(self._exchanges))

    def _go_on(self) -> None:
        """Without noise and without a better one: try more, and at last from elsewhere."""
        if self._fruitless <= _PATIENCE:
            self._exchanges = self._at_random(_TRIES)
            return
        self._fruitless = 0
        self._current = exchanged(self._current, self.space.removed // 2)

    def _at_random(self, count: int) -> list[list[int]]:
        return [exchanged(self._current, few_moves(3)) for _ in range(count)]

    def _take_best(self, individuals: list[Any]) -> bool:
        """After exchanges: the one with the greatest gain, on all windows together; if there is."""
        size = len(self._exchanges) + 1
        windows = [individuals[i : i + size] for i in range(0, len(individuals), size)]
        gains = [
            self._gain([on[0] for on in windows], [on[i] for on in windows]) for i in range(size)
        ]
        best = gains.index(max(gains))  # 0 is the current one, which gains nothing
        if best:
            self._move(list(individuals[best]))
        self.incumbent = individuals[best]
        return best > 0

    def _gain(self, current: Sequence[Any], other: Sequence[Any]) -> float:
        """How much better another sub-model is, scored on the same windows."""
        seen = mean(value(b) - value(a) for a, b in zip(current, other, strict=True))
        if self._exact:
            return seen
        return (1 - self._trust) * seen + self._trust * self._costs.gain(current[0], other[0])

    @property
    def _exact(self) -> bool:
        """Whether a sweep is on all examples, so that scores have no noise."""
        return self._seen == (0, self.space.examples)

    def _move(self, genes: list[int]) -> None:
        self._current = genes
        self._best.append(genes)


class _Costs:
    """What removing each gene costs in fitness: a mean in which older sweeps weigh less."""

    def __init__(self, genes: int, decay: float) -> None:
        self.mean = [0.0] * genes
        self._weight, self._decay = 0.0, decay

    def gain(self, genes: Sequence[int], others: Sequence[int]) -> float:
        """What going from some genes to others brings, if genes do not depend on each other."""
        return sum(cost * (b - a) for cost, a, b in zip(self.mean, genes, others, strict=True))

    def learn(self, current: Sequence[int], flips: Sequence[Any]) -> None:
        """Take in a sub-model, the first of ``flips``, and others that differ in one gene each."""
        reference, *others = flips
        for other in others:
            [gene] = (i for i, (a, b) in enumerate(zip(current, other, strict=True)) if a != b)
            loss = value(reference) - value(other)
            cost = loss if current[gene] else -loss
            self.mean[gene] += (cost - self.mean[gene]) / (self._weight + 1)
        self._weight = (self._weight + 1) * self._decay


def _flipped(genes: Sequence[int], *flips: int) -> list[int]:
    child = list(genes)
    for gene in flips:
        child[gene] = 1 - child[gene]
    return child
