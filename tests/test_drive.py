"""The driver against stock DEAP and Algorithm 1 by hand, on fitness functions without a model."""

from __future__ import annotations

import math
import operator
import random
from itertools import combinations
from typing import Any

import numpy
import pytest
from deap import algorithms, base, tools

from sos_deap import (
    Chromosome,
    InputError,
    cxFitnessWeighted,
    cxFitnessWeightedPaper,
    evolve,
    history,
    limit_sparsity,
    selRoulette,
    statistics,
)
from sos_deap.search.algorithms import ALGORITHMS, sos
from sos_deap.search.chromosome import WORST_FITNESS, ParetoFitness, random_genes
from sos_deap.search.context import SearchContext
from sos_deap.search.limits import Limits
from sos_deap.search.operators import mutSparsityFlipBit, mutSwap
from tests.spaces import heads

GENES, SIZE, GENERATIONS = 20, 8, 12
DRAW = random.Random(7)
WEIGHTS = [DRAW.uniform(0, 2) for _ in range(GENES)]


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
    toolbox.search = SearchContext(space=heads((5, 5, 5, 5), 6 / 20))
    return toolbox


def others(toolbox: Any) -> Any:
    """Operators other than the paper's, repaired."""
    toolbox.register("mate", tools.cxTwoPoint)
    toolbox.register("mutate", mutSwap, moves=2)
    toolbox.register("select", selRoulette)
    toolbox.decorate("mate", limit_sparsity(0.4))
    return toolbox


def run_stock(function: Any, swapped: bool = False, **parameters: Any) -> tuple[Any, Any, Any]:
    random.seed(4)
    toolbox, hall = toolbox_for(), tools.HallOfFame(3)
    toolbox = others(toolbox) if swapped else toolbox
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


def run_driven(name: Any, swapped: bool = False, **parameters: Any) -> Any:
    random.seed(4)
    return evolve(
        others(toolbox_for()) if swapped else toolbox_for(),
        name,
        population=SIZE,
        generations=GENERATIONS,
        stats=statistics(),
        halloffame=tools.HallOfFame(3),
        **parameters,
    )


MU = {"mu": SIZE, "lambda_": SIZE, "cxpb": 0.9, "mutpb": 1.0 - 0.9}


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(
    ("name", "function", "parameters"),
    [
        (algorithms.eaSimple, algorithms.eaSimple, {"cxpb": 0.9, "mutpb": 1.0}),
        (algorithms.eaMuPlusLambda, algorithms.eaMuPlusLambda, MU),
        ("eaSimple,mutpb=0.5,cxpb=0.4", algorithms.eaSimple, {"cxpb": 0.4, "mutpb": 0.5}),
        (
            "eaMuCommaLambda,mu=3,lambda_=7",
            algorithms.eaMuCommaLambda,
            MU | {"mu": 3, "lambda_": 7},
        ),
        ("deap.algorithms:eaSimple", algorithms.eaSimple, {"cxpb": 0.9, "mutpb": 1.0}),
        ("eaSimple", algorithms.eaSimple, {"cxpb": 0.9, "mutpb": 1.0}),
        ("eaMuPlusLambda", algorithms.eaMuPlusLambda, MU),
        ("eaMuCommaLambda", algorithms.eaMuCommaLambda, MU),
        # Algorithm 1 is a generational GA that mutates every child: eaSimple with mutpb = 1.
        ("sos-repaired", algorithms.eaSimple, {"cxpb": 0.9, "mutpb": 1.0}),
    ],
)
def test_a_driven_run_is_bit_identical_to_stock_deap(
    name: Any, function: Any, parameters: dict[str, Any], swapped: bool
) -> None:
    population, logbook, hall = run_stock(function, swapped, **parameters)
    after = random.getstate()
    driven = run_driven(name, swapped)
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
        if row.strategy is None and row.select is None:
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
    toolbox.register(
        "select", lambda individuals, k: [toolbox.clone(tools.selBest(individuals, 1)[0])] * k
    )
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


