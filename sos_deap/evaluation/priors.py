"""Importances of genes before a search, by name, each computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sos_deap.errors import unknown
from sos_deap.evaluation.accounting import Accounting
from sos_deap.evaluation.forward import ForwardRunner
from sos_deap.models.genes import GeneMap
from sos_deap.models.importance import IMPORTANCES, checked_importance, checked_numbers
from sos_deap.tasks.task import Task

#: The importance computed by evaluations: the loss of the metric without each gene.
ABLATION = "ablation"

#: Names of the importances that a search may use as a prior.
PRIORS = (*IMPORTANCES, ABLATION)


class Priors:
    """The importances of a model's genes.

    :param genes: the model's gene map.
    :param runner: computes all importances but ``"ablation"``.
    :param task: the task whose calibration examples the model reads.
    :param accounting: counts the tokens.
    """

    def __init__(
        self, genes: GeneMap, runner: ForwardRunner, task: Task, accounting: Accounting
    ) -> None:
        self._genes, self._runner = genes, runner
        self._task, self._accounting = task, accounting
        self._computed: dict[str, list[float]] = {}

    def cost(self, name: str) -> float:
        """The cost of an importance, in evaluations on all calibration examples.

        :raises InputError: for an unknown name, or one that the task does not support.
        """
        if name not in PRIORS:
            raise unknown("importance", name, PRIORS)
        if name == ABLATION:
            return len(self._genes) + 1
        return checked_importance(name, self._task, self._genes).passes

    def get(
        self, name: str, metrics: Callable[[Sequence[Sequence[int]]], list[float]]
    ) -> list[float]:
        """The importance of each gene; the greater, the more is lost without it.

        :param name: one of :data:`PRIORS`.
        :param metrics: returns the metrics of chromosomes, and counts them.
        :raises InputError: for an unknown name, or one that the task does not support.
        """
        cost = self.cost(name)
        if name not in self._computed:
            if name == ABLATION:
                self._computed[name] = self._ablation(metrics)
            else:
                self._computed[name] = self._runner.importance(name)
                self._accounting.tokens += round(cost * self._task.tokens)
        return list(self._computed[name])

    def clear(self) -> None:
        """Drop the importances."""
        self._computed.clear()

    def _ablation(self, metrics: Callable[[Sequence[Sequence[int]]], list[float]]) -> list[float]:
        whole = [1] * len(self._genes)
        without = [[*whole[:gene], 0, *whole[gene + 1 :]] for gene in range(len(whole))]
        dense, *lacking = metrics([whole, *without])
        sign = -1 if self._task.greater_is_better else 1
        return checked_numbers(ABLATION, [sign * (metric - dense) for metric in lacking])
