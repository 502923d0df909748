"""PBIL and UMDA: their draws against enumeration, their updates by hand."""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import combinations
from typing import Any

import pytest

from sos_deap import Chromosome, InputError, evolve
from sos_deap.search.limits import Limits
from sos_deap.search.strategies.distribution import PBIL, UMDA, ConditionalBernoulli
from tests.spaces import heads
from tests.test_strategies import BEST, toolbox_for

SPACE = heads((2, 2), 2 / 4)


def scored(genes: list[int], fitness: float) -> Any:
    individual = Chromosome(genes)
    individual.fitness.values = (fitness,)
    return individual


def test_draws_are_those_of_independent_genes_of_the_right_number() -> None:
    """By enumeration of all draws of 2 of 4 genes; scaled odds would change nothing."""
    probabilities, count, draws = [0.1, 0.5, 0.8, 0.3], 2, 40_000
    weights = {
        drawn: math.prod(p if i in drawn else 1 - p for i, p in enumerate(probabilities))
        for drawn in combinations(range(4), count)
    }
    draw = ConditionalBernoulli(probabilities, count)
    seen = Counter(tuple(draw()) for _ in range(draws))
    for drawn, weight in weights.items():
        expected = weight / sum(weights.values())
        assert seen[drawn] / draws == pytest.approx(expected, abs=4 * math.sqrt(0.25 / draws))
    assert sum(seen.values()) == draws and set(seen) == set(weights)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_sure_genes_are_drawn_and_impossible_ones_are_not(count: int) -> None:
    probabilities = [1.0] * count + [0.0] * (5 - count)
    assert ConditionalBernoulli(probabilities, count)() == list(range(count))


def test_a_long_chromosome_is_drawn_exactly() -> None:
    """1,024 heads, as LLaMA-2 7B has."""
    rng = random.Random(3)
    probabilities = [rng.choice([0.001, 0.3, 0.999]) for _ in range(1024)]
    removed = round(sum(probabilities))
    draw = ConditionalBernoulli(probabilities, removed)
    for _ in range(5):
        drawn = draw()
        assert len(set(drawn)) == removed
        assert sum(probabilities[i] for i in drawn) > 0.8 * removed


def test_pbil_takes_a_step_towards_the_best() -> None:
    strategy = PBIL(SPACE, [Chromosome([1, 1, 1, 1])] * 3, math.inf, margin=0)
    assert all(individual.count(0) == 2 for individual in strategy.generate())
    individuals = [scored([0, 1, 0, 1], -1), scored([0, 0, 1, 1], -2), scored([1, 1, 0, 0], -3)]
    strategy.update(individuals)
    assert strategy.removal == pytest.approx([0.55, 0.45, 0.55, 0.45])  # from 0.5, a tenth
    strategy.update([scored([1, 1, 0, 0], -5)])
    assert strategy.removal == pytest.approx([0.495, 0.405, 0.595, 0.505])
    assert strategy.incumbent is individuals[0] and not strategy.done
    assert len(strategy.generate()) == 3


def test_umda_takes_the_shares_of_the_better_ones() -> None:
    start = [Chromosome([1, 1, 1, 1])] * 2
    strategy = UMDA(SPACE, start, math.inf, selected=0.5, margin=0.1)
    individuals = [
        scored([0, 1, 0, 1], -1),
        scored([1, 0, 1, 0], -9),
        scored([0, 0, 1, 1], -2),
        scored([1, 0, 1, 0], -8),
    ]
    strategy.update(individuals)
    assert strategy.removal == pytest.approx([0.9, 0.5, 0.5, 0.1])  # 1 and 0 but for the margin
    assert len(strategy.generate()) == 10
    sure = UMDA(SPACE, start, math.inf, selected=0.1, margin=0)
    sure.update(individuals)
    assert sure.removal == [1, 0, 1, 0] and sure.done


@pytest.mark.parametrize("name", ["pbil", "umda"])
def test_they_find_the_optimum_of_a_separable_landscape(name: str) -> None:
    found = evolve(toolbox_for(), name, limits=Limits(evaluations=1500)).halloffame[0]
    assert found.fitness.values[0] == pytest.approx(BEST)


@pytest.mark.parametrize("kind", [PBIL, UMDA])
@pytest.mark.parametrize("genes", [2, 3, 4])
def test_few_genes_are_learned(kind: Any, genes: int) -> None:
    strategy = kind(heads((genes,), 1 / genes), [Chromosome([1] * genes)] * 2, math.inf)
    strategy.update([scored([0] + [1] * (genes - 1), 1)])
    high = 1 - 1 / max(genes, 3)
    rate = {PBIL: 0.1, UMDA: 1.0}[kind]
    assert strategy.removal[0] == pytest.approx(min(high, 1 / genes + rate * (1 - 1 / genes)))
    assert strategy.removal[0] > strategy.removal[1]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"children": 0}, "children is 0: give at least 1"),
        ({"learning_rate": 0}, "learning_rate is 0: give a share above 0"),
        ({"selected": 1.5}, "selected is 1.5"),
        ({"margin": 0.5}, "margin is 0.5"),
        ({"learning_rate": "x"}, "learning_rate of the algorithm pbil is 'x': expected float"),
    ],
)
def test_bad_parameters(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        evolve(toolbox_for(), "pbil", **parameters)
