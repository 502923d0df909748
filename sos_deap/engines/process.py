"""Workers in processes of this machine."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from multiprocessing import active_children, get_context
from typing import Any

from sos_deap.engines import worker


class Processes:
    """A process for each worker.

    :param workers: how many.
    """

    lost: tuple[type[BaseException], ...] = (BrokenExecutor,)

    def __init__(self, workers: int) -> None:
        self.workers = workers
        # Spawned: a forked process would inherit torch's threads in whatever state they are.
        context, self._others = get_context("spawn"), set(active_children())
        numbers: Any = context.SimpleQueue()
        for number in range(workers):
            numbers.put(number)
        self._pool = ProcessPoolExecutor(workers, context, _begin, (numbers, workers))

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Let a worker call a function."""
        return self._pool.submit(function, *arguments)

    def close(self, at_once: bool = False) -> None:
        """End the processes, after what they are at or at once."""
        if at_once:
            for child in active_children():
                if child not in self._others:
                    child.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)


class Borrowed:
    """Any executor of ``concurrent.futures``, which stays its owner's.

    :param executor: the executor.
    :param workers: how many it has.
    """

    lost: tuple[type[BaseException], ...] = (BrokenExecutor,)

    def __init__(self, executor: Executor, workers: int) -> None:
        self.workers, self.submit = workers, executor.submit

    def close(self, at_once: bool = False) -> None:
        """Leave it as it is."""


def _begin(numbers: Any, workers: int) -> None:
    worker.stays_out_of_it()
    worker.begin(numbers.get(), workers)
