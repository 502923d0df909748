"""Estimate what a run costs before its search."""

from __future__ import annotations

import math

from sos_deap.evaluation.evaluator import Evaluator
from sos_deap.report.formats import duration
from sos_deap.search.limits import Limits

#: Runs that are shorter get no estimate, in seconds.
_SHORT = 60.0


def estimate(
    evaluator: Evaluator, limits: Limits, population: int, rate: float, after: float
) -> str | None:
    """Return a line on the tokens that a run reads, and the time that this takes at most.

    Shared layers, cached sub-models and other limits make the search shorter.

    :param evaluator: the evaluator of the search.
    :param limits: limits of the search.
    :param population: number of individuals of a generation.
    :param rate: tokens per second of the dense model; 0 if this is unknown.
    :param after: number of tokens that are read after the search.
    :returns: the line; ``None`` for a short run, without limits, and if the rate is unknown.
    """
    each, most = evaluator.task.tokens, math.inf
    if limits.tokens is not None:
        most = limits.tokens
    if limits.evaluations is not None:
        most = min(most, limits.evaluations * each)
    if limits.generations is not None:
        most = min(most, (limits.generations + 1) * population * each)
    if not rate or not math.isfinite(most):
        return None
    search, rest = most / rate, after / rate
    if limits.seconds is not None:
        search = min(search, limits.seconds)
    if search + rest < _SHORT:
        return None
    limit = "" if limits.seconds is not None else "; --max_seconds limits the search"
    return (
        f"at most {most:,.0f} tokens in the search ({duration(search)}) and {after:,.0f} after it "
        f"({duration(rest)}){limit}"
    )
