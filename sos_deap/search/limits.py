"""When a search ends: rules that compose, of which the first to hold ends it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from sos_deap.errors import InputError


class Spent(NamedTuple):
    """What a search has cost and reached so far.

    :param generations: after the initial population's.
    :param evaluations: chromosomes computed, each counted once; on some of the examples, as the
        share that these are of all.
    :param tokens: that they were computed on.
    :param seconds: since it began.
    :param threshold: the best fitness in the population.
    :param stagnation: generations in which the best fitness stayed the same.
    :param sparsity: of the best chromosome.
    """

    generations: int = 0
    evaluations: float = 0
    tokens: float = 0
    seconds: float = 0
    threshold: float = -math.inf
    stagnation: int = 0
    sparsity: float = 0


@dataclass(frozen=True)
class Limits:
    """A search ends when what it :class:`Spent` reaches one of these; ``None`` is no limit.

    Seconds end a search between two forward passes. Otherwise a generation is completed, so that
    the last one may go over.

    :raises InputError: for a limit that is negative or not a number.
    """

    generations: int | None = None
    evaluations: float | None = None
    tokens: float | None = None
    seconds: float | None = None
    threshold: float | None = None
    stagnation: int | None = None
    sparsity: float | None = None

    def __post_init__(self) -> None:
        """Check them."""
        for name, limit in self._given():
            if math.isnan(limit) or (limit < 0 and name != "threshold"):
                raise InputError(f"{name} is {limit}: give 0 or more")
            if name == "stagnation" and limit < 1:
                raise InputError(f"stagnation is {limit}: give at least 1 generation")

    def reached(self, spent: Spent) -> str | None:
        """The name of the first limit that is reached, if any."""
        for name, limit in self._given():
            if getattr(spent, name) >= limit:
                return name
        return None

    def share(self, spent: Spent) -> float:
        """How much of what is limited has been spent, from 0 to 1."""
        counted = ("generations", "evaluations", "tokens", "seconds")
        shares = [
            getattr(spent, name) / limit
            for name, limit in self._given()
            if name in counted and limit
        ]
        return min(1.0, max(shares, default=0.0))

    def _given(self) -> list[tuple[str, Any]]:
        pairs = ((field.name, getattr(self, field.name)) for field in fields(self))
        return [(name, limit) for name, limit in pairs if limit is not None]
