"""Keep the random numbers that a search draws independent of those that evaluations draw."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import torch


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Restore the random states of Python, numpy and torch on exit."""
    states = random.getstate(), numpy.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(states[0])
            numpy.random.set_state(states[1])


@contextmanager
def seeded(key: bytes) -> Iterator[None]:
    """Seed the random generators of Python, numpy and torch, and restore their states on exit.

    An evaluation that draws random numbers then has the same result in every process and after a
    resume.

    :param key: the seed as bytes, such as a chromosome.
    """
    with random_state_kept():
        seed = zlib.crc32(key)
        random.seed(seed)
        numpy.random.seed(seed)
        torch.manual_seed(seed)
        yield
