"""From a metric and a sparsity to a fitness: pure functions, by name.

An objective takes a *score*, which is the metric if a greater one is better and its negative if not
(a perplexity of 12 is a score of -12), and the sparsity, the share of heads removed. It returns
fitness values, of which greater ones are better.
"""

from __future__ import annotations

from collections.abc import Callable

from sos_deap.errors import unknown

Objective = Callable[[float, float], tuple[float, ...]]


def paper(score: float, sparsity: float) -> tuple[float]:
    """``-perplexity * (1 - s)`` (Equation 1), and for scores that grow, ``score / (1 - s)``.

    The paper says that for metrics such as accuracy "the equation is not negated"; taken literally
    that punishes sparsity (see :func:`paper_literal`), so there the density divides.
    """
    density = max(1.0 - sparsity, 1e-9)  # finite for a model without heads too
    return (score * density if score <= 0 else score / density,)


def paper_literal(score: float, sparsity: float) -> tuple[float]:
    """Equation 1 to the letter: ``score * (1 - s)``, also where that punishes sparsity."""
    return (score * (1.0 - sparsity),)


def metric(score: float, sparsity: float) -> tuple[float]:
    """The score alone, for searches at a fixed sparsity."""
    return (score,)


#: Objectives by the name the user gives.
OBJECTIVES: dict[str, Objective] = {
    "metric": metric,
    "paper": paper,
    "paper-literal": paper_literal,
}


def checked_objective(name: str) -> Objective:
    """The objective of that name, or an :class:`InputError` with the nearest one."""
    if name not in OBJECTIVES:
        raise unknown("objective", name, OBJECTIVES)
    return OBJECTIVES[name]
