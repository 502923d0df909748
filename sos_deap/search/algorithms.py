"""The algorithms by name: the paper's Algorithm 1, DEAP's, and strategies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from inspect import isgeneratorfunction, signature
from typing import Any

from deap import algorithms, tools

from sos_deap.errors import InputError, first_line
from sos_deap.search.chromosome import is_worst
from sos_deap.search.named import check_parameters, check_sizes, look_up, name_of, split
from sos_deap.search.selection import selNSGA3
from sos_deap.search.strategies.baselines import Greedy, OneShot, RandomSearch
from sos_deap.search.strategies.bonsai import Bonsai
from sos_deap.search.strategies.coarse import CoarseToFine
from sos_deap.search.strategies.distribution import PBIL, UMDA
from sos_deap.search.strategies.evopress import EvoPress
from sos_deap.search.strategies.exchange import Exchange
from sos_deap.search.strategies.knapsack import Knapsack
from sos_deap.search.strategies.local import LocalSearch
from sos_deap.search.strategies.sleb import SLEB
from sos_deap.search.strategies.strategy import Strategy
from sos_deap.search.strategies.sweep import Sweep
from sos_deap.search.strategies.two_stage import TwoStage


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

    :func:`sos_deap.evolve` implements its stopping rules (line 10). Where the paper reads the
    fitness of offspring that have none yet (lines 10 and 14), they are evaluated first.

    :param population: the initial individuals (line 1), such as ``toolbox.population(n=10)``.
    :param toolbox: a DEAP toolbox with ``evaluate``, ``map``, ``select``, ``mate``, ``mutate`` and
        ``clone``.
    :param cxpb: crossover rate C of Algorithm 2, a probability.
    :param ngen: number of generations G.
    :param stats: a DEAP ``Statistics`` or ``MultiStatistics``.
    :param halloffame: a DEAP ``HallOfFame`` to fill.
    :param verbose: whether to print the logbook's row of each generation.
    :param best_ever: whether the hall of fame keeps the best of all generations; line 14 of the
        paper reads the last population only.
    :returns: the last population, evaluated, and the logbook.
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
    """A row of :data:`ALGORITHMS`: either a loop (``run``) or a ``strategy``.

    :param run: a loop with the stock DEAP signature, or a generator function.
    :param strategy: function that makes a strategy from a space, an initial population and a
        budget in evaluations.
    :param literal: whether to follow the paper exactly: its printed crossover, no repair of
        chromosomes above the maximum sparsity S, and a stop as soon as one reaches S
        (Algorithm 1, line 10).
    :param survivors: whether ``select`` selects survivors, among children with or without their
        parents. Selections by Pareto dominance, such as NSGA-II's, need this: as selections of
        parents they would select the whole population.
    :param select: the algorithm's own selection, by several fitness values; it replaces the
        toolbox's.
    :param generator: whether ``run`` is a generator function, which yields the individuals of each
        generation.
    :param name: the name that the user gave; set by :func:`algorithm_of`.
    :param given: the parameters that the user gave; set by :func:`algorithm_of`.
    """

    run: Callable[..., Any] | None = None
    strategy: Callable[..., Strategy] | None = None
    literal: bool = False
    survivors: bool = False
    select: Callable[[list[Any], int], list[Any]] | None = None
    generator: bool = False
    name: str = ""
    given: Mapping[str, Any] = field(default_factory=dict)

    @property
    def objective(self) -> str:
        """The name of the default objective for this algorithm."""
        if self.select is not None:
            return "pareto"
        return "paper" if self.strategy is None else "metric"

    def keywords(self, size: int, crossover_rate: float) -> dict[str, Any]:
        """Return the keyword arguments of the loop.

        They are ``mu``, ``lambda_``, ``cxpb`` and ``mutpb`` where its signature has them, and the
        user's parameters.

        :param size: number of individuals in the population.
        :param crossover_rate: probability that two parents mate.
        :raises InputError: for a rate or number that DEAP's loops cannot use.
        """
        assert self.run is not None
        names = signature(self.run).parameters
        usual: dict[str, Any] = {"mu": size, "lambda_": size, "cxpb": crossover_rate, "mutpb": None}
        usual |= self.given
        if usual["mutpb"] is None:
            # DEAP's varOr mates *or* mutates a child, so that the two rates must add up to 1.
            usual["mutpb"] = 1.0 - _rate("cxpb", usual["cxpb"]) if "lambda_" in names else 1.0
        keywords = {key: value for key, value in usual.items() if key in names or key in self.given}
        _check_usual(self, keywords)
        return keywords


#: Algorithms by name.
ALGORITHMS: dict[str, Algorithm] = {
    "bonsai": Algorithm(strategy=Bonsai),
    "coarse-to-fine": Algorithm(strategy=CoarseToFine),
    "eaMuCommaLambda": Algorithm(algorithms.eaMuCommaLambda, survivors=True),
    "eaMuPlusLambda": Algorithm(algorithms.eaMuPlusLambda, survivors=True),
    "eaSimple": Algorithm(algorithms.eaSimple),
    "evopress": Algorithm(strategy=EvoPress),
    "greedy": Algorithm(strategy=Greedy),
    "knapsack": Algorithm(strategy=Knapsack),
    "local": Algorithm(strategy=LocalSearch),
    "nsga2": Algorithm(algorithms.eaMuPlusLambda, survivors=True, select=tools.selNSGA2),
    "nsga3": Algorithm(algorithms.eaMuPlusLambda, survivors=True, select=selNSGA3),
    "one-shot": Algorithm(strategy=OneShot),
    "pbil": Algorithm(strategy=PBIL),
    "random": Algorithm(strategy=RandomSearch),
    "sleb": Algorithm(strategy=SLEB),
    "sos": Algorithm(partial(sos, best_ever=False), literal=True),
    "sos-repaired": Algorithm(sos),
    "spea2": Algorithm(algorithms.eaMuPlusLambda, survivors=True, select=tools.selSPEA2),
    "swap": Algorithm(strategy=Exchange),
    "sweep": Algorithm(strategy=Sweep),
    "two-stage": Algorithm(strategy=TwoStage),
    "umda": Algorithm(strategy=UMDA),
}

# The keyword arguments that the runner passes to every loop.
_DRIVEN = ("ngen", "stats", "halloffame", "verbose")


def algorithm_of(given: str | Callable[..., Any] | Algorithm, **parameters: Any) -> Algorithm:
    """Return the algorithm that a user chose, with its parameters.

    :param given: ``NAME,key=value,...``, where NAME is a key of :data:`ALGORITHMS` or
        ``module:function``; or a function with the stock DEAP signature,
        ``(population, toolbox, ..., ngen, stats, halloffame, verbose)``; or a generator function,
        ``(population, toolbox, ...)``, which yields the individuals of each generation; or a
        subclass of :class:`sos_deap.search.strategies.strategy.Strategy`.
    :param parameters: more parameters of the algorithm, which override those in ``given``.
    :raises InputError: for an unknown name, a parameter that the algorithm does not have, a missing
        one, and a function of another signature.
    """
    found: Any = given
    name, own = "", {}
    if isinstance(given, Algorithm):
        name, own = given.name, dict(given.given)
    elif isinstance(given, str):
        name, own = split(given)
        found = look_up("algorithm", name, ALGORITHMS)
    name = name or name_of(given)
    row = found if isinstance(found, Algorithm) else _of_user(name, found)
    own |= parameters
    if row.strategy is not None:  # its first places are space, population and budget
        check_parameters(f"the algorithm {name}", row.strategy, own, places=3)
    elif row.run is not None:
        usual = ("cxpb", "mutpb", "mu", "lambda_")  # see Algorithm.keywords
        driven = () if row.generator else _DRIVEN
        check_parameters(f"the algorithm {name}", row.run, own, 2, driven, usual)
    if name in ALGORITHMS:  # the limits of a user's function are unknown
        check_sizes(f"the algorithm {name}", own)
    return replace(row, name=name, given=own)


def _of_user(name: str, given: Callable[..., Any]) -> Algorithm:
    """Return a row for a user's loop or strategy, whose results are checked."""
    if isinstance(given, type) and issubclass(given, Strategy):
        return Algorithm(strategy=given)
    loop: Callable[..., Any] = given
    generator = isgeneratorfunction(loop)
    driven = () if generator else _DRIVEN
    try:
        signature(loop).bind_partial([], None, **dict.fromkeys(driven))
    except (TypeError, ValueError) as error:
        like = "" if generator else "like DEAP's, "
        raise InputError(
            f"the algorithm {name} cannot be called {like}with "
            f"({', '.join(('population', 'toolbox', '...', *driven))}): {first_line(error)}"
        ) from error
    if generator:
        return Algorithm(loop, survivors=True, generator=True)

    @wraps(loop)
    def checked(population: list[Any], toolbox: Any, **keywords: Any) -> tuple[list[Any], Any]:
        result: Any = loop(population, toolbox, **keywords)
        if not _is_generation(result, rows=keywords["ngen"] + 1):
            raise InputError(
                f"the algorithm {name} must return its population, evaluated, and a logbook with a "
                "row for the initial population and one for each generation, as DEAP's do"
            )
        individuals, logbook = result
        keywords["halloffame"].update(individuals)
        return individuals, logbook

    return Algorithm(checked, survivors=True)


