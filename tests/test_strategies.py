"""Searches that ask and tell, on landscapes without a model."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from deap import algorithms, base, tools

from sos_deap import Chromosome, InputError, evolve
from sos_deap.search.algorithms import ALGORITHMS
from sos_deap.search.budget import exchanged
from sos_deap.search.chromosome import random_genes
from sos_deap.search.context import SearchContext
from sos_deap.search.limits import Limits
from sos_deap.search.space import Space
from sos_deap.search.strategies.baselines import Greedy
from sos_deap.search.strategies.bonsai import Bonsai
from sos_deap.search.strategies.distribution import PBIL, UMDA
from sos_deap.search.strategies.evopress import EvoPress
from sos_deap.search.strategies.exchange import Exchange
from sos_deap.search.strategies.sleb import SLEB
from sos_deap.search.strategies.strategy import value
from sos_deap.search.strategies.sweep import Sweep
from tests.spaces import heads

SPACE = heads((4, 4, 4, 4), 5 / 16, priors={"wanda": lambda: WEIGHTS})
DRAW = random.Random(7)
WEIGHTS: list[float] = [DRAW.uniform(0, 2) for _ in range(len(SPACE))]
BEST = -sum(sorted(WEIGHTS)[:5])
#: Those that run on heads alone.
STRATEGIES = [n for n, row in ALGORITHMS.items() if row.strategy and n != "two-stage"]


def cost(individual: Any) -> tuple[float]:
    return (-sum(w for w, gene in zip(WEIGHTS, individual, strict=True) if not gene),)


def toolbox_for(evaluate: Any = cost, space: Space = SPACE) -> Any:
    toolbox = base.Toolbox()
    toolbox.register("individual", lambda: Chromosome(random_genes(len(space), 0.1)))
    toolbox.register("population", tools.initRepeat, list, toolbox.individual)
    toolbox.register("evaluate", evaluate)
    toolbox.search = SearchContext(space=space)
    return toolbox


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_winner_removes_as_many_as_the_space_states(name: str) -> None:
    evolution = evolve(toolbox_for(), name, population=6, generations=20)
    [best] = evolution.halloffame
    assert best.count(0) == 5
    assert best.fitness.values == pytest.approx(cost(best))
    assert evolution.logbook.select("gen") == list(range(len(evolution.logbook)))


@pytest.mark.parametrize(
    ("name", "strategy", "parameters"),
    [
        ("swap", Exchange, {}),
        ("pbil", PBIL, {}),
        ("pbil,learning_rate=0.3", PBIL, {"learning_rate": 0.3}),
        ("umda,children=6,margin=0.02", UMDA, {"children": 6, "margin": 0.02}),
        ("sos_deap.search.strategies.distribution:PBIL", PBIL, {}),
        ("greedy", Greedy, {}),
        ("sleb", SLEB, {}),
        ("bonsai", Bonsai, {}),
        ("evopress", EvoPress, {}),
        ("sweep", Sweep, {}),
        ("sweep,prior=mine", Sweep, {"prior": "mine"}),
    ],
)
def test_stock_deap_runs_a_strategy_to_the_bit_as_the_driver(
    name: str, strategy: Any, parameters: dict[str, Any]
) -> None:
    space = replace(SPACE, priors={"mine": lambda: WEIGHTS})
    random.seed(4)
    driven = evolve(toolbox_for(space=space), name, population=6, limits=Limits(evaluations=120))
    after = random.getstate()
    random.seed(4)
    toolbox = toolbox_for()
    made = strategy(space, toolbox.population(n=6), 120, **parameters)
    toolbox.register("generate", made.generate)
    toolbox.register("update", made.update)
    hall = tools.HallOfFame(1000)
    asked = driven.logbook.select("nevals")
    # The driver may add a generation, the finalists, if a search scores on some examples only.
    generations = len(asked) - (name.startswith("sweep"))
    population, logbook = algorithms.eaGenerateUpdate(toolbox, generations, hall, verbose=False)
    assert random.getstate() == after
    assert logbook.select("nevals") == asked[:generations]
    assert driven.halloffame[0] == max(filter(space.solves, hall), key=value)
    assert driven.population == (population if len(asked) == generations else made.finalists())


def test_a_prior_that_the_space_lacks_is_an_error() -> None:
    with pytest.raises(InputError, match="wanda is unknown, the space has no priors: give"):
        evolve(toolbox_for(space=heads((4, 4), 2 / 8)), "coarse-to-fine")


def test_exchange_finds_the_optimum_of_a_separable_landscape() -> None:
    evolution = evolve(toolbox_for(), "swap", limits=Limits(evaluations=600))
    assert evolution.halloffame[0].fitness.values[0] == pytest.approx(BEST)


def test_exchange_moves() -> None:
    genes = [0, 0, 1, 1, 1]
    for moves in (1, 2, 5):
        child = exchanged(genes, moves)
        assert genes == [0, 0, 1, 1, 1]
        assert sum(child) == 3
        assert sum(a != b for a, b in zip(genes, child, strict=True)) == 2 * min(moves, 2)


def test_space() -> None:
    space = heads((2, 3), 2 / 5, examples=10)
    assert space.spans == [range(2), range(2, 5)] and space.layers == [[0, 1], [2, 3, 4]]
    assert space.keeping_best([5, 1, 4, 2, 3]) == [1, 0, 1, 0, 1]
    assert space.random(like=[1, 0, 1, 1, 1])[1] == 0
    assert sum(space.random(like=[0, 0, 0, 1, 1])) == 3
    assert sum(space.random()) == 3
    individual, other = space.without([0, 4]), space.without([0])
    assert not space.solves(individual)  # not scored yet
    individual.fitness.values = other.fitness.values = (1.0,)
    assert space.solves(individual)
    assert not space.solves(other)
    individual.examples = (0, 4)
    assert not space.solves(individual)
    assert space.share(individual) == 0.4
    assert space.share(other) == 1.0
    windows = space.windows(0.35)
    assert {next(windows) for _ in range(3)} == {(0, 3), (3, 6), (6, 9)}
    assert next(windows)[1] in (3, 6, 9)
    assert next(space.windows(1.0)) == (0, 10)
    start, stop = next(space.windows(0.01))
    assert stop - start == 1


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(evaluations=30), "evaluations"),
        (Limits(stagnation=1), "stagnation"),
        (Limits(threshold=-1e9), "threshold"),
        (Limits(sparsity=0.3), "sparsity"),
        (Limits(seconds=0), "seconds"),
    ],
)
@pytest.mark.parametrize("name", ["swap", "eaSimple"])
def test_limits_compose(name: str, limits: Limits, reason: str) -> None:
    toolbox = toolbox_for()
    toolbox.register("mate", tools.cxUniform, indpb=0.5)
    toolbox.register("mutate", tools.mutFlipBit, indpb=0.2)
    toolbox.register("select", tools.selTournament, tournsize=3)
    toolbox.register("evaluate", lambda individual: (individual.count(0),))
    evolution = evolve(toolbox, name, population=10, generations=5000, limits=limits)
    assert evolution.stopped_by == reason
    if reason == "evaluations":
        assert 30 <= sum(evolution.logbook.select("nevals")) < 40


@pytest.mark.parametrize("limit", [{"seconds": -1}, {"stagnation": 0}, {"tokens": float("nan")}])
def test_bad_limits(limit: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(limit))):
        Limits(**limit)


def test_a_strategy_needs_a_space() -> None:
    toolbox = toolbox_for()
    del toolbox.search
    with pytest.raises(InputError, match=r"swap needs toolbox\.search\.space"):
        evolve(toolbox, "swap")


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("swap", {"children": 0}, "children is 0: give at least 1"),
        ("swap", {"moves": 0}, "moves is 0: give at least 1"),
        ("sweep", {"sweeps": 0}, "sweeps is 0: give at least 1"),
        ("sweep", {"candidates": 0}, "candidates is 0: give at least 1"),
        ("sweep", {"curve": -1}, "curve is -1: give a number of sparsities, 0 or more"),
        ("sweep", {"decay": 1.5}, "decay is 1.5: give a weight from 0 to 1"),
    ],
)
def test_bad_parameters(name: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        evolve(toolbox_for(), name, **parameters)