#: -perplexity * density of every chromosome of three heads, as if measured.
TABLE = {
    (1, 1, 1): -8.0,
    (0, 1, 1): -6.0,
    (1, 0, 1): -2.0,
    (1, 1, 0): -9.0,
    (0, 0, 1): -5.0,
    (0, 1, 0): -7.0,
    (1, 0, 0): -3.0,
    (0, 0, 0): -4.0,
}


def test_algorithms_1_and_2_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The faithful variant with all its operators, every random draw written out."""
    picks = iter(
        [
            *(0, 1),  # line 6: a tournament of 011 (-6) and 101 (-2), which 101 wins,
            *(0, 0),  # and one of 011 with itself
        ]
    )
    draws = iter(
        [
            0.5,  # line 7: below C = 0.9, so 101 and 011 mate
            # Algorithm 2, line 2: prob = -2 / (-2 - 6) = 0.25: the worse parent is favoured. Genes
            # 1 and 0, 0 and 1, 1 and 1 of the parents; below 0.25 child 1 takes parent 1's: line 6.
            *(0.2, 0.3, 0.9),  # child 1: 1, 1, 1; child 2: 0, 0, 1
            0.5,  # line 8: child 1 is mutated (always),
            *(0.9, 0.9, 0.01),  # its third gene alone flips, at a rate of 0.05: 110
            0.5,  # child 2 is mutated,
            *(0.04, 0.9, 0.9),  # its first gene flips: 101
        ]
    )
    evaluated: list[tuple[int, ...]] = []

    def evaluate(individual: Any) -> tuple[float]:
        evaluated.append(tuple(individual))
        return (TABLE[tuple(individual)],)

    toolbox = toolbox_for(evaluate)
    toolbox.register("mate", cxFitnessWeightedPaper)
    toolbox.register("select", tools.selTournament, tournsize=2)
    monkeypatch.setattr(random, "choice", lambda individuals: individuals[next(picks)])
    monkeypatch.setattr(random, "random", lambda: next(draws))
    start = [Chromosome([0, 1, 1]), Chromosome([1, 0, 1])]
    evolution = evolve(toolbox, "sos", population=start, generations=1, max_sparsity=0.5)
    assert evaluated == [(0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 0, 1)]
    assert evolution.population == [[1, 1, 0], [1, 0, 1]]
    assert [i.fitness.values for i in evolution.population] == [(-9.0,), (-2.0,)]
    assert evolution.halloffame[0] == [1, 0, 1]  # line 14
    assert evolution.stopped_by == "generations"
    assert next(draws, None) is None and next(picks, None) is None


def two_values(name: str) -> Any:
    """A front of cost against sparsity, and what removes most is infeasible."""
    toolbox = toolbox_for()
    toolbox.register(
        "individual", lambda: Chromosome(random_genes(GENES, 0.1), fitness=ParetoFitness)
    )
    toolbox.register("population", tools.initRepeat, list, toolbox.individual)

    def evaluate(individual: Any) -> tuple[float, float]:
        if individual.count(0) > 10:
            return WORST_FITNESS, WORST_FITNESS
        return cost(individual)[0] * GENES / sum(individual), individual.sparsity

    toolbox.register("evaluate", evaluate)
    random.seed(4)
    numpy.random.seed(4)  # NSGA-III's
    return evolve(toolbox, name, population=20, generations=25, stats=statistics())


@pytest.mark.parametrize("name", [name for name, row in ALGORITHMS.items() if row.select])
def test_multi_objective_algorithms_find_a_front(name: str) -> None:
    front = two_values(name).halloffame
    values = [individual.fitness.values for individual in front]
    assert len(values) > 5
    assert not any(a != b and a[0] >= b[0] and a[1] >= b[1] for a in values for b in values)
    # By brute force: removing the lightest heads first is optimal for each number of them.
    for score, sparsity in values:
        count = round(sparsity * GENES)
        assert score <= -5 - sum(sorted(WEIGHTS)[:count]) + 1e-9
    assert min(score for score, _ in values) < -5 and max(sparsity for _, sparsity in values) >= 0.3


def test_algorithms_are_for_so_many_values() -> None:
    with pytest.raises(InputError, match="nsga2 is for several fitness values, and the objective"):
        run_driven("nsga2")
    with pytest.raises(InputError, match="pbil is for one fitness value, .* use eaMuCommaLambda"):
        two_values("pbil")


def greedy(
    population: Any, toolbox: Any, rate: float, ngen: int, stats: Any, halloffame: Any, verbose: Any
) -> Any:
    """A user's loop, which neither updates the hall of fame nor calls DEAP."""
    logbook = tools.Logbook()
    for generation in range(ngen + 1):
        if generation:
            population = [
                toolbox.mutate(toolbox.clone(one))[0] if random.random() < rate else one
                for one in population
            ]
        for one in population:
            one.fitness.values = toolbox.evaluate(one)
        logbook.record(gen=generation, nevals=len(population), **stats.compile(population))
    return population, logbook


