"""Sub-models over the workers of an engine, instead of passes in this process."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from sos_deap.engines import Engine
from sos_deap.engines.worker import sums
from sos_deap.errors import WorkerLostError, first_line
from sos_deap.passes import Passes, Sums
from sos_deap.randomness import random_state_kept

#: Most sub-models in what a worker is given at once. It computes them together, and what is lost
#: with a process is no more than that.
_TOGETHER = 32


class Spread:
    """Passes by workers; to be used as :meth:`sos_deap.passes.Passes.run` is.

    :param engine: the workers.
    :param recipe: what they make their models of.
    :param passes: of this process, which count what all of them cost.
    """

    def __init__(self, engine: Engine, recipe: str, passes: Passes) -> None:
        self._engine, self._recipe, self._passes = engine, recipe, passes

    def run(self, pending: Sequence[bytes], part: slice) -> Iterator[tuple[Sequence[bytes], Sums]]:
        """Compute sub-models, cut into as many parts as there are workers, or a multiple of that.

        The parts are given in order, so that a search does not depend on which was first.

        :param pending: the sub-models.
        :param part: the examples to compute them on, from a start to a stop.
        :raises WorkerLostError: if a worker ended before it had done its part.
        """
        chunks, span = _cut(pending, self._engine.workers), (part.start, part.stop)
        started = time.perf_counter()
        # SCOOP lets this process work, too, and a task may draw.
        with random_state_kept():
            futures = [
                self._engine.submit(sums, self._recipe, self._engine.workers, chunk, span)
                for chunk in chunks
            ]
        try:
            for chunk, future in zip(chunks, futures, strict=True):
                with random_state_kept():
                    rows, cost = self._result(future)
                now = time.perf_counter()
                self._passes.add(cost, seconds=now - started)
                started = now
                yield chunk, rows
        finally:
            for future in futures:
                future.cancel()

    def close(self, at_once: bool = False) -> None:
        """Let the workers go, after what they are at or at once."""
        self._engine.close(at_once)

    def _result(self, future: Any) -> Any:
        try:
            return future.result()
        except self._engine.lost as error:
            raise WorkerLostError(
                f"a worker was lost, out of memory perhaps ({first_line(error)}): "
                "what was computed before is kept"
            ) from error


def _cut(pending: Sequence[bytes], workers: int) -> list[Sequence[bytes]]:
    """Parts of almost one size, in order."""
    parts = max(1, workers * -(-len(pending) // (workers * _TOGETHER)))  # of none, too
    ends = [round(len(pending) * i / parts) for i in range(parts + 1)]
    return [pending[a:b] for a, b in pairwise(ends) if a < b]
