"""The field's searches on landscapes small enough to know the answer."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from sos_deap import InputError, evolve
from sos_deap.search.bonsai import Bonsai
from sos_deap.search.limits import Limits
from sos_deap.search.space import Space
from tests.test_strategies import BEST, SPACE, WEIGHTS, cost, toolbox_for

N = len(SPACE)
DRAW = random.Random(3)
PAIRS = {p: DRAW.uniform(-0.5, 0.5) for p in combinations(range(N), 2) if sum(p) % 3 == 0}


def rugged(individual: Any) -> tuple[float]:
    """Genes that depend on each other."""
    gone = [i for i, gene in enumerate(individual) if not gene]
    together = sum(PAIRS.get(pair, 0.0) for pair in combinations(gone, 2))
    return (cost(individual)[0] - together,)


def recorded(evaluate: Callable[[Any], tuple[float]] = cost) -> tuple[Any, list[Any]]:
    asked: list[Any] = []

    def record(individual: Any) -> tuple[float]:
        asked.append(individual)
        return evaluate(individual)

    return record, asked


@pytest.mark.parametrize("name", ["one-shot", "greedy", "sweep"])
def test_optimal_where_genes_do_not_depend_on_each_other(name: str) -> None:
    evolution = evolve(toolbox_for(), name, limits=Limits(evaluations=500))
    assert evolution.halloffame[0].fitness.values[0] == pytest.approx(BEST)


def test_sweep_finds_the_optimum_of_dependent_genes_which_a_ranking_misses() -> None:
    optimum = max(
        rugged([int(i not in gone) for i in range(N)])[0] for gone in combinations(range(N), 5)
    )
    found = {
        name: evolve(toolbox_for(rugged), name, limits=Limits(evaluations=400)).halloffame[0]
        for name in ("sweep", "one-shot")
    }
    assert rugged(found["sweep"])[0] == pytest.approx(optimum)
    assert rugged(found["one-shot"])[0] < optimum - 0.1


def test_one_shot_removes_each_gene_once_and_then_the_least_important() -> None:
    record, asked = recorded()
    evolve(toolbox_for(record), "one-shot", limits=Limits(evaluations=100))
    assert [i.index(0) for i in asked[:N]] == list(range(N))
    assert all(i.count(0) == 1 for i in asked[:N])
    assert asked[N:] == [SPACE.keeping_best(WEIGHTS)]


def test_one_shot_by_a_prior_evaluates_the_winner_alone() -> None:
    record, asked = recorded()
    space = Space((4, 4, 4, 4), removed=5, priors={"mine": lambda: [-w for w in WEIGHTS]})
    evolution = evolve(toolbox_for(record, space), "one-shot", prior="mine")
    assert asked == [evolution.halloffame[0]]
    assert asked[0] == space.keeping_best([-w for w in WEIGHTS])
    with pytest.raises(InputError, match="unknown prior 'mined': did you mean 'mine'"):
        evolve(toolbox_for(cost, space), "one-shot", prior="mined")


def naive_greedy() -> list[int]:
    gone: list[int] = []
    for _ in range(5):
        rest = [i for i in range(N) if i not in gone]
        gone.append(
            max(rest, key=lambda i: rugged([int(j not in (*gone, i)) for j in range(N)])[0])
        )
    return sorted(gone)


def test_greedy_is_greedy() -> None:
    evolution = evolve(toolbox_for(rugged), "greedy", limits=Limits(evaluations=500))
    assert [i for i, gene in enumerate(evolution.halloffame[0]) if not gene] == naive_greedy()


@pytest.mark.parametrize("name", ["greedy", "bonsai", "random", "swap", "sweep", "evopress"])
@pytest.mark.parametrize("budget", [12, 47, 200])
def test_no_search_asks_for_more_than_its_budget(name: str, budget: int) -> None:
    space = Space((4, 4, 4, 4), removed=5, examples=40, tokens=1)
    spent = {"evaluations": 0.0, "tokens": 0.0}

    def counted(individual: Any) -> tuple[float]:
        spent["tokens"] += space.share(individual)
        return cost(individual)

    toolbox = toolbox_for(counted, space)
    toolbox.register("spent", lambda: spent)
    evolution = evolve(toolbox, name, population=4, limits=Limits(tokens=budget))
    assert evolution.halloffame[0].count(0) == 5
    # A generation is never cut short, and the driver ends what does not end itself.
    assert spent["tokens"] <= budget + 4
    assert spent["tokens"] >= (70 if (name, budget) == ("greedy", 200) else 0.5 * budget)


def test_sleb_removes_whole_layers_greedily() -> None:
    record, asked = recorded()
    evolution = evolve(toolbox_for(record), "sleb", limits=Limits(evaluations=100))
    layers = SPACE.layers
    first = min(layers, key=lambda layer: sum(WEIGHTS[i] for i in layer))
    best = evolution.halloffame[0]
    assert not any(best[i] for i in first)
    rest = [i for i, gene in enumerate(best) if not gene and i not in first]
    assert len(rest) == 1  # 5 genes are one layer of 4 and a part of another
    assert [i.count(0) for i in asked] == [4] * 4 + [5] * 3


def test_bonsai_against_least_squares_in_one_round() -> None:
    random.seed(2)
    record, asked = recorded(rugged)
    toolbox = toolbox_for(record)
    evolve(toolbox, "bonsai", limits=Limits(evaluations=400), rounds=1, ridge=1e-9)
    *sample, last = asked
    masks = np.array([[1.0, *individual] for individual in sample])
    fitness = np.array([rugged(individual)[0] for individual in sample])
    worth = np.linalg.lstsq(masks, fitness, rcond=None)[0][1:]
    assert {i for i, gene in enumerate(last) if not gene} == set(np.argsort(worth)[:5])


def test_bonsai_draws_what_the_prior_finds_unimportant() -> None:
    space = Space((8,), removed=2, priors={"mine": lambda: list(range(8))})
    strategy = Bonsai(space, [], budget=800, rounds=1, prior="mine")
    removed = np.array(strategy.generate()).sum(0)
    assert removed[0] < removed[4] < removed[7]


def test_evopress_compares_on_the_same_examples_only() -> None:
    """A landscape whose level depends on the examples far more than on the genes."""
    space = Space((4, 4, 4, 4), removed=5, examples=64)

    def noisy(individual: Any) -> tuple[float]:
        start, stop = individual.examples or (0, 64)
        return (cost(individual)[0] + 100.0 * (start % 7) + stop - start,)

    evolution = evolve(toolbox_for(noisy, space), "evopress", limits=Limits(evaluations=200))
    assert evolution.halloffame[0].fitness.values[0] == pytest.approx(BEST + 64)
    stages = evolution.logbook.select("nevals")
    assert stages[:4] == [10, 3, 16, 4]  # the first parent has none to compete with
    assert stages[-1] == 1
