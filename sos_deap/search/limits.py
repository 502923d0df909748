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
    """The limits of :func:`sos_deap.evolve`: a search ends when it reaches the first of them.

    Seconds end a search between two forward passes. Otherwise a generation is completed, so that
    the last one may exceed a limit. ``None`` is no limit.

    >>> Limits(evaluations=500, seconds=60).reached(Spent(evaluations=80, seconds=61))
    'seconds'

    :param generations: after the initial population's.
    :param evaluations: chromosomes computed, each counted once; one that is scored on half of the
        examples counts as half.
    :param tokens: that chromosomes were computed on.
    :param seconds: since the search began.
    :param threshold: fitness of the best individual in the population, at least.
    :param stagnation: generations in which the best fitness stayed the same; at least 1.
    :param sparsity: of the best chromosome, at least.
    :raises InputError: for a limit that is negative, not a number, or of more than 18 digits.
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
            if isinstance(limit, int) and abs(limit) > 10**18:  # too large for a float, perhaps
                raise InputError(f"{name} has over 18 digits: leave it out for no limit")
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
