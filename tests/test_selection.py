"""The frequencies of selections are those of their definitions."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy
import pytest
from deap import tools

from sos_deap import Chromosome, selNSGA3, selRoulette, selStochasticUniversalSampling
from sos_deap.search.chromosome import WORST_FITNESS, ParetoFitness

ROUNDS, CHOSEN = 4000, 4
WHEELS = [selRoulette, selStochasticUniversalSampling]


def individuals_of(*fitness: float) -> list[Chromosome]:
    made = [Chromosome([1, 0]) for _ in fitness]
    for individual, value in zip(made, fitness, strict=True):
        individual.fitness.values = (value,)
    return made


@pytest.mark.parametrize("select", WHEELS)
@pytest.mark.parametrize(
    ("fitness", "shares"),
    [
        # Costs: 1/10, 1/20, 1/40, 1/40 in units of their sum, 1/5.
        ((-10, -20, -40, -40), (0.5, 0.25, 0.125, 0.125)),
        ((-40, -10, -20, -40), (0.125, 0.5, 0.25, 0.125)),
        ((0.1, 0.2, 0.3, 0.4), (0.1, 0.2, 0.3, 0.4)),
        ((0, 1, 1, 0), (0, 0.5, 0.5, 0)),
        ((0, 0, 0), (1 / 3, 1 / 3, 1 / 3)),
        ((-2, 0, -3), (0, 1, 0)),
        ((-2, 1, 3), (0, 0.25, 0.75)),
        ((-10, WORST_FITNESS, -10), (0.5, 0, 0.5)),
        ((WORST_FITNESS, WORST_FITNESS), (0.5, 0.5)),
    ],
)
def test_shares_by_hand(select: Any, fitness: Any, shares: Any) -> None:
    given = individuals_of(*fitness)
    seen: Counter[int] = Counter()
    for _ in range(ROUNDS):
        chosen = select(given, CHOSEN)
        assert len(chosen) == CHOSEN
        counts = Counter(map(id, chosen))
        seen += counts
        if select is selStochasticUniversalSampling:
            for individual, share in zip(given, shares, strict=True):
                assert abs(counts[id(individual)] - share * CHOSEN) < 1
    for individual, share in zip(given, shares, strict=True):
        assert seen[id(individual)] / (ROUNDS * CHOSEN) == pytest.approx(share, abs=0.02)


def test_deap_s_own_misbehave_for_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason for this package's versions; if DEAP fixes its own, they can be removed."""
    given = individuals_of(-10, -20, -40, -40)
    random.seed(0)
    chosen = [tools.selRoulette(given, CHOSEN) for _ in range(200)]
    assert {id(one) for few in chosen for one in few} == {id(given[0])}
    assert min(map(len, chosen)) < CHOSEN
    monkeypatch.setattr(random, "uniform", lambda low, high: 0.1 * high)
    with pytest.raises(IndexError):
        tools.selStochasticUniversalSampling(given, CHOSEN)


@pytest.mark.parametrize(("chosen", "points"), [(2, 2), (5, 5), (20, 20)])
def test_nsga3_has_as_many_reference_points_as_survivors(chosen: int, points: int) -> None:
    rng, made = random.Random(1), []
    for _ in range(40):
        individual = Chromosome([1, 0], fitness=ParetoFitness)
        individual.fitness.values = (-rng.uniform(10, 20), rng.random())
        made.append(individual)
    numpy.random.seed(3)
    ours = selNSGA3(made, chosen)
    numpy.random.seed(3)
    stock = tools.selNSGA3(made, chosen, tools.uniform_reference_points(2, points - 1))
    assert list(map(id, ours)) == list(map(id, stock)) and len(ours) == chosen
