"""Run any algorithm one generation at a time, with stop rules and a callback.

DEAP's algorithms have neither. Calling one again and again with ``ngen=1`` gives the bit-identical
run, so none of their code is copied here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from deap import tools

from sos_deap.errors import InputError, unknown
from sos_deap.search.algorithms import ALGORITHMS, Algorithm
from sos_deap.search.chromosome import is_worst, sparsity, within


class Evolution(NamedTuple):
    """What :func:`evolve` returns.

    :param population: the last population, evaluated.
    :param logbook: DEAP's logbook, a row a generation, the initial population's first.
    :param halloffame: the best chromosomes within the maximum sparsity.
    :param stopped_by: ``"generations"``, ``"threshold"`` or ``"max_sparsity"``.
    """

    population: list[Any]
    logbook: Any
    halloffame: Any
    stopped_by: str


def evolve(
    toolbox: Any,
    algorithm: str = "sos-repaired",
    *,
    population: int | list[Any] = 10,
    generations: int = 100,
    crossover_rate: float = 0.9,
    threshold: float | None = None,
    max_sparsity: float | None = None,
    stats: Any = None,
    halloffame: Any = None,
    on_generation: Callable[[int, Any], None] | None = None,
    **parameters: Any,
) -> Evolution:
    """Evolve a population until a stop rule holds (Algorithm 1, lines 2 and 10).

    :param toolbox: a DEAP toolbox, as :func:`sos_deap.register` fills it; its ``sparsity``, if it
        has one, measures an individual, else the share of its genes that are 0 does.
    :param algorithm: a name in :data:`sos_deap.search.algorithms.ALGORITHMS`.
    :param population: the initial individuals, or how many to draw.
    :param generations: most generations, G.
    :param crossover_rate: C of Algorithm 2.
    :param threshold: stop when a fitness reaches it, tau; ``None`` for never.
    :param max_sparsity: S: no individual above it enters the hall of fame, and an algorithm that
        follows the paper to the letter stops when one reaches it.
    :param stats: a DEAP ``Statistics`` or ``MultiStatistics``.
    :param halloffame: a DEAP ``HallOfFame`` to fill; ``None`` makes one of size 1, or a
        ``ParetoFront`` where a fitness has several values.
    :param on_generation: called after each generation, the initial population's (0) first, with its
        number and the hall of fame.
    :param parameters: more keyword arguments of the algorithm, such as ``mutpb``.
    :returns: population, logbook, hall of fame, and why it stopped.
    :raises InputError: for an unknown algorithm, a population below 2, negative generations, or a
        fitness of several values with an algorithm that chooses parents by its best.
    """
    size = population if isinstance(population, int) else len(population)
    row = check_evolution(algorithm, size, generations, crossover_rate)
    people = toolbox.population(n=size) if isinstance(population, int) else population
    pareto = len(people[0].fitness.weights) > 1
    if pareto:
        check_pareto(algorithm)
    keywords = {**row.parameters(size, crossover_rate), **parameters}
    fresh: Any = tools.ParetoFront() if pareto else tools.HallOfFame(1)
    hall = fresh if halloffame is None else halloffame
    measure = getattr(toolbox, "sparsity", sparsity)
    logbook = tools.Logbook()
    logbook.header = ["gen", "nevals", *(stats.fields if stats else [])]
    stopped_by = "generations"
    for generation in range(generations + 1):
        # A segment starts with a row for the population it is given; only the first is news.
        ngen = min(generation, 1)
        people, segment = row.run(
            people, toolbox, ngen=ngen, stats=stats, halloffame=hall, verbose=False, **keywords
        )
        _append(logbook, segment, ngen, generation)
        _remove_infeasible(hall, max_sparsity, measure)
        if on_generation is not None:
            on_generation(generation, hall)
        if reason := _stop(row, people, threshold, max_sparsity, measure):
            stopped_by = reason
            break
    return Evolution(people, logbook, hall, stopped_by)


def check_evolution(
    algorithm: str, population: int, generations: int, crossover_rate: float
) -> Algorithm:
    """The algorithm of that name, or an :class:`InputError` for a setting out of range."""
    if algorithm not in ALGORITHMS:
        raise unknown("algorithm", algorithm, ALGORITHMS)
    if population < 2:
        raise InputError(
            f"the population is {population}: give at least 2, crossover needs parents"
        )
    if generations < 0:
        raise InputError(f"generations is {generations}: give 0 or more")
    if not 0 <= crossover_rate <= 1:
        raise InputError(f"crossover_rate is {crossover_rate}: a probability lies in [0, 1]")
    return ALGORITHMS[algorithm]


def check_pareto(algorithm: str) -> None:
    """Raise :class:`InputError` for an algorithm that has no use for several fitness values."""
    if not ALGORITHMS[algorithm].survivors:
        able = ", ".join(name for name, row in ALGORITHMS.items() if row.survivors)
        raise InputError(
            f"the algorithm {algorithm} is for one fitness value, and the objective gives several: "
            f"use {able}"
        )


def _stop(
    row: Algorithm,
    population: list[Any],
    threshold: float | None,
    max_sparsity: float | None,
    measure: Callable[[Any], float],
) -> str | None:
    """The stop rule that holds, if any (Algorithm 1, line 10)."""
    best = max(individual.fitness.wvalues[0] for individual in population)
    if threshold is not None and best >= threshold:
        return "threshold"
    if row.literal and max_sparsity is not None and max(map(measure, population)) >= max_sparsity:
        return "max_sparsity"
    return None


def _remove_infeasible(
    hall: Any, max_sparsity: float | None, measure: Callable[[Any], float]
) -> None:
    """Take out of a hall of fame what filled it while nothing better was there."""
    for i in reversed(range(len(hall))):
        above = max_sparsity is not None and not within(measure(hall[i]), max_sparsity)
        if above or is_worst(hall[i]):
            hall.remove(i)


def _append(logbook: Any, segment: Any, row: int, generation: int) -> None:
    """Copy one row of a segment's logbook, chapters included, under its true generation."""
    chapters = {
        name: {k: v for k, v in chapter[row].items() if k not in ("gen", "nevals")}
        for name, chapter in segment.chapters.items()
    }
    logbook.record(**{**segment[row], **chapters, "gen": generation})
