"""Keep the random numbers of a search apart from those which its evaluations draw."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import torch


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Leave the generators of Python, numpy and torch as they were, whatever is drawn inside."""
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
    """Draw inside from generators that depend on a key alone; then put back the states before.

    So an evaluation which draws random numbers gives the same in any process, and after a resume.

    :param key: a chromosome, say.
    """
    with random_state_kept():
        seed = zlib.crc32(key)
        random.seed(seed)
        numpy.random.seed(seed)
        torch.manual_seed(seed)
        yield
