"""Chromosomes of genes with unequal costs: within the maximum sparsity, and full."""

from __future__ import annotations

import json
import random
import time
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from deap import base, tools

from sos_deap import Chromosome, InputError, evolve, mutSparsityFlipBit, mutSwap
from sos_deap.search.algorithms import ALGORITHMS
from sos_deap.search.chromosome import random_genes
from sos_deap.search.context import SearchContext
from sos_deap.search.limits import Limits
from sos_deap.search.operators import cxBalanced
from sos_deap.search.repairs import limit_sparsity, uniform_layers, uniform_within
from sos_deap.search.space import Part, Space
from tests.spaces import heads, is_full, mixed
from tests.traces import FILE, SEARCHES, SPACES, trace

KINDS = ["heads+channels", "groups+channels", "attention+ffn", "layers", "heads+ffn", "channels"]
MIXES = [*KINDS, "heads+channels+layers"]
STRATEGIES = [name for name, row in ALGORITHMS.items() if row.strategy]


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("search", SEARCHES)
def test_with_equal_costs_every_search_proposes_what_it_did_before_genes_had_costs(
    name: str, search: str
) -> None:
    assert trace(search, name) == json_of(name)[search]


def json_of(name: str) -> Any:
    return json.loads(FILE.read_text())[name]


@pytest.mark.parametrize("additive", [True, False])
@pytest.mark.parametrize("kinds", MIXES)
def test_a_space_draws_fills_repairs_and_exchanges_within_its_bound(
    kinds: str, additive: bool
) -> None:
    for seed in range(12):
        random.seed(seed)
        space = mixed(kinds, random.uniform(0.05, 0.7), seed, additive=additive)
        like = random_genes(len(space), random.random())
        loss = [random.uniform(-0.1, 1) for _ in range(len(space))]
        found = [space.random(), space.random(like), space.random(like, random.Random(3))]
        found += [space.keeping_best(loss), space.settled(like, like), space.ranked(found[0], loss)]
        found += [space.exchanged(found[0], moves) for moves in (1, 2, 5)]
        for genes in found:
            assert is_full(space, genes) and space.full(genes)
        for share in (0.2, 0.5):
            assert space.sparsity(space.keeping_best(loss, share)) <= space.bound(share) + 1e-9
        assert space.full(like) == is_full(space, like)
        assert space.fitting(like) == [
            i
            for i, gene in enumerate(like)
            if gene and space.sparsity([*like[:i], 0, *like[i + 1 :]]) <= space.max_sparsity + 1e-9
        ]


def test_exchanges_change_genes_and_revert_none_without_need() -> None:
    space = mixed("heads+channels", 0.4)
    random.seed(0)
    for _ in range(50):
        genes = space.random()
        child = space.exchanged(genes, 1)
        assert any(a and not b for a, b in zip(genes, child, strict=True))
        assert any(b and not a for a, b in zip(genes, child, strict=True))


@pytest.mark.parametrize("additive", [True, False])
@pytest.mark.parametrize("kinds", MIXES)
def test_operators_keep_the_budget_in_cost(kinds: str, additive: bool) -> None:
    for seed in range(12):
        random.seed(seed)
        space = mixed(kinds, 0.4, seed, additive=additive)
        for start in (space.random(), Chromosome([1] * len(space))):
            first, second = cxBalanced(space.random(), start, indpb=0.5, space=space)
            for child in (first, second, *mutSwap(space.random(), 3, space)):
                assert is_full(space, child)
        repair = limit_sparsity(0.4, space.sparsity, costs=space.costs)
        zeros = [0] * len(space)
        [child] = repair(lambda: ([0] * len(space),))()  # noqa: B023
        assert space.sparsity(child) <= 0.4 + 1e-9 < space.sparsity(zeros) or child == zeros


def test_repair_restores_no_more_than_needed() -> None:
    """A layer of cost 0.2 and ten blocks of 0.01, of which 0.05 have to be restored."""
    costs = [0.2] + [0.01] * 10

    def measure(genes: Any) -> float:
        return sum(cost for cost, gene in zip(costs, genes, strict=True) if not gene)

    for seed in range(30):
        random.seed(seed)
        [child] = limit_sparsity(0.25, measure, costs=costs)(lambda: ([0] * 11,))()
        assert child[0] == 1 or sum(child) == 5
        assert measure(child) <= 0.25 + 1e-9


