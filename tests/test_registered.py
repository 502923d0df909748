"""What is registered in a toolbox is what runs, and every setting of `evolve` counts."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from deap import base, tools

from sos_deap import Evaluator, InputError, evolve, register
from sos_deap.search.limits import Limits
from sos_deap.tasks.data.sequences import Sequences
from sos_deap.tasks.language import Perplexity
from tests.conftest import GENES, small_llama
from tests.test_strategies import STRATEGIES

LOOPS = ["sos", "sos-repaired", "eaSimple", "eaMuPlusLambda"]


def filled(evaluator: Evaluator, **settings: Any) -> Any:
    toolbox = base.Toolbox()
    register(toolbox, evaluator, **{"max_sparsity": 0.34, **settings})
    return toolbox


def keeps_layer_0(genes: Sequence[int]) -> bool:
    return sum(genes[:4]) == 4


@pytest.mark.parametrize("name", [*LOOPS, *STRATEGIES])
def test_a_penalty_on_evaluate_decides_in_every_search(evaluator: Evaluator, name: str) -> None:
    random.seed(1)
    toolbox = filled(evaluator)
    toolbox.decorate("evaluate", tools.DeltaPenalty(keeps_layer_0, -1e6))
    limits = Limits(evaluations=150)
    best = evolve(toolbox, name, population=8, generations=8, limits=limits).halloffame[0]
    judged = toolbox.evaluate(best)
    assert best.fitness.values == judged
    if name not in {"bonsai", "one-shot"}:  # which rank genes once and do not correct the choice
        assert keeps_layer_0(best)


@pytest.mark.parametrize("name", ["eaSimple", "swap", "sweep"])
def test_another_function_registered_as_evaluate_determines_the_fitness(
    evaluator: Evaluator, name: str
) -> None:
    toolbox = filled(evaluator)
    toolbox.register("evaluate", lambda genes: (float(sum(genes[:4])),))
    random.seed(2)
    limits = Limits(evaluations=120)
    evolution = evolve(toolbox, name, population=8, generations=9, limits=limits)
    assert evolution.halloffame[0].fitness.values == (4.0,)
    assert evaluator.accounting.evaluations == 0


@pytest.mark.parametrize("name", ["eaSimple", "swap"])
def test_the_penalty_counts_where_the_winner_is_validated(name: str) -> None:
    first, second = (Perplexity(Sequences("r", torch.randint(0, 2048, (n, 16)))) for n in (3, 2))
    evaluator = Evaluator(small_llama(), first, validation=second)
    toolbox = filled(evaluator, finalists=30)
    toolbox.decorate("evaluate", tools.DeltaPenalty(keeps_layer_0, -1e6))
    random.seed(1)
    hall = evolve(toolbox, name, population=8, generations=8).halloffame
    assert any(not keeps_layer_0(genes) for genes in hall)  # it is the penalty that decides
    assert keeps_layer_0(hall[0])
    hall[0].examples = (0, 3)  # all calibration examples: there are fewer for validation
    with evaluator.validating():
        assert hall[0].fitness.values == toolbox.evaluate(hall[0])


@pytest.mark.parametrize("name", ["swap", "one-shot", "random"])
@pytest.mark.parametrize(("share", "removed"), [(0.1, 1), (0.34, 4), (0.5, 6)])
def test_a_strategy_removes_as_much_as_max_sparsity_of_evolve_allows(
    evaluator: Evaluator, name: str, share: float, removed: int
) -> None:
    limits = Limits(evaluations=30)
    toolbox = filled(evaluator)
    hall = evolve(toolbox, name, population=4, max_sparsity=share, limits=limits).halloffame
    assert GENES - sum(hall[0]) == removed
    assert hall[0].fitness.values[0] > -1e6
    assert toolbox.search.space.steps([1] * GENES) == 4  # the caller's toolbox is unchanged


def test_a_loop_keeps_to_less_than_the_toolbox_and_refuses_more(evaluator: Evaluator) -> None:
    toolbox = filled(evaluator, mutation_rate=0.3)
    evolution = evolve(toolbox, "eaSimple", population=6, generations=6, max_sparsity=0.1)
    assert GENES - sum(evolution.halloffame[0]) <= 1
    with pytest.raises(InputError, match=r"max_sparsity is 0.5, but the toolbox was registered"):
        evolve(toolbox, "eaSimple", max_sparsity=0.5)
    for share in (-0.1, 1.5, float("nan")):
        with pytest.raises(InputError, match=r"a sparsity lies in \[0, 1\]"):
            evolve(toolbox, "swap", max_sparsity=share)


@pytest.mark.parametrize("name", ["eaSimple", "sos-repaired", "swap", "sweep"])
def test_the_time_ends_a_search_in_the_middle_of_a_generation(
    evaluator: Evaluator, name: str
) -> None:
    toolbox = filled(evaluator, mutation_rate=0.3)
    slow = toolbox.evaluate
    asked: list[int] = []

    def evaluate(individual: Any, **keywords: Any) -> Any:
        asked.append(1)
        time.sleep(0.02 if len(asked) < 30 else 1)
        evaluator.clear()
        return slow(individual, **keywords)

    toolbox.register("evaluate", evaluate)
    toolbox.register("map", map)
    started = time.perf_counter()
    limits = Limits(seconds=1.3, evaluations=1000)
    evolution = evolve(toolbox, name, population=6, generations=99, limits=limits)
    assert evolution.stopped_by == "seconds"
    assert time.perf_counter() - started < 6
    assert len(evolution.halloffame)
    assert all(individual.fitness.valid for individual in evolution.population)


def test_a_time_too_short_for_any_population_is_an_error(evaluator: Evaluator) -> None:
    with pytest.raises(InputError, match="no population was evaluated within 0 s: allow more"):
        evolve(filled(evaluator), "eaSimple", limits=Limits(seconds=0))
