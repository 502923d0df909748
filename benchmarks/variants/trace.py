"""Cost and incumbent of a search after each generation."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from benchmarks.variants.heldout import text
from sos_deap.evaluation.evaluator import Evaluator
from sos_deap.search.chromosome import is_worst


@dataclass(frozen=True)
class Budget:
    """The budget of a run, which ends at the first of both limits.

    :param evaluations: number of distinct chromosomes computed; ``None`` if tokens are counted.
    :param tokens: number of tokens computed; ``None`` if the task has none.
    """

    evaluations: int | None
    tokens: int | None

    def less(self, evaluations: int, tokens: int) -> Budget:
        """Return the budget reduced by some evaluations of ``tokens`` tokens each."""
        return Budget(
            None if self.evaluations is None else self.evaluations - evaluations,
            None if self.tokens is None else self.tokens - evaluations * tokens,
        )

    def share(self, evaluations: float, tokens: float) -> float:
        """Return the proportion of the budget that is spent; above 1 if it is exceeded."""
        spent = ((evaluations, self.evaluations), (tokens, self.tokens))
        return max(used / limit for used, limit in spent if limit)


class Trace:
    """Records cost and incumbent of a search after each generation.

    Evaluations from the store count as computed, so that costs do not depend on the order of runs.

    :param evaluator: the evaluator of the search.
    :param budget: the budget of the run.
    """

    def __init__(self, evaluator: Evaluator, budget: Budget) -> None:
        self.rows: list[dict[str, Any]] = []
        #: The incumbent after each generation, or ``None``.
        self.incumbents: list[list[int] | None] = []
        #: Number of chromosomes in the cache after each generation.
        self.computed: list[int] = []
        #: The front after the last generation within the budget, for two objectives.
        self.front: list[list[int]] = []
        self._evaluator, self._budget = evaluator, budget
        self._started = time.perf_counter()

    def __call__(self, generation: int, halloffame: Any) -> None:
        """Record a generation; an ``on_generation`` callback."""
        counted = self._evaluator.accounting
        evaluations = counted.forward_evaluations + counted.store_hits
        tokens = counted.tokens + counted.store_tokens
        share = self._budget.share(evaluations, tokens)
        best = incumbent(halloffame)
        genes = None if best is None else list(best)
        new = genes is not None and (not self.incumbents or genes != self.incumbents[-1])
        self.rows.append(
            {
                "generation": generation,
                "evaluations": evaluations,
                "tokens": tokens,
                "share": share,
                "seconds": round(time.perf_counter() - self._started, 3),
                "fitness": _fitness(best),
                "calibration": None if best is None else self._evaluator.cached(best),
                "sparsity": None if best is None else self._evaluator.sparsity(best),
                "chromosome": text(genes) if new and genes else None,
            }
        )
        self.incumbents.append(genes)
        self.computed.append(sum(1 for _ in self._evaluator.history()))
        if self._evaluator.objectives > 1 and share <= 1:
            self.front = [list(one) for one in halloffame]

    def at(self, share: float) -> int | None:
        """Return the last generation within a proportion of the budget that has an incumbent."""
        found = None
        for i, row in enumerate(self.rows):
            if row["share"] <= share and self.incumbents[i] is not None:
                found = i
        return found

    def last_computed(self, generation: int, least: int) -> list[list[int]]:
        """Return the chromosomes of the last complete generations, at least ``least`` of them."""
        stop = self.computed[generation]
        starts = [0, *self.computed[:generation]]
        start = max((s for s in starts if stop - s >= least), default=0)
        everything = [genes for genes, _ in self._evaluator.history()]
        return everything[start:stop]


def incumbent(halloffame: Any) -> Any:
    """Return the current result of a search: the best, or of a front the sparsest; or ``None``."""
    if not len(halloffame):
        return None
    best = halloffame[0]
    values = getattr(best, "fitness", None) and best.fitness.wvalues
    if values and len(values) > 1:
        return max(halloffame, key=lambda one: one.fitness.wvalues[::-1])
    return best


def _fitness(individual: Any) -> float | None:
    """Return the first fitness value of an individual, if it was evaluated."""
    if individual is None or is_worst(individual):
        return None
    value: float = individual.fitness.values[0]
    return value
