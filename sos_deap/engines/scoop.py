"""SCOOP's workers, seen from a process that SCOOP has started."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import scoop
from scoop import futures

from sos_deap.engines import worker
from sos_deap.errors import InputError


def running() -> bool:
    """Whether SCOOP has started this process."""
    return bool(scoop.IS_RUNNING)


class Scoop:
    """The workers that were started with this process, of which it is one.

    :param workers: how many there should be.
    :raises InputError: outside SCOOP.
    """

    lost: tuple[type[BaseException], ...] = ()  # the one who started them sees to that

    def __init__(self, workers: int) -> None:
        if not running():
            raise InputError(
                "the engine scoop is for programs that SCOOP has started: "
                f"python -m scoop -n {workers} YOUR_SCRIPT.py"
            )
        self.workers: int = scoop.SIZE
        if not worker.is_configured():
            worker.configure_process(scoop.SIZE)  # this process works, too
        _keep_to_one_part()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Let a worker call a function; this one keeps the last, for when it waits."""
        return futures.submit(function, *arguments)

    def close(self, at_once: bool = False) -> None:
        """Nothing: they end with the program."""


def _keep_to_one_part() -> None:
    """Keep SCOOP from two habits, in this process.

    It asks every two seconds after what others are at, and takes what they do not answer for as
    lost, so that long tasks are done twice. And while it waits it asks for work, which it is then
    given later, when it has some: each worker is to have one part.
    """
    from scoop import _types

    if scoop.SIZE > 1:
        _types.FutureQueue.askForPreviousFutures = lambda _: None
        _types.FutureQueue.requestFuture = lambda _: None
