"""What tells genes apart before a search: importances by name, each computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sos_deap.errors import unknown
from sos_deap.evaluation.accounting import Accounting
from sos_deap.evaluation.forward import ForwardRunner
from sos_deap.models.importance import IMPORTANCES, checked_importance, checked_numbers
from sos_deap.tasks.task import Task

#: The importance that is made of evaluations: the metric without each gene.
ABLATION = "ablation"

#: What tells genes apart before a search, by name.
PRIORS = (*IMPORTANCES, ABLATION)


class Priors:
    """The importances of a model's genes.

    :param genes: how many there are.
    :param passes: computes all but ``"ablation"``.
    :param task: what the model reads.
    :param accounting: where their tokens are counted.
    """

    def __init__(
        self, genes: int, passes: ForwardRunner, task: Task, accounting: Accounting
    ) -> None:
        self._genes, self._passes = genes, passes
        self._task, self._accounting = task, accounting
        self._computed: dict[str, list[float]] = {}

    def cost(self, name: str) -> float:
        """What an importance costs, in evaluations; see ``Evaluator.importance_cost``."""
        if name not in PRIORS:
            raise unknown("importance", name, PRIORS)
        if name == ABLATION:
            return self._genes + 1
        return checked_importance(name, self._task).passes

    def get(
        self, name: str, metrics: Callable[[Sequence[Sequence[int]]], list[float]]
    ) -> list[float]:
        """How much each gene matters; see ``Evaluator.importance``.

        :param name: one of :data:`PRIORS`.
        :param metrics: evaluates chromosomes, and accounts for that.
        """
        cost = self.cost(name)
        if name not in self._computed:
            if name == ABLATION:
                self._computed[name] = self._ablation(metrics)
            else:
                passes, counted = self._passes, self._accounting
                self._computed[name] = passes.importance(name)
                counted.tokens += round(cost * self._task.tokens)
                counted.seconds_forward, counted.flops = passes.seconds, passes.flops
        return list(self._computed[name])

    def clear(self) -> None:
        """Drop the importances."""
        self._computed.clear()

    def _ablation(self, metrics: Callable[[Sequence[Sequence[int]]], list[float]]) -> list[float]:
        whole = [1] * self._genes
        without = [[*whole[:gene], 0, *whole[gene + 1 :]] for gene in range(self._genes)]
        dense, *lacking = metrics([whole, *without])
        sign = -1 if self._task.greater_is_better else 1
        return checked_numbers(ABLATION, [sign * (metric - dense) for metric in lacking])
