"""Run any algorithm one generation at a time, with limits and a callback.

DEAP's algorithms have neither. Repeated calls with ``ngen=1`` give the bit-identical run, so none
of their code is copied here. An algorithm that is a generator is resumed for each generation.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from deap import tools

from sos_deap.errors import InputError
from sos_deap.search.algorithms import ALGORITHMS, Algorithm, algorithm_of
from sos_deap.search.bound import registered_bound, unbounded, with_bound
from sos_deap.search.chromosome import within
from sos_deap.search.context import context_of
from sos_deap.search.limits import Limits
from sos_deap.search.named import check_sizes
from sos_deap.search.runner import Runner
from sos_deap.search.statistics import flat_row
from sos_deap.search.strategies.strategy import Strategy
from sos_deap.search.validation import Validation

if TYPE_CHECKING:
    from pandas import DataFrame


class _Evolution(NamedTuple):
    population: list[Any]
    logbook: Any
    halloffame: Any
    stopped_by: str


class Evolution(_Evolution):
    """What :func:`evolve` returns: a tuple of the first four of these.

    :param population: the last population, evaluated.
    :param logbook: DEAP's logbook with one row per generation; row 0 is the initial population.
    :param halloffame: the best chromosomes: those within the maximum sparsity, and of a
        strategy only those from which no further gene can be removed within it.
    :param stopped_by: why the search stopped: the name of a limit (a field of
        :class:`sos_deap.search.limits.Limits`), ``"max_sparsity"``, or ``"finished"`` if a strategy
        had no proposals left or a generator ended.
    """

    #: The loss in fitness from the removal of each gene, of a strategy that has measured it.
    losses: Sequence[float] | None = None

    def frame(self) -> DataFrame:
        """Return the logbook as a pandas ``DataFrame``, one row per generation.

        The value ``max`` of the chapter ``fitness`` is the column ``fitness_max``.
        """
        import pandas  # noqa: PLC0415, a search does not need it

        return pandas.DataFrame([flat_row(self.logbook, i) for i in range(len(self.logbook))])


def evolve(
    toolbox: Any,
    algorithm: str | Callable[..., Any] | Algorithm = "sos-repaired",
    *,
    population: int | list[Any] = 10,
    generations: int = 100,
    crossover_rate: float = 0.9,
    max_sparsity: float | None = None,
    limits: Limits | None = None,
    stats: Any = None,
    halloffame: Any = None,
    logbook: Any = None,
    on_generation: Callable[[int, Any], None] | None = None,
    **parameters: Any,
) -> Evolution:
    """Evolve a population until a limit is reached (Algorithm 1, lines 2 and 10).

    A strategy (:class:`sos_deap.search.strategies.strategy.Strategy`) sets the size of its
    generations itself. Without a limit on evaluations, tokens or seconds it is limited to
    ``population * (generations + 1)`` evaluations. At its end the finalists are scored on all
    examples, as one more generation.

    With ``toolbox.search.validation``, the hall of fame is scored on the validation examples at the
    end of the search and ordered by that fitness.

    :param toolbox: a DEAP toolbox, as :func:`sos_deap.register` fills it. Its ``evaluate`` computes
        every fitness, with whatever function or decorator the user registered. Strategies look
        beyond the maximum sparsity: they set the keyword argument ``max_sparsity`` of ``evaluate``,
        if it was registered with one, to 1. Its ``search``, optional in loops, holds what DEAP's
        aliases do not (:class:`sos_deap.search.context.SearchContext`).
    :param algorithm: a name in :data:`sos_deap.search.algorithms.ALGORITHMS`, optionally followed
        by ``,key=value`` parameters, or a function with the stock DEAP signature, such as
        ``algorithms.eaSimple`` (see :func:`sos_deap.search.algorithms.algorithm_of`), which is
        called once per generation, so that its local variables do not persist; or a generator
        function ``(population, toolbox, ...)``, whose local variables do. A generator yields the
        individuals of each generation, first the initial ones. Those without a valid fitness are
        evaluated before it is resumed; the statistics and the hall of fame are of these
        individuals. It evaluates others itself by ``toolbox.map(toolbox.evaluate, ...)``.
    :param population: the initial individuals, or their number, at least 2.
    :param generations: maximum number of generations G, at least 0.
    :param crossover_rate: C of Algorithm 2, a probability.
    :param max_sparsity: S, from 0 to 1. No individual above it enters the hall of fame, a strategy
        removes as much as S allows, and the literal algorithm of the paper stops when a chromosome
        reaches it. Default: the one that the toolbox was registered with.
    :param limits: further limits, such as ``Limits(threshold=tau, seconds=60)``.
    :param stats: a DEAP ``Statistics`` or ``MultiStatistics``.
    :param halloffame: a DEAP ``HallOfFame`` to fill. Default: one of size 1, or of the number of
        finalists with validation, or a ``ParetoFront`` if a fitness has several values.
    :param logbook: an empty DEAP ``Logbook`` to fill, which can be read during the search.
        Default: a new one.
    :param on_generation: called after each generation, the initial population's (0) included, with
        the generation's number and the hall of fame; for a strategy with a list of its incumbent.
    :param parameters: more keyword arguments of the algorithm, such as ``mutpb``.
    :returns: population, logbook, hall of fame, and why the search stopped.
    :raises InputError: if the algorithm or one of its parameters is unknown; if ``population``,
        ``generations``, ``crossover_rate`` or ``max_sparsity`` is out of range, or ``max_sparsity``
        is above the toolbox's in a loop; if the number of fitness values does not fit the
        algorithm; if a strategy has no space; if the limits leave nothing after the cost of
        validation; and if the time is over before a population is evaluated.
    """
    size = population if isinstance(population, int) else len(population)
    row = algorithm_of(algorithm, **parameters)
    check_evolution(row, size, generations, crossover_rate)
    individuals = toolbox.population(n=size) if isinstance(population, int) else population
    pareto = len(individuals[0].fitness.weights) > 1
    check_values(row, several=pareto)
    if row.select is not None:
        toolbox = copy.copy(toolbox)  # the caller's toolbox keeps its own selection
        toolbox.register("select", row.select)
    if max_sparsity is not None:
        toolbox = _bounded(toolbox, row, max_sparsity)
    context = context_of(toolbox)
    validation = context.validation
    halloffame = _new_halloffame(pareto, validation) if halloffame is None else halloffame
    logbook = tools.Logbook() if logbook is None else logbook
    run = Runner(
        toolbox,
        context,
        halloffame,
        logbook,
        max_sparsity=registered_bound(toolbox.evaluate) if max_sparsity is None else max_sparsity,
        stats=stats,
        on_generation=on_generation,
    )
    limits = without_validation(all_limits(row, limits or Limits(), size, generations), toolbox)
    strategy = None if row.strategy is None else strategy_of(row, toolbox, individuals, limits)
    if strategy is None:
        last, reason = run.loop(row, individuals, row.keywords(size, crossover_rate), limits)
    else:
        last, reason = run.strategy(strategy, limits)
    if validation is not None and len(halloffame):
        validation.choose(halloffame, unbounded(toolbox.evaluate))
    found = Evolution(last, logbook, halloffame, reason)
    found.losses = None if strategy is None else strategy.losses
    return found


def _new_halloffame(pareto: bool, validation: Validation | None) -> Any:
    """Return an empty hall of fame of the size that the choice of the winner needs."""
    if pareto:
        return tools.ParetoFront()
    return tools.HallOfFame(1 if validation is None else validation.finalists)


def _bounded(toolbox: Any, row: Algorithm, max_sparsity: float) -> Any:
    """Return a copy of a toolbox for a maximum sparsity other than the registered one.

    :raises InputError: for a sparsity outside [0, 1], or of a loop above the registered one.
    """
    if not 0 <= max_sparsity <= 1:
        raise InputError(f"max_sparsity is {max_sparsity}: a sparsity lies in [0, 1]")
    toolbox, context = copy.copy(toolbox), context_of(toolbox)
    if row.strategy is not None and context.space is not None:
        space = replace(context.space, max_sparsity=max_sparsity)
        toolbox.search = replace(context, space=space)
        return toolbox
    registered = registered_bound(toolbox.evaluate)
    if not within(max_sparsity, registered):
        raise InputError(
            f"max_sparsity is {max_sparsity}, but the toolbox was registered with {registered}, "
            "above which the fitness is the worst: register the toolbox with the larger value"
        )
    toolbox.evaluate = with_bound(toolbox.evaluate, max_sparsity)
    return toolbox


def strategy_of(row: Algorithm, toolbox: Any, individuals: list[Any], limits: Limits) -> Strategy:
    """Make the strategy of an algorithm.

    :param row: an algorithm that has a strategy.
    :param toolbox: a DEAP toolbox, whose ``search.space`` the strategy chooses from.
    :param individuals: the initial population.
    :param limits: as :func:`without_validation` returns them; the budget is what they leave.
    :raises InputError: for a toolbox without a space, and for parameters that the strategy refuses.
    """
    assert row.strategy is not None
    context = context_of(toolbox)
    space = context.space
    if space is None:
        raise InputError(
            f"the algorithm {row.name} needs toolbox.search.space: let sos_deap.register fill the "
            "toolbox, or set toolbox.search to a SearchContext with a Space"
        )
    spent = context.spent_after(tools.Logbook())
    left = [math.inf]  # in evaluations on all examples
    if limits.evaluations is not None:
        left.append(limits.evaluations - spent["evaluations"])
    if limits.tokens is not None and space.tokens:
        left.append((limits.tokens - spent["tokens"]) / space.tokens)
    return row.strategy(space, individuals, max(0.0, min(left)), **row.given)


def check_evolution(
    row: Algorithm, population: int, generations: int, crossover_rate: float
) -> None:
    """Check the settings of a search that every algorithm has.

    :param row: the algorithm.
    :param population: number of individuals.
    :param generations: maximum number of generations.
    :param crossover_rate: probability that two parents mate.
    :raises InputError: for a setting that is out of range.
    """
    if population < 2:
        raise InputError(
            f"the population is {population}: give at least 2, crossover needs parents"
        )
    check_sizes("the search", {"population": population})
    if generations < 0:
        raise InputError(f"generations is {generations}: give 0 or more")
    if not 0 <= crossover_rate <= 1:
        raise InputError(f"crossover_rate is {crossover_rate}: a probability lies in [0, 1]")
    if row.strategy is None:
        row.keywords(population, crossover_rate)


def all_limits(row: Algorithm, limits: Limits, population: int, generations: int) -> Limits:
    """Return limits with those that a number of generations implies.

    :param row: the algorithm.
    :param limits: the limits that the user gave.
    :param population: number of individuals.
    :param generations: maximum number of generations: of a loop a limit of its own; of a strategy
        ``population * (generations + 1)`` evaluations, if neither evaluations, tokens nor seconds
        are limited.
    """
    if row.strategy is None:
        return replace(limits, generations=generations)
    if (limits.evaluations, limits.tokens, limits.seconds) == (None, None, None):
        return replace(limits, evaluations=population * (generations + 1))
    return limits


def without_validation(limits: Limits, toolbox: Any) -> Limits:
    """Return limits less the cost of the toolbox's validation, if it has one.

    :raises InputError: if nothing is left for the search.
    """
    validation = context_of(toolbox).validation
    return limits if validation is None else validation.remaining(limits)


def check_values(row: Algorithm, several: bool) -> None:
    """Check that an algorithm fits the number of fitness values.

    :param row: the algorithm.
    :param several: whether a fitness has more than one value.
    :raises InputError: if the algorithm is for one value and there are several, or the reverse.
    """
    if several and not row.survivors:
        able = ", ".join(name for name, other in ALGORITHMS.items() if other.survivors)
        raise InputError(
            f"the algorithm {row.name} is for one fitness value, and the objective gives several: "
            f"use {able}"
        )
    if row.select is not None and not several:
        raise InputError(
            f"the algorithm {row.name} is for several fitness values, and the objective gives one: "
            "use the objective pareto"
        )
