"""What a search has spent and found, generation by generation."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from benchmarks.variants.heldout import text
from sos_deap.evaluation.evaluator import Evaluator
from sos_deap.search.chromosome import is_worst


@dataclass(frozen=True)
class Budget:
    """What a run may spend; it ends at either.

    :param evaluations: chromosomes computed, each once; ``None`` where tokens are counted.
    :param tokens: that they are computed on; ``None`` where a task has none.
    """

    evaluations: int | None
    tokens: int | None

    def less(self, evaluations: int, tokens: int) -> Budget:
        """What is left without so many evaluations, of so many tokens each."""
        return Budget(
            None if self.evaluations is None else self.evaluations - evaluations,
            None if self.tokens is None else self.tokens - evaluations * tokens,
        )

    def share(self, evaluations: float, tokens: float) -> float:
        """How much of it has been spent; above 1 once it is exceeded."""
        spent = ((evaluations, self.evaluations), (tokens, self.tokens))
        return max(used / limit for used, limit in spent if limit)


class Trace:
    """What a search has cost and found, generation by generation.

    What another run has computed, and the store knows, costs what it would have cost: the accounts
    must not depend on which run was first.

    :param evaluator: whose accounts to keep.
    :param budget: what may be spent.
    """

    def __init__(self, evaluator: Evaluator, budget: Budget) -> None:
        self.rows: list[dict[str, Any]] = []
        #: The incumbent after each generation, if there is one.
        self.incumbents: list[list[int] | None] = []
        #: How many chromosomes were in the cache after each generation.
        self.computed: list[int] = []
        #: The front after the last generation within the budget, of an objective of two values.
        self.front: list[list[int]] = []
        self._evaluator, self._budget = evaluator, budget
        self._started = time.perf_counter()

    def __call__(self, generation: int, halloffame: Any) -> None:
        """Note a generation; for ``on_generation``."""
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
        """The last generation that ended within a share of the budget and left an incumbent."""
        found = None
        for i, row in enumerate(self.rows):
            if row["share"] <= share and self.incumbents[i] is not None:
                found = i
        return found

    def last_computed(self, generation: int, least: int) -> list[list[int]]:
        """What was computed up to a generation in as many whole generations as give the least."""
        stop = self.computed[generation]
        starts = [0, *self.computed[:generation]]
        start = max((s for s in starts if stop - s >= least), default=0)
        everything = [genes for genes, _ in self._evaluator.history()]
        return everything[start:stop]


def incumbent(halloffame: Any) -> Any:
    """What a search would return now: the best; of a front what removes most; ``None`` if empty."""
    if not len(halloffame):
        return None
    best = halloffame[0]
    values = getattr(best, "fitness", None) and best.fitness.wvalues
    if values and len(values) > 1:
        return max(halloffame, key=lambda one: one.fitness.wvalues[::-1])
    return best


def _fitness(individual: Any) -> float | None:
    """The first value of its fitness, if it has been evaluated."""
    if individual is None or is_worst(individual):
        return None
    value: float = individual.fitness.values[0]
    return value
