"""How far long passes over text are, for whoever displays it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

Part = TypeVar("Part")


@dataclass
class Reading:
    """The passes over texts inside a context of :func:`watched`.

    :param clock: returns the time in seconds.
    """

    clock: Callable[[], float] = time.monotonic
    #: Tokens of the text under way that are read, and all of its tokens.
    done: int = 0
    total: int = 0
    #: Seconds that the finished parts of it took.
    seconds: float = 0.0
    #: Tokens per second of the fastest text with more than one part; 0 before the first.
    rate: float = 0.0

    @property
    def left(self) -> float | None:
        """The seconds that the rest of the text takes, about; ``None`` if this is unknown."""
        if not self.done or self.done == self.total:
            return None
        return self.seconds / self.done * (self.total - self.done)

    def parts(self, parts: Sequence[Part], tokens: Sequence[int]) -> Iterator[Part]:
        """Yield the parts of a text, and count the tokens of those that were read."""
        started = self.clock()
        self.done, self.total, self.seconds = 0, sum(tokens), 0.0
        for part, count in zip(parts, tokens, strict=True):
            yield part
            self.done += count
            self.seconds = self.clock() - started
        if len(parts) > 1 and self.seconds > 0:
            self.rate = max(self.rate, self.total / self.seconds)


_reading: ContextVar[Reading | None] = ContextVar("reading", default=None)


@contextmanager
def watched(reading: Reading) -> Iterator[None]:
    """Record the passes over texts inside the context."""
    token = _reading.set(reading)
    try:
        yield
    finally:
        _reading.reset(token)


def read_in_turn(parts: Sequence[Part], tokens: Sequence[int]) -> Iterator[Part]:
    """Iterate over the parts of a text that a model reads, and record how far it is.

    :param parts: the parts, such as batches of examples.
    :param tokens: number of tokens of each part.
    """
    reading = _reading.get()
    yield from parts if reading is None else reading.parts(parts, tokens)
