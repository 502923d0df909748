"""The metrics of sub-models, each computed once: kept in memory, in a store and in a journal."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

from sos_deap.evaluation.accounting import Accounting
from sos_deap.evaluation.forward import ForwardRunner
from sos_deap.evaluation.partial_scores import PartialScores, Span
from sos_deap.evaluation.store import Store
from sos_deap.tasks.task import Task


class EvaluationCache:
    """What is known of sub-models, and how it comes to be known.

    :param passes: computes what is not known.
    :param task: whose metric it is.
    :param accounting: where all of it is counted.
    :param model_state: the :func:`sos_deap.models.identity.state` of the model.
    """

    def __init__(
        self,
        passes: ForwardRunner,
        task: Task,
        accounting: Accounting,
        model_state: tuple[Any, ...],
    ) -> None:
        self._task, self._accounting = task, accounting
        self.model_state = model_state
        #: What computes, and writes the journal.
        self.scores = PartialScores(passes, task, accounting)
        #: Where evaluations are kept for other runs.
        self.store: Store | None = None
        self._whole: dict[bytes, float] = {}  # metrics on all examples
        self._spans: dict[tuple[bytes, Span], float] = {}  # and on some of them

    def metrics(self, keys: list[bytes], span: Span | None = None) -> list[float]:
        """Metrics by chromosome, those computed first that are not known.

        :param keys: the chromosomes.
        :param span: the examples to score them on; ``None`` for all.
        :returns: in order.
        """
        counted = self._accounting
        started, forward_before = time.perf_counter(), counted.seconds_forward
        new = [key for key in dict.fromkeys(keys) if self.get(key, span) is None]
        pending = new if span else [key for key in new if not self._stored(key)]
        self._compute(pending, span)
        counted.evaluations += len(keys)
        counted.forward_evaluations += len(pending)
        counted.store_hits += len(new) - len(pending)
        counted.cache_hits += len(keys) - len(new)
        in_forward = counted.seconds_forward - forward_before
        counted.seconds_outside += time.perf_counter() - started - in_forward
        return [self._spans[key, span] if span else self._whole[key] for key in keys]

    def get(self, key: bytes, span: Span | None = None) -> float | None:
        """The metric of a chromosome if it is in memory."""
        return self._spans.get((key, span)) if span else self._whole.get(key)

    def __iter__(self) -> Iterator[tuple[bytes, float]]:
        """Chromosomes with their metric on all examples, in the order they were computed."""
        return iter(self._whole.items())

    def clear(self) -> None:
        """Leave nothing in memory, neither metrics nor what they are made of."""
        self.scores.clear()
        self._whole.clear()
        self._spans.clear()

    def _stored(self, key: bytes) -> bool:
        """Take a metric from the store, if it is there and not this run's own."""
        metric = None if self.store is None or self._own(key) else self.store.get(key)
        if metric is None:
            return False
        self._remember(key, metric)
        self._accounting.store_tokens += self._task.tokens
        return True

    def _own(self, key: bytes) -> bool:
        """Whether this run has computed it, before it was stopped."""
        journal = self.scores.journal
        return journal is not None and (key, 0, len(self._task)) in journal

    def _compute(self, pending: list[bytes], span: Span | None) -> None:
        """Fill memory and store."""
        for metrics in self.scores.compute(pending, span):
            if span is not None:
                self._spans |= {(key, span): metric for key, metric in metrics.items()}
                continue
            for key, metric in metrics.items():
                self._remember(key, metric)
            if self.store is not None:
                started = time.perf_counter()
                self.store.put(metrics)
                self._accounting.seconds_store += time.perf_counter() - started

    def _remember(self, key: bytes, metric: float) -> None:
        self._accounting.non_finite += not math.isfinite(metric)
        self._whole[key] = metric
