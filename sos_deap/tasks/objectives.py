"""From a metric and a sparsity to a fitness: pure functions, by name.

An objective takes a *score*, which is the metric if a greater one is better and its negative if not
(a perplexity of 12 is a score of -12), and the sparsity, the share removed. It returns fitness
values, of which greater ones are better.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from sos_deap.errors import InputError, unknown

Objective = Callable[[float, float], tuple[float, ...]]


def paper(score: float, sparsity: float) -> tuple[float]:
    """``-perplexity * (1 - s)`` (Equation 1), and for scores that grow, ``score / (1 - s)``.

    The paper says that for metrics such as accuracy "the equation is not negated"; taken literally
    that punishes sparsity (see :func:`paper_literal`), so there the density divides.
    """
    density = _density(sparsity)
    return (score * density if score <= 0 else score / density,)


def paper_literal(score: float, sparsity: float) -> tuple[float]:
    """Equation 1 to the letter: ``score * (1 - s)``, also where that punishes sparsity."""
    return (score * (1.0 - sparsity),)


def metric(score: float, sparsity: float) -> tuple[float]:
    """The score alone, for searches at a fixed sparsity."""
    return (score,)


def kl(score: float, sparsity: float) -> tuple[float]:
    """``-exp(KL) * (1 - s)``: Equation 1 for a divergence, which is 0 where nothing is lost.

    A divergence of D nats means that on the dense model's own text the perplexity is ``exp(D)``
    times the dense one (cross-entropy = entropy + KL), so this is Equation 1 over that factor.
    Equation 1 over the divergence itself would have its maximum, 0, at the dense model.
    """
    return (-math.exp(min(-score, 700.0)) * _density(sparsity),)


def tradeoff(score: float, sparsity: float, weight: float = 1.0) -> tuple[float]:
    """``score + weight * s``: a weight of w pays w units of the metric for removing everything."""
    return (score + weight * sparsity,)


def pareto(score: float, sparsity: float) -> tuple[float, float]:
    """``(score, s)``, two values to maximise: for searches such as NSGA-II (Deb et al., 2002)."""
    return score, sparsity


def _density(sparsity: float) -> float:
    return max(1.0 - sparsity, 1e-9)  # finite for a model without heads too


#: Objectives by the name the user gives.
OBJECTIVES: dict[str, Objective] = {
    "kl": kl,
    "metric": metric,
    "paper": paper,
    "paper-literal": paper_literal,
    "pareto": pareto,
    "tradeoff": tradeoff,
}


def checked_objective(name: str, tradeoff_weight: float | None = None) -> Objective:
    """The objective of that name.

    :param name: a key of :data:`OBJECTIVES`.
    :param tradeoff_weight: for ``"tradeoff"``; ``None`` for 1.
    :raises InputError: for an unknown name, or a weight that is none or for another objective.
    """
    if name not in OBJECTIVES:
        raise unknown("objective", name, OBJECTIVES)
    if tradeoff_weight is None:
        return OBJECTIVES[name]
    if name != "tradeoff":
        raise InputError(f"tradeoff_weight is for the objective tradeoff, and this one is {name}")
    if not 0 <= tradeoff_weight < math.inf:
        raise InputError(f"tradeoff_weight is {tradeoff_weight}: give 0 or more")
    return partial(tradeoff, weight=tradeoff_weight)
