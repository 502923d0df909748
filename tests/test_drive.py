"""The driver against stock DEAP and Algorithm 1 by hand, on fitness functions without a model."""

from __future__ import annotations

import random
from typing import Any

import pytest
from deap import algorithms, base, tools

from sos_deap import Chromosome, InputError, cxFitnessWeighted, evolve, statistics
from sos_deap.search.algorithms import ALGORITHMS, sos
from sos_deap.search.chromosome import WORST_FITNESS, random_genes
from sos_deap.search.limits import Limits
from sos_deap.search.operators import mutSparsityFlipBit
from sos_deap.search.space import Space

GENES, SIZE, GENERATIONS = 20, 8, 12
WEIGHTS = [random.Random(7).uniform(0, 2) for _ in range(GENES)]


def cost(individual: Any) -> tuple[float]:
    """A landscape with unequal heads: what is removed costs, density costs too."""
    lost = sum(w for w, gene in zip(WEIGHTS, individual, strict=True) if not gene)
    return (-(5 + lost) * sum(individual) / GENES,)


def toolbox_for(evaluate: Any = cost) -> Any:
    toolbox = base.Toolbox()
    toolbox.register("individual", lambda: Chromosome(random_genes(GENES, 0.1)))
    toolbox.register("population", tools.initRepeat, list, toolbox.individual)
    toolbox.register("evaluate", evaluate)
    toolbox.register("mate", cxFitnessWeighted)
    toolbox.register("mutate", mutSparsityFlipBit, indpb=0.05)
    toolbox.register("select", tools.selTournament, tournsize=3)
    toolbox.space = Space((5, 5, 5, 5), removed=6)
    return toolbox


def run_stock(function: Any, **parameters: Any) -> tuple[Any, Any, Any]:
    random.seed(4)
    toolbox, hall = toolbox_for(), tools.HallOfFame(3)
    population, logbook = function(
        toolbox.population(n=SIZE),
        toolbox,
        ngen=GENERATIONS,
        stats=statistics(),
        halloffame=hall,
        verbose=False,
        **parameters,
    )
    return population, logbook, hall


def run_driven(name: str, **parameters: Any) -> Any:
    random.seed(4)
    return evolve(
        toolbox_for(),
        name,
        population=SIZE,
        generations=GENERATIONS,
        stats=statistics(),
        halloffame=tools.HallOfFame(3),
        **parameters,
    )


MU = {"mu": SIZE, "lambda_": SIZE, "cxpb": 0.9, "mutpb": 1.0 - 0.9}


@pytest.mark.parametrize(
    ("name", "function", "parameters"),
    [
        ("eaSimple", algorithms.eaSimple, {"cxpb": 0.9, "mutpb": 1.0}),
        ("eaMuPlusLambda", algorithms.eaMuPlusLambda, MU),
        ("eaMuCommaLambda", algorithms.eaMuCommaLambda, MU),
        # Algorithm 1 is a generational GA that mutates every child: eaSimple with mutpb = 1.
        ("sos-repaired", algorithms.eaSimple, {"cxpb": 0.9, "mutpb": 1.0}),
    ],
)
def test_a_driven_run_is_bit_identical_to_stock_deap(
    name: str, function: Any, parameters: dict[str, Any]
) -> None:
    population, logbook, hall = run_stock(function, **parameters)
    after = random.getstate()
    driven = run_driven(name)
    assert random.getstate() == after
    assert driven.population == population
    assert [i.fitness for i in driven.population] == [i.fitness for i in population]
    assert list(driven.halloffame) == list(hall)
    assert driven.logbook == logbook
    assert driven.logbook.chapters["fitness"].select("max") == logbook.chapters["fitness"].select(
        "max"
    )
    assert driven.logbook.chapters["sparsity"].select("avg") == logbook.chapters["sparsity"].select(
        "avg"
    )
    assert driven.stopped_by == "generations"


def test_every_algorithm_improves_on_its_start() -> None:
    for name, row in ALGORITHMS.items():
        if row.strategy is None:
            evolution = run_driven(name)
            best = evolution.logbook.chapters["fitness"].select("max")
            assert max(best) > best[0], name
            assert len(evolution.logbook) == GENERATIONS + 1


