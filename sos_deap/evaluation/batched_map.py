"""A ``map`` for DEAP which evaluates a generation at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from sos_deap.evaluation.evaluator import Evaluator


def batched_map(function: Callable[..., Any], individuals: Iterable[Sequence[int]]) -> list[Any]:
    """A ``map`` for DEAP's toolbox that passes all individuals to an evaluator at once.

    :param function: an :class:`Evaluator`, or ``toolbox.evaluate`` registered from one; any other
        function is called once per individual.
    :param individuals: the individuals.
    :returns: one result per individual, in order.
    """
    evaluator = function.func if isinstance(function, partial) else function
    if not isinstance(evaluator, Evaluator):
        return list(map(function, individuals))
    keywords = function.keywords if isinstance(function, partial) else {}
    return list(evaluator.many(individuals, **keywords))
