"""Selections that replace DEAP's of the same name: for fitness of any sign, with defaults."""

from __future__ import annotations

import math
import random
from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate
from operator import attrgetter
from typing import Any

from deap import tools


def selRoulette(individuals: Sequence[Any], k: int, fit_attr: str = "fitness") -> list[Any]:
    """Roulette-wheel selection (Holland, 1975) for fitness of any sign.

    DEAP's ``selRoulette`` sums negative fitness unchanged: it then selects only the best, and often
    fewer than ``k``. Here the shares are proportional to the fitness if it is positive, and to
    ``1 / cost`` for costs (negative fitness, as in Equation 1 of the paper). If the population has
    both signs, only individuals of positive fitness are selected.

    :param individuals: evaluated individuals to select from; their first fitness value counts.
    :param k: number of individuals to select, with replacement.
    :param fit_attr: name of the attribute that holds the fitness.
    :returns: references to the selected individuals.
    """
    return random.choices(individuals, _shares(individuals, fit_attr), k=k)


def selStochasticUniversalSampling(
    individuals: Sequence[Any], k: int, fit_attr: str = "fitness"
) -> list[Any]:
    """Stochastic universal sampling (Baker, 1987) for fitness of any sign.

    The shares are those of :func:`selRoulette`, sampled at ``k`` equal distances: the number of
    times that an individual is selected is its share of ``k``, rounded up or down. For negative
    fitness DEAP's ``selStochasticUniversalSampling`` selects only the best, or fails.

    :param individuals: evaluated individuals to select from; their first fitness value counts.
    :param k: number of individuals to select.
    :param fit_attr: name of the attribute that holds the fitness.
    :returns: references to the selected individuals.
    """
    ends = list(accumulate(_shares(individuals, fit_attr)))
    step = ends[-1] / k
    start = random.random() * step
    last = len(ends) - 1
    return [individuals[bisect(ends, start + i * step, hi=last)] for i in range(k)]


def selNSGA3(
    individuals: Sequence[Any], k: int, ref_points: Any = None, nd: str = "log"
) -> list[Any]:
    """NSGA-III's selection (Deb and Jain, 2014): DEAP's, with default reference points.

    :param individuals: evaluated individuals to select from.
    :param k: number of individuals to select.
    :param ref_points: reference points, of shape (points, fitness values). Default: DEAP's
        ``uniform_reference_points``, the largest such set of at most ``k`` points.
    :param nd: how to sort by dominance: ``"standard"`` or ``"log"``.
    :returns: references to the selected individuals.
    :raises ValueError: for a fitness of one value.
    """
    values = len(individuals[0].fitness.wvalues)
    if values == 1:
        raise ValueError("NSGA-III is for fitness of several values: use the objective pareto")
    if ref_points is None:
        fitting = (d for d in range(1, k) if math.comb(values + d - 1, d) <= k)
        divisions = max(fitting, default=1)
        ref_points = tools.uniform_reference_points(values, divisions)
    chosen: list[Any] = tools.selNSGA3(individuals, k, ref_points, nd)
    return chosen


def _shares(individuals: Sequence[Any], fit_attr: str) -> list[float]:
    """Return the individuals' shares of the wheel, relative to the largest."""
    values = [fitness.wvalues[0] for fitness in map(attrgetter(fit_attr), individuals)]
    most = max(values)
    if most > 0:  # no ratio compares a gain and a cost
        return [max(0.0, value) / most for value in values]
    # 1 / cost, relative to the lowest cost, which may be 0.
    return [1.0 if value == most else most / value for value in values]
