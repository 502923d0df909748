from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from deap import base, tools

from sos_deap import Evaluator, InputError, cxFitnessWeighted, register, statistics
from sos_deap.search.operators import cxFitnessWeightedPaper
from tests.conftest import GENES


def test_everything_a_stock_algorithm_needs_is_registered(evaluator: Evaluator) -> None:
    toolbox = base.Toolbox()
    register(toolbox, evaluator, initial_sparsity=0.25, max_sparsity=0.5, mutation_rate=0.3)
    population = toolbox.population(n=20)
    assert all(len(i) == GENES and i.count(0) == 3 for i in population)
    assert len({tuple(i) for i in population}) > 1
    for individual, values in zip(
        population, toolbox.map(toolbox.evaluate, population), strict=True
    ):
        individual.fitness.values = values
    # A tournament of three prefers the fitter.
    chosen = toolbox.select(population, 200)
    mean = sum(i.fitness.values[0] for i in population) / 20
    assert sum(i.fitness.values[0] for i in chosen) / 200 > mean
    for _ in range(50):
        one, two = map(toolbox.clone, population[:2])
        toolbox.mate(one, two)
        for child in (one, two):
            assert child.count(0) <= 6
            assert toolbox.mutate(child)[0] is child
            assert child.count(0) <= 6


@pytest.mark.parametrize(
    ("name", "operator"), [("sign-aware", cxFitnessWeighted), ("paper", cxFitnessWeightedPaper)]
)
def test_crossovers_by_name(evaluator: Evaluator, name: str, operator: Any) -> None:
    toolbox = base.Toolbox()
    register(toolbox, evaluator, crossover=name, repair=False)
    assert toolbox.mate.func is operator


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crossover": "papr"}, "unknown crossover 'papr': did you mean 'paper'"),
        ({"max_sparsity": 1.0}, "max_sparsity is 1.0"),
        ({"initial_sparsity": 0.4}, "initial_sparsity 0.4 is not below max_sparsity 0.31"),
        ({"mutation_rate": -0.1}, "mutation_rate is -0.1"),
        ({"tournament_size": 0}, "tournament_size is 0"),
    ],
)
def test_bad_settings(evaluator: Evaluator, arguments: dict[str, Any], message: str) -> None:
    toolbox = base.Toolbox()
    with pytest.raises(InputError, match=message):
        register(toolbox, evaluator, **arguments)
    assert not hasattr(toolbox, "evaluate")


def test_statistics_by_hand(evaluator: Evaluator) -> None:
    toolbox = base.Toolbox()
    register(toolbox, evaluator)
    individuals = [toolbox.individual() for _ in range(2)]
    individuals[0][:] = [1] * 9 + [0] * 3
    individuals[1][:] = [1] * 6 + [0] * 6
    for individual, value in zip(individuals, (-4.0, -2.0), strict=True):
        individual.fitness.values = (value,)
    record = statistics().compile(individuals)
    assert record == {
        "fitness": {"avg": -3.0, "min": -4.0, "max": -2.0},
        "sparsity": {"avg": 0.375, "min": 0.25, "max": 0.5},
        "diversity": {"hamming": 0.25},  # 3 of 12 genes
    }
    assert isinstance(statistics(), tools.MultiStatistics)


def test_uniform_individuals_stay_uniform(evaluator: Evaluator) -> None:
    toolbox = base.Toolbox()
    register(
        toolbox,
        evaluator,
        initial_sparsity=0.3,
        max_sparsity=0.5,
        mutation_rate=0.3,
        uniform={"heads": [1, 2, 3, 4]},
    )
    population = [*toolbox.population(n=20), toolbox.individual()]
    for individual in population:
        individual.fitness.values = toolbox.evaluate(individual)
    seen = set()
    for one, two in pairwise(population):
        children = toolbox.mate(toolbox.clone(one), toolbox.clone(two))
        for child in (one, *children, *toolbox.mutate(toolbox.clone(two))):
            kept = {sum(child[start : start + 4]) for start in range(0, GENES, 4)}
            assert len(kept) == 1 and min(kept) >= 2
            seen |= kept
    assert seen == {2, 3, 4}


def test_uniform_needs_a_number_within_the_bound(evaluator: Evaluator) -> None:
    with pytest.raises(
        InputError, match="all its genes: with a larger max_sparsity it can keep 1, 2 of 4 heads"
    ):
        register(base.Toolbox(), evaluator, max_sparsity=0.4, uniform={"heads": [1, 2, 4]})