def test_a_loop_of_the_user_s() -> None:
    evolution = run_driven(greedy, rate=0.5)
    assert len(evolution.logbook) == GENERATIONS + 1 and len(evolution.halloffame) == 3
    assert run_driven("tests.test_drive:greedy,rate=0.5").population == evolution.population


def annealing(population: Any, toolbox: Any, temperature: float = 1.0, cooling: float = 0.8) -> Any:
    """Simulated annealing of each individual."""
    yield population
    while True:
        children = [toolbox.mutate(toolbox.clone(one))[0] for one in population]
        for child in children:
            del child.fitness.values
        yield children
        for i, (old, new) in enumerate(zip(population, children, strict=True)):
            loss = old.fitness.values[0] - new.fitness.values[0]
            if random.random() < math.exp(min(0, -loss / temperature)):
                population[i] = new
        temperature *= cooling


def annealed(cooling: float, evaluations: int) -> list[list[Any]]:
    """All generations of simulated annealing, by hand."""
    random.seed(4)
    toolbox = toolbox_for()
    current = toolbox.population(n=SIZE)
    for one in current:
        one.fitness.values = cost(one)
    generations, temperature = [list(current)], 1.0
    while sum(map(len, generations)) < evaluations:
        found = []
        for one in current:
            (child,) = mutSparsityFlipBit(toolbox.clone(one), indpb=0.05)
            child.fitness.values = cost(child)
            found.append(child)
        generations.append(found)
        for i, child in enumerate(found):
            loss = cost(current[i])[0] - cost(child)[0]
            if random.random() < (1 if loss <= 0 else math.exp(-loss / temperature)):
                current[i] = child
        temperature *= cooling
    return generations


def test_a_generator_keeps_its_state_between_generations() -> None:
    expected = annealed(cooling=0.5, evaluations=SIZE * (GENERATIONS + 1))
    assert expected != annealed(cooling=1.0, evaluations=SIZE * (GENERATIONS + 1))
    for algorithm in (annealing, "tests.test_drive:annealing"):
        reported: list[Any] = []

        def note(i: int, hall: Any, reported: list[Any] = reported) -> None:
            reported.append((i, *hall[0]))

        evolution = run_driven(algorithm, cooling=0.5, on_generation=note)
        assert evolution.population == expected[-1] and evolution.stopped_by == "generations"
        assert evolution.logbook.select("gen") == list(range(GENERATIONS + 1))
        assert evolution.logbook.select("nevals") == [SIZE] * (GENERATIONS + 1)
        best = [max(cost(one)[0] for one in found) for found in expected]
        assert evolution.logbook.chapters["fitness"].select("max") == best
        hall = tools.HallOfFame(3)
        for i, found in enumerate(expected):
            hall.update(found)
            assert reported[i] == (i, *hall[0])
        assert list(evolution.halloffame) == list(hall)


