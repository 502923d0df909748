"""How sub-models are spread over processes, GPUs and hosts.

What travels is a recipe, chromosomes and sums, never a model: each process makes its own, once.
Everything that decides stays in one process: search, cache, journal and store.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Protocol

from sos_deap.engines.worker import gpus
from sos_deap.errors import InputError, unknown


class Engine(Protocol):
    """Workers that functions can be given to."""

    #: How many there are.
    workers: int
    #: What a future raises if its worker was lost.
    lost: tuple[type[BaseException], ...]

    @property
    def submit(self) -> Callable[..., Any]:
        """Let a worker call a function with arguments; gives a future."""

    def close(self, at_once: bool = False) -> None:
        """Let the workers go, after what they are at or at once."""


def _process(workers: int) -> Engine:
    from sos_deap.engines.process import Processes

    return Processes(workers)


def _scoop(workers: int) -> Engine:
    from sos_deap.engines.scoop import Scoop

    return Scoop(workers)


def _ray(workers: int) -> Engine:
    from sos_deap.engines.ray import Ray

    return Ray(workers)


#: From a number of workers to an engine, by name. ``"serial"``, this process alone, needs none.
ENGINES: dict[str, Callable[[int], Engine]] = {
    "process": _process,
    "scoop": _scoop,
    "ray": _ray,
}


#: Each is a process with a model of its own.
MOST_WORKERS = 1024


def check_engine(name: str, workers: int | None, hostfile: str | None = None) -> None:
    """Raise :class:`InputError` for an engine that is unknown, or does not fit the others."""
    if name != "serial" and name not in ENGINES:
        raise unknown("engine", name, ["serial", *ENGINES])
    if name == "ray" and find_spec("ray") is None:
        raise InputError("the engine ray needs the package ray: pip install 'sos_deap[ray]'")
    if workers is not None and workers < 1:
        raise InputError(f"workers is {workers}: give at least 1")
    if workers is not None and workers > MOST_WORKERS:
        raise InputError(f"workers is {workers}: give at most {MOST_WORKERS}")
    if name == "serial" and workers not in (None, 1):
        raise InputError(
            f"workers is {workers}, and the engine serial is one process: "
            "give --engine process, scoop or ray, too"
        )
    if hostfile is not None and name != "scoop":
        raise InputError(f"the engine {name} takes no hostfile: give --engine scoop, or leave it")


def default_workers() -> int:
    """A worker for each GPU of this machine, or where there is none for each core."""
    return len(gpus()) or os.cpu_count() or 1
