"""The metrics of sub-models, each computed once and kept in memory and in a store."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

from sos_deap.evaluation.accounting import Accounting
from sos_deap.evaluation.partial_scores import PartialScores, Span
from sos_deap.evaluation.store import Store
from sos_deap.tasks.task import Task


class EvaluationCache:
    """Metrics by chromosome.

    :param scores: computes the metrics that are not in the cache.
    :param task: the task of the metrics.
    :param accounting: counts evaluations and cache hits.
    """

    def __init__(self, scores: PartialScores, task: Task, accounting: Accounting) -> None:
        self._scores, self._task, self._accounting = scores, task, accounting
        #: The file that evaluations are shared with other runs in.
        self.store: Store | None = None
        self._metrics: dict[bytes, float] = {}  # on all examples
        self._partial: dict[tuple[bytes, Span], float] = {}  # on some of them

    def metrics(self, keys: list[bytes], span: Span | None = None) -> list[float]:
        """Metrics of chromosomes; those which are not in the cache are computed.

        :param keys: the chromosomes.
        :param span: the examples to score them on; ``None`` for all.
        :returns: a metric for each, in order.
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
        return [self._partial[key, span] if span else self._metrics[key] for key in keys]

    def get(self, key: bytes, span: Span | None = None) -> float | None:
        """The metric of a chromosome, or ``None`` if it is not in memory."""
        return self._partial.get((key, span)) if span else self._metrics.get(key)

    def __iter__(self) -> Iterator[tuple[bytes, float]]:
        """Chromosomes with their metric on all examples, in the order of their computation."""
        return iter(self._metrics.items())

    def clear(self) -> None:
        """Drop all metrics and sums in memory."""
        self._scores.clear()
        self._metrics.clear()
        self._partial.clear()

    def _stored(self, key: bytes) -> bool:
        """Read a metric from the store; returns whether another run has written it there."""
        metric = None if self.store is None or self._own(key) else self.store.get(key)
        if metric is None:
            return False
        self._remember(key, metric)
        self._accounting.store_tokens += self._task.tokens
        return True

    def _own(self, key: bytes) -> bool:
        """Whether this run computed the metric before it was stopped."""
        journal = self._scores.journal
        return journal is not None and (key, 0, len(self._task)) in journal

    def _compute(self, pending: list[bytes], span: Span | None) -> None:
        """Compute metrics into memory and, on all examples, into the store."""
        for metrics in self._scores.metrics(pending, span):
            if span is not None:
                self._partial |= {(key, span): metric for key, metric in metrics.items()}
                continue
            for key, metric in metrics.items():
                self._remember(key, metric)
            if self.store is not None:
                started = time.perf_counter()
                self.store.put(metrics)
                self._accounting.seconds_store += time.perf_counter() - started

    def _remember(self, key: bytes, metric: float) -> None:
        self._accounting.non_finite += not math.isfinite(metric)
        self._metrics[key] = metric
