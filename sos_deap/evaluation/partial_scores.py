"""Metrics of sub-models on all or on some of the calibration examples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from sos_deap.errors import InputError
from sos_deap.evaluation.accounting import Accounting
from sos_deap.evaluation.compute import Chunk, Compute
from sos_deap.evaluation.journal import Journal
from sos_deap.tasks.task import Task

#: Calibration examples: the first one, and the one after the last.
Span = tuple[int, int]


def span_of(individual: Any, count: int) -> Span | None:
    """The examples that an individual is to be scored on, by its attribute ``examples``.

    :param count: calibration examples of the task.
    :returns: the span; ``None`` for all examples.
    :raises InputError: for an attribute that is not a pair ``(start, stop)`` of examples.
    """
    span = getattr(individual, "examples", None)
    if span is None:
        return None
    pair = isinstance(span, tuple | list) and all(type(number) is int for number in span)
    if not (pair and len(span) == 2 and 0 <= span[0] < span[1] <= count):
        raise InputError(
            f"an individual's examples are {span!r}: the task has {count}, give None for all, "
            f"or a pair of a start from 0 and a greater stop up to {count}"
        )
    return None if tuple(span) == (0, count) else (span[0], span[1])


class PartialScores:
    """Sums over examples, which grow as a sub-model is scored on more of them.

    :param compute: computes the sums.
    :param task: the task of the examples, which makes metrics of sums.
    :param layers: attention layers of the model.
    :param accounting: counts tokens and layers.
    """

    def __init__(self, compute: Compute, task: Task, layers: int, accounting: Accounting) -> None:
        self._task, self._layers, self._accounting = task, layers, accounting
        #: Computes the sums: a forward runner of this process, or an engine's workers.
        self.compute = compute
        #: The file that all sums are written to, and read from if they are in it.
        self.journal: Journal | None = None
        # By chromosome and first example: the stop up to which it was scored, and the sums.
        self._sums: dict[tuple[bytes, int], tuple[int, list[float]]] = {}

    def clear(self) -> None:
        """Drop the sums."""
        self._sums.clear()

    def metrics(self, pending: list[bytes], span: Span | None) -> Iterator[dict[bytes, float]]:
        """Score chromosomes; yields the metrics of some of them as soon as they are computed.

        :param pending: the chromosomes.
        :param span: the examples; ``None`` for all.
        """
        start, stop = span or (0, len(self._task))
        for begin, keys in self._by_begin(pending, span).items():
            for chunk in self._grow(keys, start, (begin, stop)):
                yield {key: self._metric(key, start) for key in chunk}

    def _by_begin(self, pending: list[bytes], span: Span | None) -> dict[int, list[bytes]]:
        """Chromosomes by the example up to which they were already scored on this span.

        On all examples they are always scored from the first one, so that what is stored does not
        depend, in its last digits, on what the search has scored before.
        """
        if span is None:
            return {0: pending}
        start, stop = span
        groups: dict[int, list[bytes]] = {}
        for key in pending:
            until, _ = self._sums.get((key, start), (start, []))
            groups.setdefault(until if until < stop else start, []).append(key)
        return groups

    def _grow(self, keys: list[bytes], start: int, examples: Span) -> Iterator[list[bytes]]:
        """Add the sums over some examples to those over the examples before, a chunk at a time."""
        begin, until = examples
        share = (until - begin) / len(self._task)
        tokens = round(self._task.tokens * share)  # of each, so that chunks make no difference
        for chunk, rows in self._computed(keys, examples):
            self._accounting.tokens += len(chunk) * tokens
            self._accounting.layers += len(chunk) * self._layers * share
            for key, row in zip(chunk, rows, strict=True):
                before = self._sums[key, start][1] if begin > start else [0.0] * len(row)
                self._sums[key, start] = until, [a + b for a, b in zip(before, row, strict=True)]
            yield list(chunk)

    def _computed(self, keys: list[bytes], examples: Span) -> Iterable[Chunk]:
        """The sums of chromosomes over some examples, a chunk at a time."""
        if self.journal is None:
            return self.compute(keys, slice(*examples))
        return self.journal.through(keys, examples, self.compute)

    def _metric(self, key: bytes, start: int) -> float:
        return self._task.metrics(self._sums[key, start][1])[self._task.name]
