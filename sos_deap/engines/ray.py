"""Ray's actors as workers: one that dies is started again, and what it was at is done again."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from itertools import cycle
from typing import Any

from sos_deap.engines import worker
from sos_deap.errors import InputError

#: How often what a worker was at when it died is done again before it is to blame.
_RETRIES = 3


class Ray:
    """An actor for each worker, on the cluster of ``RAY_ADDRESS`` or else on this machine.

    :param workers: how many.
    :raises InputError: if the cluster has too few cores.
    """

    def __init__(self, workers: int) -> None:
        import ray

        self.workers = workers
        self.lost: tuple[type[BaseException], ...] = (ray.exceptions.RayActorError,)
        self._ours = not ray.is_initialized()
        if self._ours:
            there = "RAY_ADDRESS" in os.environ
            ray.init(
                num_cpus=None if there else workers,
                include_dashboard=None if there else False,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
        total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        if total.get("CPU", 0) < workers:
            raise InputError(
                f"workers is {workers}, and Ray's cluster has {total.get('CPU', 0):g} cores: give "
                "fewer --workers"
            )
        share = min(1.0, total.get("GPU", 0) / workers)
        actor: Any = ray.remote(
            num_cpus=1, num_gpus=share, max_restarts=-1, max_task_retries=_RETRIES
        )(_Actor)
        self._actors = [actor.remote(workers) for _ in range(workers)]
        self._next = cycle(self._actors)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Let the next actor call a function."""
        future: Future[Any] = next(self._next).call.remote(function, *arguments).future()
        return future

    def close(self, at_once: bool = False) -> None:
        """Let the actors go, and Ray if it was started here."""
        import ray

        with suppress(Exception):  # they may be gone
            for actor in self._actors:
                ray.kill(actor)
        if self._ours:
            ray.shutdown()


class _Actor:
    def __init__(self, together: int) -> None:
        worker.configure_process(together)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)