def _is_generation(result: Any, rows: int) -> bool:
    """Whether a loop returned an evaluated population and a logbook with that many rows."""
    if not (isinstance(result, tuple) and len(result) == 2):
        return False
    individuals, logbook = result
    if not (isinstance(individuals, list) and individuals and isinstance(logbook, tools.Logbook)):
        return False
    return len(logbook) == rows and all(one.fitness.valid for one in individuals)


def _check_usual(row: Algorithm, keywords: Mapping[str, Any]) -> None:
    """Raise :class:`InputError` for rates and sizes that DEAP's loops would fail on."""
    rates = {key: _rate(key, keywords[key]) for key in ("cxpb", "mutpb") if key in keywords}
    sizes = {key: keywords[key] for key in ("mu", "lambda_") if key in keywords}
    for key, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise InputError(f"{key} is {size}: give a number of individuals, at least 1")
    if row.run in (algorithms.eaMuPlusLambda, algorithms.eaMuCommaLambda):
        if sum(rates.values()) > 1:
            raise InputError(
                f"cxpb {rates['cxpb']} and mutpb {rates['mutpb']} add up to more than 1: "
                f"{row.name} either mates or mutates a child, lower one of them"
            )
        if row.run is algorithms.eaMuCommaLambda and sizes["lambda_"] < sizes["mu"]:
            raise InputError(
                f"lambda_ is {sizes['lambda_']}: give at least mu, {sizes['mu']}, as {row.name} "
                "selects mu survivors among lambda_ children"
            )


def _rate(key: str, value: Any) -> float:
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InputError(f"{key} is {value}: a probability lies in [0, 1]")
    return float(value)
