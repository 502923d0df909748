"""Compute sub-models in the workers of an engine instead of this process."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from itertools import pairwise
from typing import Any

from sos_deap.cli import no_answer, pending_end
from sos_deap.engines import Engine
from sos_deap.engines.worker import sums
from sos_deap.errors import InputError, WorkerLostError, first_line
from sos_deap.evaluation.compute import Chunk
from sos_deap.evaluation.forward import ForwardRunner
from sos_deap.evaluation.randomness import random_state_kept
from sos_deap.models.guard import exclusive

#: Most sub-models in a part. A worker computes a part together, and loses no more if it ends.
_TOGETHER = 32

#: Seconds without an answer after which a message is printed, and after which a signal ends the
#: run; or twice the longest time of an answer, if that is longer.
_SILENCE, _SILENCE_AFTER_SIGNAL = 60.0, 10.0


class WorkerPool:
    """Computes the sub-models of an evaluator in the workers of an engine.

    :param engine: the workers.
    :param recipe: :attr:`sos_deap.Evaluator.recipe`, from which each worker makes its evaluator.
    :param runner: the evaluator's forward runner, to whose cost that of the workers is added.
    :param model: the evaluator's model, which a worker in another thread of this process may use.
    """

    def __init__(self, engine: Engine, recipe: str, runner: ForwardRunner, model: Any) -> None:
        self._engine, self._recipe, self._runner, self._model = engine, recipe, runner, model
        self._longest = 0.0  # seconds of the slowest answer, except the workers' first ones
        self._loaded = False

    def compute(self, pending: Sequence[bytes], part: slice) -> Iterator[Chunk]:
        """Compute the sums of sub-models, in as many parts as there are workers or a multiple.

        The parts are yielded in order, so that a search does not depend on which was first.

        :param pending: the sub-models.
        :param part: the examples to compute them on, with a start and a stop.
        :raises WorkerLostError: if a worker ended before it had computed its part.
        """
        chunks, span = _cut(pending, self._engine.workers), (part.start, part.stop)
        started = time.perf_counter()
        futures: list[Any] = []
        try:
            # SCOOP computes in this process, too, and a task may draw random numbers.
            with random_state_kept():
                for chunk in chunks:
                    futures.append(self._submit(chunk, span))
            for i, (chunk, future) in enumerate(zip(chunks, futures, strict=True)):
                self._runner.between_batches()
                with random_state_kept():
                    self._wait(futures[i:])
                    rows, cost = self._result(future)
                now = time.perf_counter()
                with exclusive(self._model):
                    self._runner.cost.add(replace(cost, seconds=now - started))
                started = now
                yield chunk, rows
            self._loaded = True
        finally:
            for future in futures:
                future.cancel()

    def close(self, at_once: bool = False) -> None:
        """Release the workers, after their current work or at once."""
        self._engine.close(at_once)

    def _submit(self, chunk: Sequence[bytes], span: tuple[int, int]) -> Any:
        try:
            return self._engine.submit(sums, self._recipe, self._engine.workers, chunk, span)
        except RuntimeError as error:  # broken, or shut down by its owner
            raise WorkerLostError(
                f"the workers accept no more work: {first_line(error)}"
            ) from error

    def _wait(self, futures: Sequence[Any]) -> None:
        """Wait for the first of some futures; print a message if none is answered for long.

        A stopped worker never answers; a signal then ends the wait. How long an answer may take is
        estimated from earlier ones.
        """
        if not isinstance(futures[0], Future):
            return  # SCOOP's futures, which compute while waiting
        answered = printed = time.monotonic()
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
            if min(silence, now - printed) > max(_SILENCE, 2 * self._longest):
                printed, count = now, min(len(missing), self._engine.workers)
                who = f"{count} of {self._engine.workers} workers"
                print(no_answer(who, silence), file=sys.stderr)

    def _result(self, future: Any) -> Any:
        try:
            return future.result()
        except InputError as error:  # Ray wraps it with a traceback
            raise InputError(str(getattr(error, "cause", error))) from error
        except self._engine.lost as error:
            if end := pending_end():  # the signal may have been sent to the workers, too
                raise end from error
            raise WorkerLostError(
                f"a worker was lost, out of memory perhaps ({first_line(error)}): "
                "what was computed before is kept"
            ) from error


def _cut(pending: Sequence[bytes], workers: int) -> list[Sequence[bytes]]:
    """Split into parts of almost equal size, in order."""
    parts = max(1, workers * -(-len(pending) // (workers * _TOGETHER)))  # 1 if nothing is pending
    ends = [round(len(pending) * i / parts) for i in range(parts + 1)]
    return [pending[a:b] for a, b in pairwise(ends) if a < b]
