"""Searches from the literature on landscapes whose optimum is known."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from sos_deap import InputError, evolve
from sos_deap.search.limits import Limits
from sos_deap.search.strategies.bonsai import Bonsai
from sos_deap.search.strategies.evopress import EvoPress
from sos_deap.search.strategies.strategy import value
from tests.spaces import heads
from tests.test_strategies import BEST, SPACE, STRATEGIES, WEIGHTS, cost, toolbox_for

N = len(SPACE)
DRAW = random.Random(3)
PAIRS = {p: DRAW.uniform(-0.5, 0.5) for p in combinations(range(N), 2) if sum(p) % 3 == 0}


def rugged(individual: Any) -> tuple[float]:
    """Genes that depend on each other."""
    removed = [i for i, gene in enumerate(individual) if not gene]
    together = sum(PAIRS.get(pair, 0.0) for pair in combinations(removed, 2))
    return (cost(individual)[0] - together,)


def recorded(evaluate: Callable[[Any], tuple[float]] = cost) -> tuple[Any, list[Any]]:
    asked: list[Any] = []

    def record(individual: Any) -> tuple[float]:
        asked.append(individual)
        return evaluate(individual)

    return record, asked


@pytest.mark.parametrize("name", ["one-shot", "greedy", "sweep", "local"])
def test_optimal_where_genes_do_not_depend_on_each_other(name: str) -> None:
    evolution = evolve(toolbox_for(), name, limits=Limits(evaluations=500))
    assert evolution.halloffame[0].fitness.values[0] == pytest.approx(BEST)


def test_sweep_comes_close_to_the_optimum_of_dependent_genes_and_a_ranking_does_not() -> None:
    every = sorted(
        (
            rugged([int(i not in removed) for i in range(N)])[0]
            for removed in combinations(range(N), 5)
        ),
        reverse=True,
    )
    for seed in range(5):
        random.seed(seed)
        ranks = {
            name: every.index(
                rugged(evolve(toolbox_for(rugged), name, limits=limits).halloffame[0])[0]
            )
            for name, limits in (("sweep", Limits(evaluations=400)), ("one-shot", Limits()))
        }
        assert ranks["sweep"] < 5  # of 4,368
        assert ranks["one-shot"] > 100


def test_the_curve_of_a_sweep_is_optimal_where_genes_do_not_depend_on_each_other() -> None:
    record, asked = recorded()
    evolution = evolve(toolbox_for(record), "sweep,curve=4", limits=Limits(evaluations=300))
    order = sorted(range(N), key=WEIGHTS.__getitem__)
    assert [sorted(i for i in range(N) if not one[i]) for one in asked[-4:]] == [
        sorted(order[:count]) for count in (1, 2, 3, 4)
    ]
    assert len(evolution.halloffame) == 1 and evolution.halloffame[0].count(0) == 5


def test_local_search_ends_where_no_exchange_is_better() -> None:
    space = replace(SPACE, priors={"mine": lambda: WEIGHTS})
    for seed in range(4):
        for name in ("local", "local,neighbours=7", "local,prior=mine"):
            random.seed(seed)
            evolution = evolve(toolbox_for(rugged, space), name, limits=Limits(evaluations=2000))
            [found] = evolution.halloffame
            assert evolution.stopped_by == "finished"
            neighbours = (
                [gene ^ (i in (back, removed)) for i, gene in enumerate(found)]
                for back in range(N)
                for removed in range(N)
                if found[back] == 0 and found[removed] == 1
            )
            assert max(rugged(genes)[0] for genes in neighbours) <= rugged(found)[0]


def test_local_search_begins_with_the_prior_s_choice_and_its_best_neighbours() -> None:
    record, asked = recorded(rugged)
    space = replace(SPACE, priors={"mine": lambda: WEIGHTS})
    evolve(
        toolbox_for(record, space), "local,prior=mine,neighbours=3", limits=Limits(evaluations=5)
    )
    order = sorted(range(N), key=WEIGHTS.__getitem__)
    assert asked[0] == space.keeping_best(WEIGHTS)
    # The least valuable kept gene is exchanged for the most valuable removed one.
    assert [i for i in range(N) if asked[1][i] != asked[0][i]] == sorted(order[4:6])


def test_coarse_to_fine_moves_between_layers_first_and_then_within_them() -> None:
    record, asked = recorded(rugged)
    space = replace(SPACE, priors={"mine": lambda: WEIGHTS})
    random.seed(0)
    limits = Limits(evaluations=200)
    evolve(toolbox_for(record, space), "coarse-to-fine,prior=mine,moves=1", limits=limits)

    def counts(genes: list[int]) -> list[int]:
        return [sum(genes[gene] for gene in layer) for layer in space.layers]

    coarse, fine = asked[10:90], asked[110:190]
    for genes in coarse:  # in each layer the least important genes are removed
        for layer in space.layers:
            removed = [WEIGHTS[gene] for gene in layer if not genes[gene]]
            kept = [WEIGHTS[gene] for gene in layer if genes[gene]]
            assert max(removed, default=-1) <= min(kept, default=9)
    assert len(set(map(str, map(counts, coarse)))) > 5
    assert len(set(map(str, map(counts, fine)))) == 1
    assert len(set(map(str, fine))) > 5


def test_one_shot_removes_each_gene_once_and_then_the_least_important() -> None:
    record, asked = recorded()
    evolve(toolbox_for(record), "one-shot", limits=Limits(evaluations=100))
    assert [i.index(0) for i in asked[:N]] == list(range(N))
    assert all(i.count(0) == 1 for i in asked[:N])
    assert asked[N:] == [SPACE.keeping_best(WEIGHTS)]


def test_one_shot_by_a_prior_evaluates_the_winner_alone() -> None:
    record, asked = recorded()
    space = heads((4, 4, 4, 4), 5 / 16, priors={"mine": lambda: [-w for w in WEIGHTS]})
    evolution = evolve(toolbox_for(record, space), "one-shot", prior="mine")
    assert asked == [evolution.halloffame[0]]
    assert asked[0] == space.keeping_best([-w for w in WEIGHTS])
    with pytest.raises(InputError, match="unknown prior 'mined': did you mean 'mine'"):
        evolve(toolbox_for(cost, space), "one-shot", prior="mined")


def test_one_shot_ranks_on_a_share_of_the_examples_and_scores_the_winner_on_all() -> None:
    record, asked = recorded()
    space = heads((4, 4, 4, 4), 5 / 16, examples=8)
    evolution = evolve(toolbox_for(record, space), "one-shot", share=0.5)
    *alone, last = asked
    assert {i.examples for i in alone} in ({(0, 4)}, {(4, 8)}) and len(alone) == N
    assert space.share(last) == 1 and last == space.keeping_best(WEIGHTS)
    assert evolution.halloffame[0] == last


def naive_greedy() -> list[int]:
    removed: list[int] = []
    for _ in range(5):
        rest = [i for i in range(N) if i not in removed]
        removed.append(
            max(rest, key=lambda i: rugged([int(j not in (*removed, i)) for j in range(N)])[0])
        )
    return sorted(removed)


def test_greedy_is_greedy() -> None:
    evolution = evolve(toolbox_for(rugged), "greedy", limits=Limits(evaluations=500))
    assert [i for i, gene in enumerate(evolution.halloffame[0]) if not gene] == naive_greedy()


@pytest.mark.parametrize("name", ["greedy", "bonsai", "random", "swap", "sweep", "evopress"])
@pytest.mark.parametrize("budget", [12, 47, 200])
def test_no_search_exceeds_its_budget(name: str, budget: int) -> None:
    space = heads((4, 4, 4, 4), 5 / 16, examples=40, tokens=1)
    spent = {"evaluations": 0.0, "tokens": 0.0}

    def counted(individual: Any) -> tuple[float]:
        spent["tokens"] += space.share(individual)
        return cost(individual)

    toolbox = toolbox_for(counted, space)
    toolbox.search = replace(toolbox.search, spent=lambda: spent)
    evolution = evolve(toolbox, name, population=4, limits=Limits(tokens=budget))
    assert evolution.halloffame[0].count(0) == 5
    # Generations are completed, and the driver ends a search that does not end by itself.
    assert spent["tokens"] <= budget + 4
    assert spent["tokens"] >= (70 if (name, budget) == ("greedy", 200) else 0.5 * budget)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("budget", [0, 1, 5])
@pytest.mark.parametrize("examples", [1, 8])
def test_a_tiny_budget_ends_with_a_solution_too(name: str, budget: int, examples: int) -> None:
    space = replace(SPACE, examples=examples, tokens=1)
    spent = {"evaluations": 0.0, "tokens": 0.0}

    def counted(individual: Any) -> tuple[float]:
        spent["tokens"] += space.share(individual)
        return cost(individual)

    toolbox = toolbox_for(counted, space)
    toolbox.search = replace(toolbox.search, spent=lambda: spent)
    [best] = evolve(toolbox, name, population=4, limits=Limits(tokens=budget)).halloffame
    assert best.count(0) == 5 and space.solves(best)


@pytest.mark.parametrize("name", ["bonsai", "greedy", "one-shot", "sleb"])
def test_without_a_budget_they_end_by_themselves(name: str) -> None:
    evolution = evolve(toolbox_for(), name, limits=Limits(seconds=60))
    assert evolution.stopped_by == "finished"
    assert evolution.halloffame[0].count(0) == 5


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        ("one-shot,share=0", "share is 0: give a share of the examples above 0"),
        ("one-shot,share=0.5,prior=mine", "leave it or prior='mine' out"),
        ("bonsai,rounds=0", "rounds is 0: give at least 1"),
        ("bonsai,ridge=0", "ridge is 0: give a penalty above 0"),
        ("bonsai,prior=none", "unknown prior 'none'"),
        ("evopress,children=0", "children is 0: give at least 1"),
        ("evopress,growth=0.5", "growth is 0.5: give at least 1"),
        ("evopress,survivors=17", "survivors is .17.: give integers from 16"),
        ("evopress,survivors=[2, 4]", "survivors is .2, 4.: give integers from 16"),
        ("evopress,survivors=few", "survivors is .*: give integers from 16"),
    ],
)
def test_bad_parameters(algorithm: str, message: str) -> None:
    record, asked = recorded()
    space = heads((4, 4, 4, 4), 5 / 16, priors={"mine": lambda: WEIGHTS})
    with pytest.raises(InputError, match=message):
        evolve(toolbox_for(record, space), algorithm)
    assert not asked


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


def naive_bonsai(rounds: int, size: int, ridge: float) -> list[int]:
    """Rounds of the normal equations with a column of ones, solved by Gaussian elimination."""
    removed: list[int] = []
    for number in range(rounds):
        kept = [i for i in range(N) if i not in removed]
        target = round(5 * (number + 1) / rounds)
        rows, values = [], []
        for _ in range(size):
            keys = {i: random.random() for i in kept}
            drawn = sorted(kept, key=lambda i: -keys[i])[: target - len(removed)]
            rows.append([int(i not in drawn) for i in kept])
            values.append(rugged([int(i not in (*removed, *drawn)) for i in range(N)])[0])
        x, y = np.array(rows, float), np.array(values)
        spread = np.sum((x - x.mean(0)) ** 2) / len(kept)
        penalty = np.diag([0.0] + [ridge * spread] * len(kept))  # not on the intercept
        ones = np.column_stack((np.ones(size), x))
        worth = np.linalg.inv(ones.T @ ones + penalty) @ ones.T @ y
        removed += [kept[i] for i in np.argsort(worth[1:])[: target - len(removed)]]
    return sorted(removed)


@pytest.mark.parametrize(("rounds", "ridge"), [(1, 1.0), (2, 0.1), (5, 1.0)])
def test_bonsai_against_a_naive_one(rounds: int, ridge: float) -> None:
    random.seed(5)
    strategy = Bonsai(SPACE, [], 1 + 120 * rounds, rounds, ridge)
    while not strategy.done:
        individuals = strategy.generate()
        for individual in individuals:
            individual.fitness.values = rugged(individual)
        strategy.update(individuals)
    [found] = individuals
    random.seed(5)
    assert [i for i, gene in enumerate(found) if not gene] == naive_bonsai(rounds, 120, ridge)


def test_bonsai_draws_genes_that_the_prior_ranks_low() -> None:
    space = heads((8,), 2 / 8, priors={"mine": lambda: list(range(8))})
    strategy = Bonsai(space, [], budget=800, rounds=1, prior="mine")
    removed = np.array(strategy.generate()).sum(0)
    assert removed[0] < removed[4] < removed[7]


def test_evopress_compares_on_the_same_examples_only() -> None:
    """A landscape whose level depends on the examples far more than on the genes."""
    space = heads((4, 4, 4, 4), 5 / 16, examples=64)

    def noisy(individual: Any) -> tuple[float]:
        start, stop = individual.examples or (0, 64)
        return (cost(individual)[0] + 100.0 * (start % 7) + stop - start,)

    evolution = evolve(toolbox_for(noisy, space), "evopress", limits=Limits(evaluations=200))
    assert evolution.halloffame[0].fitness.values[0] == pytest.approx(BEST + 64)
    stages = evolution.logbook.select("nevals")
    assert stages[:4] == [10, 3, 16, 4]  # the first parent has none to compete with
    assert stages[-1] == 1


def test_evopress_draws_fresh_examples_each_generation_and_grows_them_within() -> None:
    space = heads((4, 4, 4, 4), 5 / 16, examples=64)
    strategy = EvoPress(space, [space.random() for _ in range(4)], 40, survivors=(4, 2))
    windows = []
    for _ in range(4):
        parent = strategy.incumbent
        stages: list[tuple[int, int]] = []
        for _ in range(3):
            individuals = strategy.generate()
            [examples] = {i.examples for i in individuals}  # all of a stage on the same
            for individual in individuals:
                individual.fitness.values = cost(individual)
            assert (parent in individuals) == (len(stages) == 2 and parent is not None)
            stages.append(examples)
            strategy.update(individuals)
        assert {start for start, _ in stages} == {stages[0][0]}
        sizes = [stop - start for start, stop in stages]
        assert sizes == sorted(sizes)
        windows.append(stages[-1])
        if parent is not None:  # on the generation's own examples it is no worse
            assert value(strategy.incumbent) >= cost(parent)[0]
    assert len(set(windows)) == 4


def test_evopress_takes_one_number_of_survivors() -> None:
    one, other = (
        evolve(toolbox_for(), "evopress", limits=Limits(evaluations=30), survivors=given)
        for given in (2, [2])
    )
    assert one.logbook.select("nevals") == other.logbook.select("nevals")


@pytest.mark.parametrize("survivors", [[3], [4, 2], []])
def test_evopress_counts_examples_as_the_evaluator_does(survivors: list[int]) -> None:
    """What was scored on the beginning of some examples costs only the rest of them."""
    space = heads((4, 4, 4, 4), 5 / 16, examples=512, tokens=1)
    spent = {"evaluations": 0.0, "tokens": 0.0}
    known: dict[Any, int] = {}

    def counted(individual: Any) -> tuple[float]:
        start, stop = getattr(individual, "examples", None) or (0, 512)
        key = (tuple(individual), start)
        # Without the cache, so that a repeated child costs as much as a new one.
        before = known.pop(key, start)
        spent["tokens"] += (stop - (before if before < stop else start)) / 512
        known[key] = stop
        return cost(individual)

    toolbox = toolbox_for(counted, space)
    toolbox.search = replace(toolbox.search, spent=lambda: spent)
    evolution = evolve(toolbox, "evopress", limits=Limits(tokens=100), survivors=survivors)
    assert evolution.stopped_by == "finished"
    assert 90 < spent["tokens"] <= 100
