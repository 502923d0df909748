"""Workers in processes of this machine."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from threading import Timer
from typing import Any

from sos_deap.engines import worker

#: Seconds that processes which are let go have for what they are at.
_TO_GO = 10.0


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
        with _later_interrupted():  # as this may start a process
            return self._pool.submit(function, *arguments)

    def close(self, at_once: bool = False) -> None:
        """End the processes, after what they are at or at once."""
        # One that is stopped, by SIGSTOP say, would be waited for without an end.
        ours = [child for child in active_children() if child not in self._others]

        def kill_ours() -> None:
            for child in ours:
                child.kill()

        kill = Timer(0 if at_once else _TO_GO, kill_ours)
        kill.start()
        self._pool.shutdown(wait=True, cancel_futures=True)
        kill.cancel()
        kill.join()


class ExternalExecutor:
    """Any executor of ``concurrent.futures``, which stays its owner's.

    :param executor: the executor.
    :param workers: how many it has.
    """

    lost: tuple[type[BaseException], ...] = (BrokenExecutor,)

    def __init__(self, executor: Executor, workers: int) -> None:
        self.workers, self.submit = workers, executor.submit

    def close(self, at_once: bool = False) -> None:
        """Leave it as it is."""


@contextmanager
def _later_interrupted() -> Iterator[None]:
    """Block Ctrl-C, which comes afterwards; a process that is started inherits the block.

    It ends the block once it ignores the signal: before, it would end, as if it had been lost.
    """
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(numbers: Any, workers: int) -> None:
    worker.ignore_sigint()
    worker.begin(numbers.get(), workers)
