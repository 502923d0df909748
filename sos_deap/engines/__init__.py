"""Evaluation in worker processes, on several GPUs or hosts.

A recipe, chromosomes and sums are sent between processes, never a model: each worker loads its own,
once. Search, cache, journal and store stay in one process. This package is light to import;
:func:`sos_deap.open_engine` is in ``sos_deap.engines.attach``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Protocol

from sos_deap.engines.setup import gpus
from sos_deap.errors import InputError, unknown


class Engine(Protocol):
    """A pool of workers that run functions."""

    #: The number of workers.
    workers: int
    #: The exceptions that a future raises if its worker was lost.
    lost: tuple[type[BaseException], ...]

    @property
    def submit(self) -> Callable[..., Any]:
        """A method that submits a function with its arguments to a worker and returns a future."""

    def close(self, at_once: bool = False) -> None:
        """Release the workers, after their current work or at once."""


def _process(workers: int) -> Engine:
    from sos_deap.engines.process import Processes

    return Processes(workers)


def _scoop(workers: int) -> Engine:
    from sos_deap.engines.scoop import Scoop

    return Scoop(workers)


def _ray(workers: int) -> Engine:
    from sos_deap.engines.ray import Ray

    return Ray(workers)


#: Engines by name, made from a number of workers. ``"serial"``, this process alone, is not one.
ENGINES: dict[str, Callable[[int], Engine]] = {
    "process": _process,
    "scoop": _scoop,
    "ray": _ray,
}


#: Most workers, each of which is a process with its own model.
MOST_WORKERS = 1024


def check_engine(name: str, workers: int | None, hostfile: str | None = None) -> None:
    """Raise :class:`InputError` for an unknown engine or package, or parameters that do not fit it.

    :param name: ``"serial"`` or a key of :data:`sos_deap.engines.ENGINES`.
    :param workers: the number of workers, if given.
    :param hostfile: the file of hosts, if given.
    """
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
            "give --engine process, scoop or ray as well"
        )
    if hostfile is not None and name != "scoop":
        raise InputError(
            f"the engine {name} takes no hostfile: give --engine scoop, or leave --hostfile out"
        )


def default_workers() -> int:
    """The number of GPUs of this machine, or of cores if it has no GPU."""
    return len(gpus()) or os.cpu_count() or 1
