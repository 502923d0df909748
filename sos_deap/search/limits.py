"""Limits of a search, which can be combined; the first one reached ends the search."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from sos_deap.errors import InputError


class Spent(NamedTuple):
    """What a search has cost and reached so far; the fields match those of :class:`Limits`.

    :param generations: number of generations after the initial population.
    :param evaluations: number of chromosomes computed, without cache hits; a chromosome scored on a
        share of the examples counts as that share.
    :param tokens: number of tokens that the chromosomes were computed on.
    :param seconds: time since the search began.
    :param threshold: the best fitness in the hall of fame.
    :param stagnation: number of generations since the best fitness changed.
    :param sparsity: sparsity of the best chromosome, from 0 to 1.
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
    """Limits of :func:`sos_deap.evolve`; a search ends when it reaches the first of them.

    The limit on seconds ends a search between two forward passes. The others are checked after each
    generation, so that the last generation may exceed them. Default of each: no limit.

    >>> Limits(evaluations=500, seconds=60).reached(Spent(evaluations=80, seconds=61))
    'seconds'

    :param generations: number of generations after the initial population.
    :param evaluations: number of chromosomes computed, without cache hits; a chromosome scored on
        half of the examples counts as half.
    :param tokens: number of tokens that chromosomes are computed on.
    :param seconds: time since the search began.
    :param threshold: fitness that the best individual must reach.
    :param stagnation: number of generations without a change of the best fitness, at least 1.
    :param sparsity: sparsity that the best chromosome must reach, from 0 to 1.
    :raises InputError: if a limit is NaN, negative (except ``threshold``), or an integer of more
        than 18 digits.
    """

    generations: int | None = None
    evaluations: float | None = None
    tokens: float | None = None
    seconds: float | None = None
    threshold: float | None = None
    stagnation: int | None = None
    sparsity: float | None = None

    def __post_init__(self) -> None:
        """Check the limits."""
        for name, limit in self._given():
            if isinstance(limit, int) and abs(limit) > 10**18:  # may be too large for a float
                raise InputError(f"{name} has over 18 digits: leave it out for no limit")
            if math.isnan(limit) or (limit < 0 and name != "threshold"):
                raise InputError(f"{name} is {limit}: give 0 or more")
            if name == "stagnation" and limit < 1:
                raise InputError(f"stagnation is {limit}: give at least 1 generation")

    def reached(self, spent: Spent) -> str | None:
        """Return the name of the first limit that is reached, or ``None``."""
        for name, limit in self._given():
            if getattr(spent, name) >= limit:
                return name
        return None

    def share(self, spent: Spent) -> float:
        """Return the progress towards the nearest limit on cost, from 0 to 1.

        Limits on fitness, stagnation and sparsity do not count.
        """
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
