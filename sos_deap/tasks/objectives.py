"""Objectives: pure functions from a metric and a sparsity to fitness values.

An objective takes a *score* and the sparsity (share removed, from 0 to 1), and returns fitness
values, of which higher ones are better. The score is the metric if higher is better, else its
negative: a perplexity of 12 is a score of -12.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from sos_deap.errors import InputError, unknown

Objective = Callable[[float, float], tuple[float, ...]]


def paper(score: float, sparsity: float) -> tuple[float]:
    """Return ``-perplexity * (1 - s)`` (Equation 1), or ``score / (1 - s)`` for positive scores.

    For metrics such as accuracy, the paper states that "the equation is not negated". To the letter
    (see :func:`paper_literal`) that penalises sparsity, so positive scores are divided by the
    density ``1 - s``.
    """
    density = _density(sparsity)
    return (score * density if score <= 0 else score / density,)


def paper_literal(score: float, sparsity: float) -> tuple[float]:
    """Return ``score * (1 - s)``, Equation 1 to the letter; penalises sparsity if positive."""
    return (score * (1.0 - sparsity),)


def metric(score: float, sparsity: float) -> tuple[float]:
    """Return the score, for searches at a fixed sparsity."""
    return (score,)


def kl(score: float, sparsity: float) -> tuple[float]:
    """Return ``-exp(KL) * (1 - s)``: Equation 1 for a divergence.

    A divergence of D nats means that on the dense model's own text the perplexity is ``exp(D)``
    times the dense one (cross-entropy = entropy + KL), so this is Equation 1 over that factor.
    Equation 1 over the divergence itself would have its maximum, 0, at the dense model.
    """
    return (-math.exp(min(-score, 700.0)) * _density(sparsity),)


def tradeoff(score: float, sparsity: float, weight: float = 1.0) -> tuple[float]:
    """Return ``score + weight * s``: removing all is worth ``weight`` units of the metric."""
    return (score + weight * sparsity,)


def pareto(score: float, sparsity: float) -> tuple[float, float]:
    """Return ``(score, s)``, both maximised, for searches such as NSGA-II (Deb et al., 2002)."""
    return score, sparsity


def _density(sparsity: float) -> float:
    return max(1.0 - sparsity, 1e-9)  # above 0, so that a quotient is finite at sparsity 1


#: Objectives by name, the values of ``--objective``.
OBJECTIVES: dict[str, Objective] = {
    "kl": kl,
    "metric": metric,
    "paper": paper,
    "paper-literal": paper_literal,
    "pareto": pareto,
    "tradeoff": tradeoff,
}


def checked_objective(name: str, tradeoff_weight: float | None = None) -> Objective:
    """Return an objective by name.

    :param name: a key of :data:`OBJECTIVES`.
    :param tradeoff_weight: weight of ``"tradeoff"``, 0 or more; default: 1.
    :raises InputError: for an unknown name, an invalid weight, or a weight for another objective.
    """
    if name not in OBJECTIVES:
        raise unknown("objective", name, OBJECTIVES)
    if tradeoff_weight is None:
        return OBJECTIVES[name]
    if name != "tradeoff":
        raise InputError(
            f"tradeoff_weight is only for the objective tradeoff, and this one is {name}: "
            "leave it out"
        )
    if not 0 <= tradeoff_weight < math.inf:
        raise InputError(f"tradeoff_weight is {tradeoff_weight}: give 0 or more")
    return partial(tradeoff, weight=tradeoff_weight)


def check_metric(objective: Objective, metric_name: str, greater_is_better: bool) -> None:
    """Check that an objective is meant for a metric.

    :raises InputError: for the objective ``kl`` and a metric that is no divergence.
    """
    if objective is kl and (greater_is_better or metric_name.endswith("perplexity")):
        raise InputError(
            f"the objective kl is for a divergence, and the metric is {metric_name}: use another "
            "objective, such as paper, or the task or metric kl"
        )
