"""Workers in processes of this machine."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from threading import Timer
from typing import Any

from sos_deap.engines.setup import begin, ignore_sigint

#: Seconds that the processes have to finish their work when the engine is closed.
_TO_GO = 10.0


class Processes:
    """An engine with a process of this machine for each worker.

    :param workers: the number of workers.
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
        """Submit a function to a worker; returns a future."""
        with _later_interrupted():  # as this may start a process
            return self._pool.submit(function, *arguments)

    def close(self, at_once: bool = False) -> None:
        """End the processes, after their current work or at once."""
        # A process that was stopped, by SIGSTOP for example, would never end by itself.
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
    """An engine with an executor of ``concurrent.futures``, which is not shut down.

    :param executor: the executor.
    :param workers: the number of its workers.
    """

    lost: tuple[type[BaseException], ...] = (BrokenExecutor,)

    def __init__(self, executor: Executor, workers: int) -> None:
        self.workers, self.submit = workers, executor.submit

    def close(self, at_once: bool = False) -> None:
        """Do nothing."""


@contextmanager
def _later_interrupted() -> Iterator[None]:
    """Block Ctrl-C until the end of the context; a process that is started inherits the block.

    The process ends the block once it ignores the signal, which would end it before that.
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
    ignore_sigint()
    begin(numbers.get(), workers)
