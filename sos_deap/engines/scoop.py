"""The engine ``scoop``, in a process that SCOOP has started."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import scoop
from scoop import futures

from sos_deap.engines.setup import configure_process, is_configured
from sos_deap.errors import InputError


def running() -> bool:
    """Whether SCOOP has started this process."""
    return bool(scoop.IS_RUNNING)


class Scoop:
    """An engine with the workers that SCOOP started, of which this process is one.

    :param workers: the number of workers that SCOOP should be started with.
    :raises InputError: outside SCOOP.
    """

    lost: tuple[type[BaseException], ...] = ()  # the launcher detects lost workers

    def __init__(self, workers: int) -> None:
        if not running():
            raise InputError(
                "the engine scoop is for programs that SCOOP has started: "
                f"python -m scoop -n {workers} YOUR_SCRIPT.py"
            )
        self.workers: int = scoop.SIZE
        if not is_configured():
            configure_process(scoop.SIZE)  # this process computes, too
        _keep_to_one_part()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Submit a function to a worker; returns a future.

        This process keeps the last one for itself and runs it while it waits.
        """
        return futures.submit(function, *arguments)

    def close(self, at_once: bool = False) -> None:
        """Do nothing, as the workers end with the program."""


def _keep_to_one_part() -> None:
    """Switch off two features of SCOOP in this process.

    SCOOP asks every two seconds for the state of submitted tasks and repeats those without an
    answer, so that long tasks are computed twice. And a waiting process requests work that it gets
    only later, when it has some already; each worker should have one part.
    """
    from scoop import _types

    if scoop.SIZE > 1:
        _types.FutureQueue.askForPreviousFutures = lambda _: None
        _types.FutureQueue.requestFuture = lambda _: None