def test_few_genes_flip_as_often_as_once_per_child() -> None:
    space = mixed("heads+attention", 0.4, layers=5)
    assert heads((4, 4), 0.5).rates(0.01) is None and space.rates(0) is None
    assert mixed("groups+channels", 0.4).rates(0.001) is None and space.rates(0.3) is None
    rates = space.rates(0.01)
    assert rates is not None
    few = [i for i, kind in enumerate(space.kinds) if kind == "attention"]
    assert [rates[i] for i in few] == [pytest.approx(20)] * 5
    assert {rates[i] for i in range(len(space)) if i not in few} == {1}
    random.seed(0)
    flips = 0
    for _ in range(2000):
        [child] = mutSparsityFlipBit([1] * len(space), 0.01, rates=rates)
        flips += sum(not child[i] for i in few)
    assert flips / 2000 == pytest.approx(1, abs=0.1)


def test_uniform_layers_of_several_kinds() -> None:
    parts = [Part(layer, kind, size) for layer in range(3) for kind, size in (("h", 4), ("c", 6))]
    space = Space(tuple(parts), 0.5)
    plain = uniform_layers(parts, {"h": [1, 2, 4], "c": [3, 6]})
    random.seed(2)
    for decorate in (plain, uniform_within(space, {"h": [1, 2, 4], "c": [3, 6]})):
        for _ in range(100):
            [child] = decorate(lambda: (random_genes(30, random.random()),))()
            kept = [(parts[i].kind, sum(child[g] for g in s)) for i, s in enumerate(space.spans)]
            assert {n for kind, n in kept if kind == "h"} in ({1}, {2}, {4})
            assert {n for kind, n in kept if kind == "c"} in ({3}, {6})
            assert decorate is plain or child.count(0) <= 15
    with pytest.raises(InputError, match="parts of kind h have 4, 5 genes"):
        uniform_layers([Part(0, "h", 4), Part(1, "h", 5)], {"h": [2]})
    with pytest.raises(InputError, match="with max_sparsity 0.1 a uniform layer keeps all its"):
        uniform_within(Space(tuple(parts), 0.1), {"h": [1, 4], "c": [1]})


def test_a_measure_in_steps_with_a_cost_for_empty_parts() -> None:
    """Like a table of times: only every other gene saves time, and an empty part saves more."""
    parts = tuple(Part(layer, kind, 6) for layer in range(5) for kind in ("heads", "channels"))
    saved = [0, 0, 2, 2, 4, 4, 9]

    def sparsity(genes: Any) -> float:
        removed = [genes[i : i + 6].count(0) for i in range(0, 60, 6)]
        return float(sum(saved[count] * (1 + i % 2) for i, count in enumerate(removed)) / 135)

    costs = tuple((1.5 if part.kind == "heads" else 3.0) / 135 for part in parts for _ in range(6))
    for seed in range(30):
        random.seed(seed)
        space = Space(parts, random.uniform(0.05, 0.8), sparsity, costs)
        loss = [random.random() for _ in range(60)]
        start = space.random()
        for genes in (start, space.keeping_best(loss), space.exchanged(start, 3)):
            assert is_full(space, list(genes)) and space.full(list(genes))


@pytest.mark.parametrize("name", ["swap", "sweep", "umda"])
def test_another_maximum_sparsity_than_the_space_has(name: str) -> None:
    space = mixed("heads+channels", 0.5)
    evaluate, _ = landscape(space, 0)
    toolbox = base.Toolbox()
    toolbox.register("individual", space.random)
    toolbox.register("population", tools.initRepeat, list, toolbox.individual)
    toolbox.register("evaluate", evaluate)
    toolbox.search = SearchContext(space=space, sparsity=space.sparsity)
    hall = tools.HallOfFame(20)
    evolve(toolbox, name, max_sparsity=0.2, halloffame=hall, limits=Limits(evaluations=100))
    assert len(hall) and all(is_full(replace(space, max_sparsity=0.2), one) for one in hall)
    assert toolbox.search.space.max_sparsity == 0.5


