"""The algorithms by name: the paper's Algorithm 1, DEAP's own, and those that ask and tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from deap import algorithms, tools

from sos_deap.search.baselines import Greedy, Layers, OneShot, RandomSearch
from sos_deap.search.bonsai import Bonsai
from sos_deap.search.chromosome import is_worst
from sos_deap.search.evopress import EvoPress
from sos_deap.search.exchange import Exchange
from sos_deap.search.strategy import Strategy
from sos_deap.search.sweep import Sweep


def sos(
    population: list[Any],
    toolbox: Any,
    cxpb: float,
    ngen: int,
    stats: Any = None,
    halloffame: Any = None,
    verbose: bool = False,
    best_ever: bool = True,
) -> tuple[list[Any], Any]:
    """Algorithm 1 of "Survival of the Smallest", with the signature of DEAP's algorithms.

    Its stops (line 10) are :func:`sos_deap.evolve`'s. Where the paper looks at offspring that have
    no fitness yet (lines 10 and 14), they are evaluated first.

    :param population: individuals; line 1 is the caller's, ``toolbox.population(n=10)``.
    :param toolbox: with ``evaluate``, ``map``, ``select``, ``mate``, ``mutate`` and ``clone``.
    :param cxpb: crossover rate C of Algorithm 2.
    :param ngen: number of generations G.
    :param stats: a DEAP ``Statistics``, if any.
    :param halloffame: a DEAP ``HallOfFame``, if any.
    :param verbose: print the logbook's row of each generation.
    :param best_ever: keep the best of all generations in the hall of fame; line 14 to the letter
        looks at the last population only.
    :returns: the last population and the logbook.
    """
    logbook = tools.Logbook()
    logbook.header = ["gen", "nevals", *(stats.fields if stats else [])]

    def evaluate_and_record(generation: int) -> None:
        pending = [individual for individual in population if not individual.fitness.valid]
        for individual, fitness in zip(
            pending, toolbox.map(toolbox.evaluate, pending), strict=True
        ):
            individual.fitness.values = fitness
        if halloffame is not None:
            feasible = [individual for individual in population if not is_worst(individual)]
            if feasible and not best_ever:
                halloffame.clear()
            halloffame.update(feasible)
        record = stats.compile(population) if stats else {}
        logbook.record(gen=generation, nevals=len(pending), **record)
        if verbose:
            print(logbook.stream)

    evaluate_and_record(0)  # lines 3 to 5
    for generation in range(1, ngen + 1):  # line 2
        parents = toolbox.select(population, len(population))  # line 6
        # Lines 7 and 8: mate neighbours with probability C, then mutate every child.
        population[:] = algorithms.varAnd(parents, toolbox, cxpb=cxpb, mutpb=1.0)  # line 9
        evaluate_and_record(generation)
    return population, logbook


@dataclass(frozen=True)
class Algorithm:
    """A row of :data:`ALGORITHMS`: a loop, or a strategy that asks and tells.

    :param run: the loop, with the stock DEAP signature.
    :param parameters: from population size and crossover rate to its keyword arguments.
    :param strategy: makes the strategy, of a space, an initial population and a budget.
    :param literal: follow the paper to the letter: its printed crossover, no repair of chromosomes
        over the maximum sparsity S, and stop as soon as one reaches it (Algorithm 1, line 10).
    :param survivors: ``select`` chooses who survives, among parents and children or children only;
        where it chooses parents, a selection by Pareto dominance such as NSGA-II's chooses all.
    """

    run: Callable[..., tuple[list[Any], Any]] | None = None
    parameters: Callable[[int, float], dict[str, Any]] = field(
        default=lambda size, crossover_rate: {"cxpb": crossover_rate}
    )
    strategy: Callable[..., Strategy] | None = None
    literal: bool = False
    survivors: bool = False


def _mutate_all(size: int, crossover_rate: float) -> dict[str, Any]:
    return {"cxpb": crossover_rate, "mutpb": 1.0}


def _mate_or_mutate(size: int, crossover_rate: float) -> dict[str, Any]:
    # DEAP's varOr mates *or* mutates a child, so the two rates share 1.
    return {"mu": size, "lambda_": size, "cxpb": crossover_rate, "mutpb": 1.0 - crossover_rate}


#: Algorithms by the name the user gives.
ALGORITHMS: dict[str, Algorithm] = {
    "bonsai": Algorithm(strategy=Bonsai),
    "eaMuCommaLambda": Algorithm(algorithms.eaMuCommaLambda, _mate_or_mutate, survivors=True),
    "eaMuPlusLambda": Algorithm(algorithms.eaMuPlusLambda, _mate_or_mutate, survivors=True),
    "eaSimple": Algorithm(algorithms.eaSimple, _mutate_all),
    "evopress": Algorithm(strategy=EvoPress),
    "greedy": Algorithm(strategy=Greedy),
    "one-shot": Algorithm(strategy=OneShot),
    "random": Algorithm(strategy=RandomSearch),
    "sleb": Algorithm(strategy=Layers),
    "sos": Algorithm(partial(sos, best_ever=False), literal=True),
    "sos-repaired": Algorithm(sos),
    "swap": Algorithm(strategy=Exchange),
    "sweep": Algorithm(strategy=Sweep),
}
