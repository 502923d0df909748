"""Sub-models scored on calibration examples: on all or on some of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sos_deap.evaluation.accounting import Accounting
from sos_deap.evaluation.forward import ForwardRunner
from sos_deap.evaluation.journal import Chunk, Journal, Run
from sos_deap.tasks.task import Task

Span = tuple[int, int]  # calibration examples, from a start to a stop


class PartialScores:
    """Sums over examples, which grow as a sub-model is scored on more of them.

    :param passes: computes the sums.
    :param task: whose examples they are, and what the sums mean.
    :param accounting: where tokens and layers are counted.
    """

    def __init__(self, passes: ForwardRunner, task: Task, accounting: Accounting) -> None:
        self._passes, self._task, self._accounting = passes, task, accounting
        #: Where all sums are written, and taken from if they are there.
        self.journal: Journal | None = None
        #: Who computes sums; this process unless told.
        self.run: Run = passes.run
        # By chromosome and first example: the example up to which it was scored, and the sums.
        self._sums: dict[tuple[bytes, int], tuple[int, list[float]]] = {}

    def clear(self) -> None:
        """Drop the sums, and the hidden states behind them."""
        self._sums.clear()
        self._passes.clear()

    def compute(self, pending: list[bytes], span: Span | None) -> Iterator[dict[bytes, float]]:
        """Score chromosomes; gives the metrics of some of them as soon as they are there.

        :param pending: the chromosomes.
        :param span: the examples; ``None`` for all.
        """
        start, stop = span or (0, len(self._task))
        for begin, keys in self._by_beginning(pending, span).items():
            for chunk in self._grow(keys, start, (begin, stop)):
                yield {key: self._metric(key, start) for key in chunk}
        accounting, counts = self._accounting, self._passes.counts
        accounting.seconds_forward, accounting.flops = counts.seconds, counts.flops
        accounting.out_of_memory = counts.out_of_memory
        accounting.layers_computed = counts.layer_examples / len(self._task)

    def _by_beginning(self, pending: list[bytes], span: Span | None) -> dict[int, list[bytes]]:
        """Chromosomes by the example up to which they were scored on this span before.

        On all examples they are scored afresh: what is stored must not depend, to the last digit,
        on what else a search has looked at.
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
        """Add the sums over some examples to those before them, a chunk at a time."""
        begin, until = examples
        share = (until - begin) / len(self._task)
        for chunk, rows in self._sums_of(keys, examples):
            self._accounting.tokens += round(len(chunk) * self._task.tokens * share)
            self._accounting.layers += len(chunk) * self._passes.layers * share
            for key, row in zip(chunk, rows, strict=True):
                before = self._sums[key, start][1] if begin > start else [0.0] * len(row)
                self._sums[key, start] = until, [a + b for a, b in zip(before, row, strict=True)]
            yield list(chunk)

    def _sums_of(self, keys: list[bytes], examples: Span) -> Iterable[Chunk]:
        """The sums of chromosomes over some examples, a chunk at a time."""
        if self.journal is None:
            return self.run(keys, slice(*examples))
        return self.journal.through(keys, examples, self.run)

    def _metric(self, key: bytes, start: int) -> float:
        return self._task.metrics(self._sums[key, start][1])[self._task.name]
