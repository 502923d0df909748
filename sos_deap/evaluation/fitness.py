"""Chromosomes in, fitness out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, Unpack

import torch
from transformers import PreTrainedModel

from sos_deap.errors import InputError
from sos_deap.evaluation.forward_options import ForwardOptions
from sos_deap.evaluation.metrics import MetricEvaluator
from sos_deap.evaluation.partial_scores import Span, span_of
from sos_deap.models.compensation import Compensation
from sos_deap.models.costs import TOKENS, Sparsity, sparsity_defaults, sparsity_measure
from sos_deap.models.find_genes import ChannelOrder
from sos_deap.models.genes import CHANNEL_BLOCKS
from sos_deap.models.refit import check_refit
from sos_deap.models.time_options import times_for
from sos_deap.models.time_table import TimeTable
from sos_deap.search.chromosome import WORST_FITNESS, within
from sos_deap.tasks.custom import CallableTask
from sos_deap.tasks.objectives import Objective, check_metric, checked_objective
from sos_deap.tasks.task import Task

_T = TypeVar("_T")


def checked_bound(max_sparsity: float) -> float:
    """Return a maximum sparsity; raises :class:`InputError` for one outside [0, 1]."""
    if not 0 <= max_sparsity <= 1:
        raise InputError(f"max_sparsity is {max_sparsity}: a sparsity lies in [0, 1]")
    return max_sparsity


class FitnessEvaluator(MetricEvaluator):
    """Evaluates the fitness of chromosomes: an objective of the metric and the sparsity.

    The parameters are those of :class:`sos_deap.Evaluator`.
    """

    __slots__ = (
        "_recipe",
        "_validates",
        "heldout",
        "max_sparsity",
        "objective",
        "probe",
        "refit",
        "refit_damping",
        "refit_task",
        "sparsity",
        "sparsity_of",
        "stored_dtype",
        "time_table",
        "tokenizer",
        "validation",
    )

    def __init__(
        self,
        model: PreTrainedModel,
        task: Task | Callable[[Any], Any],
        objective: str | Objective = "paper",
        *,
        heldout: Task | None = None,
        validation: Task | None = None,
        probe: Task | None = None,
        refit_task: Task | None = None,
        refit: str = "none",
        refit_damping: float | None = None,
        genes: str = "heads",
        channel_blocks: int = CHANNEL_BLOCKS,
        channel_order: ChannelOrder | None = None,
        sparsity_of: str | None = None,
        max_sparsity: float | None = None,
        time_table: str | Path | Mapping[str, Any] | None = None,
        time_tokens: int | None = None,
        time_of: str | None = None,
        **forward: Unpack[ForwardOptions],
    ) -> None:
        own = CallableTask(task) if callable(task) else task
        self.objective = checked_objective(objective) if isinstance(objective, str) else objective
        check_metric(self.objective, own.name, own.greater_is_better)
        super().__init__(
            model,
            own,
            genes,
            channel_blocks=channel_blocks,
            channel_order=channel_order,
            **forward,
        )
        self.heldout, self.probe, self.refit_task = heldout, probe, refit_task
        self.refit, self.refit_damping = refit, refit_damping
        self.sparsity_of, self.max_sparsity = sparsity_defaults(genes, sparsity_of, max_sparsity)
        #: The measured times, if sparsity is a share of time.
        self.time_table: TimeTable | None = times_for(
            model, self.gene_map, self.sparsity_of, time_table, time_tokens, time_of
        )
        self.sparsity: Sparsity = self._sparsity_measure()
        #: Evaluates the metric on the validation examples; keeps no hidden states.
        self.validation = self._validator(validation, {**forward, "reuse_memory": 0.0})
        self._compensate()
        self._validates = False
        self.tokenizer: Any = None
        #: The dtype that pruned models are saved in.
        self.stored_dtype: torch.dtype = model.dtype
        #: The names that it was made of, with which another process makes an equal one.
        self._recipe: dict[str, Any] | None = None

    def _sparsity_measure(self) -> Sparsity:
        checked_bound(self.max_sparsity)
        # A task that calls a function of the user's has sequences of unknown length.
        tokens = self.task.seqlen if self.task.seqlen > 1 else TOKENS
        return sparsity_measure(
            self.model, self.gene_map, self.sparsity_of, tokens, self.time_table
        )

    def _compensate(self) -> None:
        """Let sub-models be computed with refitted weights, if they are refitted in the search."""
        if self.refit not in ("none", "during"):
            raise InputError(f"refit is {self.refit}: give during, or use sos_deap.refit")
        if self.refit == "none":
            return
        text = self.refit_task or self.task
        check_refit(self.model, text, "after", self.refit_damping)
        fitted = Compensation(self.model, self.gene_map, text, self.refit_damping)
        self.accounting.tokens += text.tokens
        self.runner.compensation = fitted
        if self.validation is not None:
            self.validation.runner.compensation = fitted

    def _validator(self, task: Task | None, forward: ForwardOptions) -> MetricEvaluator | None:
        """The evaluator of the same model and genes on the validation examples."""
        if task is None:
            return None
        genes = self.gene_map
        found = MetricEvaluator(
            self.model,
            task,
            genes.genes,
            channel_blocks=genes.channel_blocks,
            channel_order=genes.channel_order,
            **forward,
        )
        found.accounting.tokens = task.reference_tokens  # the order was measured here
        # Looked up at each call, as `interruptible` replaces it.
        found.runner.between_batches = lambda: self.runner.between_batches()  # noqa: PLW0108
        return found

    @property
    def objectives(self) -> int:
        """The number of values of a fitness."""
        return len(self.objective(-1.0, 0.0))

    @property
    def _worst(self) -> tuple[float, ...]:
        return (WORST_FITNESS,) * self.objectives

    def spent(self) -> dict[str, float]:
        """What the evaluations of a search have cost, for its limits.

        :returns: ``evaluations``: chromosomes computed or read from the store, one on some of the
            examples counted as their share of all; and ``tokens``.
        """
        counted, each = self.accounting, self.task.tokens
        tokens = counted.tokens + counted.store_tokens
        computed = counted.forward_evaluations + counted.store_hits
        return {"evaluations": tokens / each if each else computed, "tokens": tokens}

    def __call__(
        self, individual: Sequence[int], max_sparsity: float | None = None
    ) -> tuple[float, ...]:
        """The fitness values of one individual; :meth:`many` for several."""
        return self.many([individual], max_sparsity)[0]

    def many(
        self, individuals: Iterable[Sequence[int]], max_sparsity: float | None = None
    ) -> list[tuple[float, ...]]:
        """The fitness values of several individuals, in order.

        A metric or fitness that is NaN or infinite becomes the worst fitness. Inside
        :meth:`validating` all validation examples are used.

        :param individuals: chromosomes of 0/1 genes. One with an
            attribute ``examples``, a pair ``(start, stop)``, is scored on those calibration
            examples only.
        :param max_sparsity: individuals that remove more get the worst fitness without a forward
            pass. Default: the evaluator's own; 1 for no bound.
        :raises InputError: for a chromosome that does not fit the model.
        """
        several = list(individuals)
        bound = self.max_sparsity if max_sparsity is None else max_sparsity
        with self._lock:
            self._drop_if_changed()
            keys = [self._key(individual) for individual in several]
            if self._validates:
                spans: list[Span | None] = [None] * len(keys)
                return self._validated(lambda source: self._fitnesses(source, keys, spans, bound))
            spans = [span_of(individual, len(self.task)) for individual in several]
            return self._fitnesses(self, keys, spans, bound)

    def _fitnesses(
        self,
        source: MetricEvaluator,
        keys: list[bytes],
        spans: list[Span | None],
        bound: float,
    ) -> list[tuple[float, ...]]:
        """The fitness values of chromosomes by the metrics of a metric evaluator."""
        shares = [self.sparsity(key) for key in keys]
        fitnesses = [self._worst] * len(keys)
        by_span: dict[Span | None, list[int]] = {}
        for i, share in enumerate(shares):
            if within(share, bound):
                by_span.setdefault(spans[i], []).append(i)
        for span, numbers in by_span.items():
            metrics = source._cache.metrics([keys[i] for i in numbers], span)
            for i, metric in zip(numbers, metrics, strict=True):
                fitnesses[i] = self._fitness(metric, shares[i])
        infeasible = len(keys) - sum(map(len, by_span.values()))
        source.accounting.evaluations += infeasible
        source.accounting.infeasible += infeasible
        return fitnesses

    def _fitness(self, metric: float, sparsity: float) -> tuple[float, ...]:
        if not math.isfinite(metric):
            return self._worst
        score = metric if self.task.greater_is_better else -metric
        fitness = self.objective(score, sparsity)
        return fitness if all(map(math.isfinite, fitness)) else self._worst

    def metrics(self, individuals: Iterable[Sequence[int]]) -> list[float]:
        """The task's metric of several individuals on all examples.

        The examples are the calibration examples, or inside :meth:`validating` the validation
        examples.

        :param individuals: chromosomes of 0/1 genes.
        :returns: a metric for each, in order; may be NaN or infinite.
        :raises InputError: for a chromosome that does not fit the model.
        """
        if not self._validates:
            return super().metrics(individuals)
        keys = [self._key(individual) for individual in individuals]
        with self._lock:
            self._drop_if_changed()
            return self._validated(lambda source: source._cache.metrics(keys))

    @contextmanager
    def validating(self) -> Iterator[None]:
        """Evaluate on the validation examples inside the context.

        Whatever wraps the evaluator (a penalty, a function registered as ``evaluate``) therefore
        uses them, too. Their tokens count as those of the search.

        :raises InputError: if there are no validation examples.
        """
        if self.validation is None:
            raise InputError("there are no validation examples: give the evaluator validation=")
        self._validates = True
        try:
            yield
        finally:
            self._validates = False

    def validate(self, individuals: Iterable[Sequence[int]]) -> list[tuple[float, ...]]:
        """The fitness values of several individuals on the validation examples, in order.

        :raises InputError: if there are no validation examples, and for a chromosome that does not
            fit the model.
        """
        with self.validating():
            return self.many(individuals)

    def _validated(self, compute: Callable[[MetricEvaluator], list[_T]]) -> list[_T]:
        """A result on the validation examples, whose tokens are counted as this evaluator's."""
        assert self.validation is not None
        counted = self.validation.accounting
        before = counted.tokens if counted.evaluations else 0  # once, the dense model's count, too
        found = compute(self.validation)
        self.accounting.tokens += counted.tokens - before
        return found

    def metric_of(self, model: PreTrainedModel, task: Task) -> float:
        """A task's metric of a whole model, dense or pruned; not counted."""
        return self.metrics_of(model, task)[task.name]

    def clear(self) -> None:
        """Drop all results of sub-models in memory; the store and the journal are unchanged."""
        super().clear()
        if self.validation is not None:
            self.validation.clear()