def test_costs_need_one_number_per_gene() -> None:
    with pytest.raises(InputError, match="the space has 2 costs and 4 genes: give one per gene"):
        Space((Part(0, "heads", 4),), 0.5, costs=(0.1, 0.2))


def test_ranking_is_optimal_for_equal_costs() -> None:
    """Against all subsets of 10 genes."""
    for seed in range(20):
        random.seed(seed)
        loss = [random.uniform(-0.1, 1) for _ in range(10)]
        space = Space((Part(0, "channels", 10),), 0.5)
        every = [list(genes) for genes in product((0, 1), repeat=10) if is_full(space, list(genes))]
        best = min(lost(loss, genes) for genes in every)
        assert lost(loss, space.keeping_best(loss)) == pytest.approx(best)


def test_ranking_removes_by_loss_per_cost_and_skips_genes_that_do_not_fit() -> None:
    """Against one gene after another, each tried exactly."""
    for seed in range(40):
        space = mixed("heads+channels", 0.3 + seed / 100, seed, additive=bool(seed % 2))
        random.seed(seed)
        loss = [random.uniform(-0.1, 1) for _ in range(len(space))]
        genes = [1] * len(space)
        for gene in sorted(range(len(genes)), key=lambda i: loss[i] / space.costs[i]):
            child = [*genes[:gene], 0, *genes[gene + 1 :]]
            if space.sparsity(child) <= space.max_sparsity + 1e-9:
                genes = child
        assert space.keeping_best(loss) == genes


def lost(loss: list[float], genes: Any) -> float:
    return sum(one for one, gene in zip(loss, genes, strict=True) if not gene)


def test_a_long_chromosome_takes_few_exact_sparsities() -> None:
    calls = 0
    space = mixed("heads+channels", 0.35, layers=45, additive=False)
    assert len(space) > 400 and len(space.parts) == 90
    exact = space.sparsity

    def counted(genes: Any) -> float:
        nonlocal calls
        calls += 1
        return exact(genes)

    space = Space(space.parts, 0.35, counted, space.costs)
    loss = [random.random() for _ in range(len(space))]
    genes = space.random()
    calls = 0
    started = time.perf_counter()
    for _ in range(10):
        assert space.full(space.exchanged(genes, 3))
        assert space.full(space.random())
        assert space.full(space.keeping_best(loss))
    assert calls < 30 * len(space)
    assert time.perf_counter() - started < 10


def landscape(space: Space, seed: int) -> Any:
    """Additive losses, in proportion to the costs but for a random factor, and a few pairs."""
    draw = random.Random(seed)
    losses = [cost * draw.uniform(0.1, 2) for cost in space.costs]
    pairs = [(*draw.sample(range(len(space)), 2), draw.uniform(-0.01, 0.02)) for _ in losses]

    def evaluate(individual: Any) -> tuple[float]:
        loss = lost(losses, individual)
        return (-loss - sum(w for a, b, w in pairs if not individual[a] and not individual[b]),)

    return evaluate, losses


@pytest.mark.parametrize("kinds", MIXES)
@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_ends_within_s_and_full(name: str, kinds: str) -> None:
    for seed in range(4):
        evaluate, losses = landscape(mixed(kinds, 0.4, seed), seed)
        priors = {"wanda": lambda: losses, "activation": lambda: losses}  # noqa: B023
        additive = bool(seed % 2)
        space = mixed(kinds, 0.4, seed, examples=4, additive=additive, priors=priors)
        toolbox = base.Toolbox()
        toolbox.register("individual", lambda: Chromosome(random_genes(len(space), 0.1)))  # noqa: B023
        toolbox.register("population", tools.initRepeat, list, toolbox.individual)
        toolbox.register("evaluate", evaluate)
        toolbox.search = SearchContext(space=space, sparsity=space.sparsity)
        random.seed(seed)
        if name == "two-stage" and "s+channels" not in kinds:
            with pytest.raises(InputError, match="two-stage removes channels and attention sub-"):
                evolve(toolbox, name, population=4)
            return
        for budget in (3, 150):
            [best] = evolve(
                toolbox, name, population=4, limits=Limits(evaluations=budget)
            ).halloffame
            assert is_full(space, best)
            assert space.solves(best)