def test_limits_end_a_generator() -> None:
    limited = run_driven(annealing, limits=Limits(evaluations=3 * SIZE + 1))
    assert limited.stopped_by == "evaluations"
    assert limited.population == annealed(cooling=0.8, evaluations=3 * SIZE + 1)[-1]
    free = run_driven(annealing).logbook.chapters["fitness"].select("max")
    stopped = run_driven(annealing, limits=Limits(threshold=max(free[:6])))
    reached = free.index(max(free[:6]))
    assert (stopped.stopped_by, len(stopped.logbook)) == ("threshold", reached + 1)
    assert run_driven(annealing, limits=Limits(seconds=0)).stopped_by == "seconds"
    assert all(one.sparsity <= 0.1 for one in run_driven(annealing, max_sparsity=0.1).halloffame)


def test_a_generator_may_evaluate_and_end_itself() -> None:
    def twice(population: Any, toolbox: Any) -> Any:
        for _ in range(2):
            invalid = [one for one in population if not one.fitness.valid]
            for one, values in zip(invalid, toolbox.map(toolbox.evaluate, invalid), strict=True):
                one.fitness.values = values
            yield population
            population = [*population, Chromosome([1] * GENES)]

    evolution = run_driven(twice)
    assert evolution.stopped_by == "finished" and len(evolution.population) == SIZE + 1
    assert evolution.logbook.select("nevals") == [SIZE, 1]
    assert [one.fitness.values for one in evolution.population] == [
        cost(one) for one in evolution.population
    ]


def alone(population: Any) -> Any:
    yield population


def silent(population: Any, toolbox: Any) -> Any:
    yield from ()


def paired(population: Any, toolbox: Any) -> Any:
    yield population, tools.Logbook()


def empty(population: Any, toolbox: Any) -> Any:
    yield []


def no_rows(population: Any, toolbox: Any, **driven: Any) -> Any:
    return population, tools.Logbook()


def nothing(population: Any, toolbox: Any, **driven: Any) -> Any:
    return None


