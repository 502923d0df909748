"""Sub-models over the workers of an engine, instead of passes in this process."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import pairwise
from typing import Any

from sos_deap.cli import no_answer, pending_end
from sos_deap.engines import Engine
from sos_deap.engines.worker import sums
from sos_deap.errors import InputError, WorkerLostError, first_line
from sos_deap.evaluation.forward import ForwardRunner, Sums
from sos_deap.evaluation.randomness import random_state_kept

#: Most sub-models in what a worker is given at once. It computes them together, and what is lost
#: with a process is no more than that.
_TOGETHER = 32

#: Seconds without an answer after which the user is informed; and after which a signal ends the
#: run. Twice as long as an answer has taken, if that is more.
_SILENCE, _SILENCE_AFTER_SIGNAL = 60.0, 10.0


class WorkerPool:
    """Computes sub-models in the workers of an engine.

    :param engine: the workers.
    :param recipe: what they make their models of.
    :param passes: of this process, which count what all of them cost.
    """

    def __init__(self, engine: Engine, recipe: str, passes: ForwardRunner) -> None:
        self._engine, self._recipe, self._passes = engine, recipe, passes
        self._longest = 0.0  # seconds that an answer has taken, but for the workers' first
        self._loaded = False

    def run(self, pending: Sequence[bytes], part: slice) -> Iterator[tuple[Sequence[bytes], Sums]]:
        """Compute sub-models, cut into as many parts as there are workers, or a multiple of that.

        The parts are given in order, so that a search does not depend on which was first.

        :param pending: the sub-models.
        :param part: the examples to compute them on, from a start to a stop.
        :raises WorkerLostError: if a worker ended before it had done its part.
        """
        chunks, span = _cut(pending, self._engine.workers), (part.start, part.stop)
        started = time.perf_counter()
        futures: list[Any] = []
        try:
            # SCOOP lets this process work, too, and a task may draw.
            with random_state_kept():
                for chunk in chunks:
                    futures.append(self._submit(chunk, span))
            for i, (chunk, future) in enumerate(zip(chunks, futures, strict=True)):
                self._passes.between_batches()
                with random_state_kept():
                    self._wait(futures[i:])
                    rows, cost = self._result(future)
                now = time.perf_counter()
                self._passes.add(cost, seconds=now - started)
                started = now
                yield chunk, rows
            self._loaded = True
        finally:
            for future in futures:
                future.cancel()

    def close(self, at_once: bool = False) -> None:
        """Let the workers go, after what they are at or at once."""
        self._engine.close(at_once)

    def _submit(self, chunk: Sequence[bytes], span: tuple[int, int]) -> Any:
        try:
            return self._engine.submit(sums, self._recipe, self._engine.workers, chunk, span)
        except RuntimeError as error:  # broken, or shut down by its owner
            raise WorkerLostError(f"the workers take no more work: {first_line(error)}") from error

    def _wait(self, futures: Sequence[Any]) -> None:
        """Wait for the first of some futures; inform the user if no worker answers any.

        A worker that is stopped, say, never does; a signal then ends the wait. How long an answer
        may take, those before it show.
        """
        if not isinstance(futures[0], Future):
            return  # SCOOP's, which work while they are waited for
        answered = said = time.monotonic()
        while not futures[0].done():
            missing = [future for future in futures if not future.done()]
            wait(missing, timeout=min(1.0, _SILENCE), return_when=FIRST_COMPLETED)
            now = time.monotonic()
            if any(future.done() for future in missing):
                self._longest = max(self._longest, now - answered) if self._loaded else 0.0
                answered = now
            silence = now - answered
            if silence > max(_SILENCE_AFTER_SIGNAL, 2 * self._longest) and (end := pending_end()):
                raise end
            if min(silence, now - said) > max(_SILENCE, 2 * self._longest):
                said, count = now, min(len(missing), self._engine.workers)
                who = f"{count} of {self._engine.workers} workers"
                print(no_answer(who, silence), file=sys.stderr)

    def _result(self, future: Any) -> Any:
        try:
            return future.result()
        except InputError as error:  # which Ray wraps with a traceback
            raise InputError(str(getattr(error, "cause", error))) from error
        except self._engine.lost as error:
            if end := pending_end():  # the signal may have been sent to the workers, too
                raise end from error
            raise WorkerLostError(
                f"a worker was lost, out of memory perhaps ({first_line(error)}): "
                "what was computed before is kept"
            ) from error


def _cut(pending: Sequence[bytes], workers: int) -> list[Sequence[bytes]]:
    """Parts of almost one size, in order."""
    parts = max(1, workers * -(-len(pending) // (workers * _TOGETHER)))  # of none, too
    ends = [round(len(pending) * i / parts) for i in range(parts + 1)]
    return [pending[a:b] for a, b in pairwise(ends) if a < b]
