"""The smallest sub-model that a search met whose loss of quality is within a bound."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sos_deap.evaluation.evaluator import Evaluator
from sos_deap.evaluation.uncertainty import added, loss
from sos_deap.models.prune import prune
from sos_deap.quality import sums_on
from sos_deap.refitting import Refit
from sos_deap.search.chromosome import within
from sos_deap.tasks.task import Task, judged_by

#: Most sub-models that are measured on held-out text.
SHOWN = 12


@dataclass
class QualityBound:
    """Chooses among the sub-models of a Pareto front by their loss on the validation examples.

    The loss is in percent of the dense model's metric, or in points for metrics that are shares
    (:func:`sos_deap.evaluation.uncertainty.loss`); for a divergence it is that of the perplexity or
    the accuracy.

    :param evaluator: the evaluator of the search, with validation examples.
    :param most: the largest loss.
    :param refit: refits the winner; ``None`` for no refit. Sub-models that exceed the bound without
        a refit are tried with it, by bisection.
    """

    evaluator: Evaluator
    most: float
    refit: Refit | None
    #: Metrics of the sub-models of the front, as further columns of ``pareto.csv``.
    columns: list[dict[str, float | None]] = field(default_factory=list)
    #: The part ``bound`` of ``result.json``, after the choice.
    result: dict[str, Any] = field(default_factory=dict)

    def choose(self, front: Sequence[Sequence[int]]) -> list[int]:
        """Return the sub-model to prune to; the dense model if no other is within the bound.

        A sub-model above the maximum sparsity, which a search may have evaluated, is not chosen.

        :param front: the non-dominated sub-models of a search, by increasing sparsity.
        """
        assert self.evaluator.validation is not None
        task = self.evaluator.validation.task
        found = self.evaluator.metrics_on(task, front)
        name = judged_by(found[0])
        dense = task.metrics(added(sums_on(self.evaluator, self.evaluator.model, task)))[name]
        bound, sparsity = self.evaluator.max_sparsity, self.evaluator.sparsity
        feasible = sum(within(sparsity(genes), bound) for genes in front)
        losses = [loss(task, name, dense, metrics[name]) for metrics in found[:feasible]]
        best = max((i for i, value in enumerate(losses) if value <= self.most), default=-1)
        beyond = best + 1 if self.refit is None else feasible
        while beyond - best > 1:  # bisection, as a larger sub-model loses more
            middle = (best + beyond) // 2
            losses[middle] = self._refitted(task, name, dense, front[middle])
            if losses[middle] <= self.most:
                best = middle
            else:
                beyond = middle
        reached = losses[best] if best >= 0 else 0.0
        self._measure(task, front, found, dense)
        self.result = {
            "metric": name,
            "max_loss": self.most,
            "loss": reached,
            "sub_models": feasible,
            "row": best if best >= 0 else None,
            "dense": dense,
        }
        return list(front[best]) if best >= 0 else [1] * len(self.evaluator.gene_map)

    def _refitted(self, task: Task, name: str, dense: float, genes: Sequence[int]) -> float:
        """Return the loss of a sub-model after the refit."""
        assert self.refit is not None
        pruned: Any = prune(self.evaluator.model, genes, self.evaluator.gene_map)
        self.refit.repair(pruned)
        return loss(task, name, dense, self.evaluator.metrics_of(pruned, task)[name])

    def _measure(
        self,
        task: Task,
        front: Sequence[Sequence[int]],
        validated: Sequence[Mapping[str, float]],
        dense: float,
    ) -> None:
        """Fill the columns: all sub-models on validation examples, some of them on held-out."""
        heldout = self.evaluator.heldout
        assert heldout is not None
        step = max(1, math.ceil(len(front) / SHOWN))
        shown = range(len(front) - 1, -1, -step)  # the sparsest first
        measured = self.evaluator.metrics_on(heldout, [front[i] for i in shown])
        by_row = dict(zip(shown, measured, strict=True))
        name = judged_by(validated[0])
        self.columns = [
            {
                f"{name}_validation": metrics[name],
                f"{name}_heldout": by_row[i][name] if i in by_row else None,
                "loss_validation": loss(task, name, dense, metrics[name]),
            }
            for i, metrics in enumerate(validated)
        ]