def test_algorithm_1_by_hand() -> None:
    """Two individuals, no crossover, a mutation that removes the first kept head."""
    events: list[str] = []

    def evaluate(individual: Any) -> tuple[float]:
        events.append(f"evaluate {individual}")
        return (float(individual.count(0)),)

    def mutate(individual: Any) -> tuple[Any]:
        individual[individual.index(1)] = 0
        return (individual,)

    toolbox = toolbox_for(evaluate)
    toolbox.register("mutate", mutate)
    toolbox.register("select", lambda people, k: [toolbox.clone(tools.selBest(people, 1)[0])] * k)
    toolbox.register("clone", _copy)
    hall = tools.HallOfFame(1)
    start = [Chromosome([1, 1, 1]), Chromosome([1, 0, 1])]
    population, logbook = sos(start, toolbox, cxpb=0.0, ngen=2, halloffame=hall)
    # Generation 1 selects 101 twice and makes it 001, generation 2 makes that 000.
    assert events == [
        "evaluate [1, 1, 1]",
        "evaluate [1, 0, 1]",
        *["evaluate [0, 0, 1]"] * 2,
        *["evaluate [0, 0, 0]"] * 2,
    ]
    assert population == [[0, 0, 0]] * 2
    assert hall[0] == [0, 0, 0]
    assert logbook.select("nevals") == [2, 2, 2]


def _copy(individual: Any) -> Any:
    copy = Chromosome(individual)
    copy.fitness.values = individual.fitness.values
    return copy


def test_stops_at_the_threshold() -> None:
    free = run_driven("sos-repaired").logbook.chapters["fitness"].select("max")
    reached = free.index(max(free))
    assert 0 < reached < GENERATIONS
    stopped = run_driven("sos-repaired", limits=Limits(threshold=max(free)))
    assert stopped.stopped_by == "threshold"
    assert stopped.logbook.chapters["fitness"].select("max") == free[: reached + 1]


def test_the_literal_algorithm_stops_when_a_chromosome_reaches_s() -> None:
    """By hand: one more head of 20 goes each generation, so 0.10, 0.15, 0.20."""

    def bounded(individual: Any) -> tuple[float]:
        return (WORST_FITNESS if individual.count(0) > 4 else float(individual.count(0)),)

    def mutate(individual: Any) -> tuple[Any]:
        individual[individual.index(1)] = 0
        return (individual,)

    for s, stopped, generations in ((0.2, "max_sparsity", 2), (0.19, "max_sparsity", 2)):
        toolbox = toolbox_for(bounded)
        toolbox.register("mutate", mutate)
        evolution = evolve(toolbox, "sos", population=4, crossover_rate=0.0, max_sparsity=s)
        assert (evolution.stopped_by, len(evolution.logbook) - 1) == (stopped, generations)
        assert all(individual.sparsity <= s for individual in evolution.halloffame)


def test_the_literal_algorithm_answers_from_the_last_population() -> None:
    evolution = run_driven("sos")
    assert evolution.halloffame[0] in evolution.population
    assert evolution.halloffame[0] == tools.selBest(evolution.population, 1)[0]


def test_infeasible_individuals_never_stay_in_the_hall_of_fame() -> None:
    toolbox = toolbox_for(lambda individual: (WORST_FITNESS,))
    evolution = evolve(toolbox, population=4, generations=3)
    assert len(evolution.halloffame) == 0


def test_every_generation_is_reported_once() -> None:
    seen: list[int] = []
    run_driven("eaSimple", on_generation=lambda generation, hall: seen.append(generation))
    assert seen == list(range(GENERATIONS + 1))


def test_individuals_of_the_user_s_own() -> None:
    mine = [Chromosome(random_genes(GENES, 0.2)) for _ in range(4)]
    assert len(evolve(toolbox_for(), population=mine, generations=2).population) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"algorithm": "eaSimpel"}, "unknown algorithm 'eaSimpel': did you mean 'eaSimple'"),
        ({"population": 1}, "population is 1: give at least 2"),
        ({"generations": -1}, "generations is -1"),
        ({"crossover_rate": 1.1}, r"crossover_rate is 1.1: a probability lies in \[0, 1\]"),
    ],
)
def test_bad_settings(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        evolve(toolbox_for(), **arguments)
