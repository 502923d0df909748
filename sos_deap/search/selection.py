"""Selections that DEAP has too, for fitness of any sign and without more to set."""

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

    DEAP's, of the same name, sums up negative fitness as it is: it then chooses none but the best,
    and often fewer than ``k``. Here the shares are proportional to the fitness for gains, and to
    ``1 / cost`` for costs (negative fitness, as in Equation 1 of the paper). Where gains stand
    beside costs, only gains are chosen.

    :param individuals: what to choose from, evaluated; only their first fitness value counts.
    :param k: how many to choose, with replacement.
    :param fit_attr: the attribute that holds the fitness.
    :returns: references to the chosen.
    """
    return random.choices(individuals, _shares(individuals, fit_attr), k=k)


def selStochasticUniversalSampling(
    individuals: Sequence[Any], k: int, fit_attr: str = "fitness"
) -> list[Any]:
    """Stochastic universal sampling (Baker, 1987) for fitness of any sign.

    The shares are those of :func:`selRoulette`, read off at ``k`` equal distances: each individual
    is chosen as often as its share of ``k`` says, rounded up or down. For negative fitness DEAP's
    chooses none but the best, or fails.

    :param individuals: what to choose from, evaluated; only their first fitness value counts.
    :param k: how many to choose.
    :param fit_attr: the attribute that holds the fitness.
    :returns: references to the chosen.
    """
    ends = list(accumulate(_shares(individuals, fit_attr)))
    step = ends[-1] / k
    start = random.random() * step
    last = len(ends) - 1
    return [individuals[bisect(ends, start + i * step, hi=last)] for i in range(k)]


def selNSGA3(
    individuals: Sequence[Any], k: int, ref_points: Any = None, nd: str = "log"
) -> list[Any]:
    """NSGA-III's selection (Deb and Jain, 2014), DEAP's with reference points of its own.

    :param individuals: what to choose from, evaluated.
    :param k: how many to choose.
    :param ref_points: (points, fitness values); ``None`` for DEAP's ``uniform_reference_points``,
        as many of them as there are individuals to choose, or just fewer.
    :param nd: how to sort by dominance: ``"standard"`` or ``"log"``.
    :returns: references to the chosen.
    :raises ValueError: for a fitness of one value.
    """
    values = len(individuals[0].fitness.wvalues)
    if values == 1:
        raise ValueError("NSGA-III is for fitness of several values: use the objective pareto")
    if ref_points is None:
        fitting = (d for d in range(1, k) if math.comb(values + d - 1, d) <= k)  # so many points
        divisions = max(fitting, default=1)
        ref_points = tools.uniform_reference_points(values, divisions)
    chosen: list[Any] = tools.selNSGA3(individuals, k, ref_points, nd)
    return chosen


def _shares(individuals: Sequence[Any], fit_attr: str) -> list[float]:
    """Shares of the wheel, the greatest of them 1."""
    values = [fitness.wvalues[0] for fitness in map(attrgetter(fit_attr), individuals)]
    most = max(values)
    if most > 0:  # a gain beside a cost: no ratio compares them
        return [max(0.0, value) / most for value in values]
    # 1 / cost, in units of the least cost, which may be 0.
    return [1.0 if value == most else most / value for value in values]
