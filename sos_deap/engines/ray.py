"""The engine ``ray``: actors as workers, which Ray restarts if they die."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from itertools import cycle
from typing import Any

from sos_deap.engines.setup import configure_process
from sos_deap.errors import InputError

#: How often work whose worker died is repeated before the run fails.
_RETRIES = 3


class Ray:
    """An engine with an actor for each worker.

    The cluster is that of ``RAY_ADDRESS``, or else it is started on this machine.

    :param workers: the number of workers.
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
        """Submit a function to the next actor; returns a future."""
        future: Future[Any] = next(self._next).call.remote(function, *arguments).future()
        return future

    def close(self, at_once: bool = False) -> None:
        """End the actors, and Ray if this engine started it."""
        import ray

        with suppress(Exception):  # they may have ended already
            for actor in self._actors:
                ray.kill(actor)
        if self._ours:
            ray.shutdown()


class _Actor:
    def __init__(self, together: int) -> None:
        configure_process(together)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)