def short(population: Any, toolbox: Any, ngen: Any) -> Any:
    return None


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        (greedy, "the algorithm greedy lacks rate: write greedy,rate=..."),
        (no_rows, "the algorithm no_rows must return its population, evaluated, and a logbook"),
        (nothing, "the algorithm nothing must return its population"),
        (
            short,
            r"short cannot be called like DEAP's, with \(population, .*: got an unexpected",
        ),
        (alone, r"alone cannot be called with \(population, toolbox, \.\.\.\): too many"),
        (silent, "the algorithm silent ended before it yielded a generation"),
        (paired, "the algorithm paired must yield the individuals of each generation as a list"),
        (empty, "the algorithm empty must yield the individuals of each generation as a list"),
        ("tests.test_drive:annealing,cold=1", "unknown parameter of the algorithm .* 'cold': did"),
        ("json:dumps", "json:dumps cannot be called like DEAP's"),
        ("tests.test_drive:gredy", "unknown function in tests.test_drive 'gredy': did you mean"),
        ("no.such:thing", "cannot import no.such of no.such:thing"),
        ("eaSimple,mutbp=1", "unknown parameter of the algorithm eaSimple 'mutbp': did you mean"),
        ("eaSimple,mutpb=2", r"mutpb is 2: a probability lies in \[0, 1\]"),
        ("eaSimple,mutpb=x", "mutpb is x: a probability"),
        ("eaMuPlusLambda,mutpb=0.5", "cxpb 0.9 and mutpb 0.5 add up to more than 1"),
        ("eaMuPlusLambda,mu=0", "mu is 0: give a number of individuals, at least 1"),
        ("eaMuCommaLambda,lambda_=5", "lambda_ is 5: give at least mu, 8, as"),
        ("sos,best_ever=0.5", "best_ever of the algorithm sos is 0.5: expected bool"),
        ("swap,moves=few", "moves of the algorithm swap is 'few': expected int"),
        ("swap,moves=0", "moves is 0"),
        ("swap,3", "cannot read 'swap,3': write NAME or NAME,key=value,key=value"),
    ],
)
def test_algorithms_that_do_not_fit(algorithm: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_driven(algorithm)


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
    """By hand: one more head of 20 is removed in each generation, so 0.10, 0.15, 0.20."""

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
        toolbox.register(
            "evaluate", lambda individual, max_sparsity: bounded(individual), max_sparsity=s
        )
        registered = evolve(toolbox, "sos", population=4, crossover_rate=0.0)
        assert (registered.stopped_by, len(registered.logbook) - 1) == (stopped, generations)
        assert all(individual.sparsity <= s for individual in evolution.halloffame)


def test_the_literal_algorithm_returns_the_best_of_the_last_population() -> None:
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


def test_a_logbook_of_the_user_s_grows_with_the_search() -> None:
    for algorithm in ("eaSimple", "umda"):
        logbook: Any = tools.Logbook()
        rows: list[Any] = []

        def note(generation: int, _: Any, logbook: Any = logbook, rows: Any = rows) -> None:
            rows.append((generation, len(logbook), logbook.chapters["fitness"][-1]["max"]))

        evolution = run_driven(algorithm, logbook=logbook, on_generation=note)
        assert evolution.logbook is logbook
        best = logbook.chapters["fitness"].select("max")
        last = evolution.population
        pairs = [sum(map(operator.ne, a, b)) / GENES for a, b in combinations(last, 2)]
        found = logbook.chapters["diversity"][-1]["hamming"]
        assert found == pytest.approx(sum(pairs) / len(pairs))
        assert rows == [(i, i + 1, most) for i, most in enumerate(best)] and len(rows) > 2


@pytest.mark.parametrize("algorithm", ["eaSimple", "umda", annealing])
def test_a_search_as_a_frame(algorithm: Any) -> None:
    evolution = run_driven(algorithm)
    frame, log = evolution.frame(), evolution.logbook
    assert frame["gen"].tolist() == log.select("gen")
    assert frame["nevals"].tolist() == log.select("nevals")
    for name, chapter in log.chapters.items():
        for key in ("hamming",) if name == "diversity" else ("avg", "min", "max"):
            assert frame.pop(f"{name}_{key}").tolist() == chapter.select(key)
    assert set(frame) == {"gen", "nevals"}
    assert history(evolution).equals(evolution.frame())
    with pytest.raises(InputError, match="a search in Python has no table front: give a run fold"):
        history(evolution, "front")


def test_a_search_with_plain_statistics_as_a_frame() -> None:
    stats = tools.Statistics(lambda one: one.fitness.values[0])
    stats.register("best", max)
    evolution = evolve(toolbox_for(), population=4, generations=2, stats=stats)
    assert list(evolution.frame()) == ["gen", "nevals", "best"]
    assert evolution.frame()["best"].tolist() == evolution.logbook.select("best")


def test_individuals_of_the_user_s_own() -> None:
    mine = [Chromosome(random_genes(GENES, 0.2)) for _ in range(4)]
    assert len(evolve(toolbox_for(), population=mine, generations=2).population) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"algorithm": "eaSimpel"}, "unknown algorithm 'eaSimpel': did you mean 'eaSimple'"),
        ({"population": 1}, "population is 1: give at least 2"),
        ({"population": 10**9}, "population of the search is 1000000000: give at most 1,000,000"),
        ({"generations": 10**400}, "generations has over 18 digits"),
        ({"mu": 10**40, "algorithm": "eaMuPlusLambda"}, "mu of the algorithm .* over 30 digits"),
        ({"children": 10**7, "algorithm": "pbil"}, "children of the algorithm pbil is 10000000"),
        ({"generations": -1}, "generations is -1"),
        ({"crossover_rate": 1.1}, r"crossover_rate is 1.1: a probability lies in \[0, 1\]"),
    ],
)
def test_bad_settings(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        evolve(toolbox_for(), **arguments)
