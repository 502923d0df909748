"""Run any algorithm one generation at a time, with limits and a callback.

DEAP's algorithms have neither. Calling one again and again with ``ngen=1`` gives the bit-identical
run, so none of their code is copied here.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from deap import algorithms, tools

from sos_deap.errors import InputError
from sos_deap.search.algorithms import ALGORITHMS, Algorithm, algorithm_of
from sos_deap.search.chromosome import is_worst, sparsity, within
from sos_deap.search.limits import Limits, Spent
from sos_deap.search.named import check_sizes
from sos_deap.search.space import Space, most_removed
from sos_deap.search.strategies.strategy import Strategy
from sos_deap.search.validation import Validation


class Evolution(NamedTuple):
    """What :func:`evolve` returns.

    :param population: the last population, evaluated.
    :param logbook: DEAP's logbook, a row a generation, the initial population's first.
    :param halloffame: the best chromosomes within the maximum sparsity; of an algorithm that
        searches at constant sparsity, of those that remove just as much.
    :param stopped_by: the name of the limit that ended it (see
        :class:`sos_deap.search.limits.Limits`), ``"max_sparsity"``, or ``"finished"`` where the
        algorithm had nothing left to propose.
    """

    population: list[Any]
    logbook: Any
    halloffame: Any
    stopped_by: str


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

    An algorithm that asks and tells (a :class:`sos_deap.search.strategies.strategy.Strategy`) has
    generations of any size: ``population * (generations + 1)`` evaluations are its limit unless
    evaluations, tokens or seconds are limited. At its end the finalists are scored on all examples,
    as one more generation. With ``toolbox.validation`` the hall of fame is scored on other examples
    then, and ordered by that.

    :param toolbox: a DEAP toolbox, as :func:`sos_deap.register` fills it; its ``sparsity``, if it
        has one, measures an individual, else the share of its genes that are 0 does; its ``spent``,
        if it has one, returns evaluations and tokens; its ``space`` is what strategies choose from;
        its ``validation``, if it has one, chooses the winner
        (:class:`sos_deap.search.validation.Validation`). Its ``evaluate`` judges every individual,
        whatever it was registered or decorated with; strategies, which look beyond the maximum
        sparsity, set its keyword argument ``max_sparsity``, if it has one, to 1.
    :param algorithm: a name in :data:`sos_deap.search.algorithms.ALGORITHMS`, with parameters after
        commas if any, or a function with the stock DEAP signature, such as ``algorithms.eaSimple``
        (see :func:`sos_deap.search.algorithms.algorithm_of`). What it keeps in variables of its own
        it forgets from one generation to the next.
    :param population: the initial individuals, or how many to draw.
    :param generations: most generations, G.
    :param crossover_rate: C of Algorithm 2.
    :param max_sparsity: S: no individual above it enters the hall of fame, a strategy removes just
        so much, and an algorithm that follows the paper to the letter stops when one reaches it;
        ``None`` for the one that the toolbox was registered with.
    :param limits: further ends, such as ``Limits(threshold=tau, seconds=60)``.
    :param stats: a DEAP ``Statistics`` or ``MultiStatistics``.
    :param halloffame: a DEAP ``HallOfFame`` to fill; ``None`` makes one of size 1, or of the
        finalists to validate, or a ``ParetoFront`` where a fitness has several values.
    :param logbook: a DEAP ``Logbook`` to fill, an empty one, to look at while the search goes on;
        ``None`` makes one.
    :param on_generation: called after each generation, the initial population's (0) first, with its
        number and the hall of fame; of a strategy with a list of its incumbent.
    :param parameters: more keyword arguments of the algorithm, such as ``mutpb``.
    :returns: population, logbook, hall of fame, and why it stopped.
    :raises InputError: for an unknown algorithm or parameter of it, a population below 2, negative
        generations, a fitness of several values with an algorithm that chooses parents by its best,
        a fitness of one value with an algorithm for several, for a strategy without a space, for
        limits that leave nothing beside the validation, for a maximum sparsity outside [0, 1] or
        above the toolbox's in a loop, and if the time is over before a population is evaluated.
    """
    size = population if isinstance(population, int) else len(population)
    row = algorithm_of(algorithm, **parameters)
    check_evolution(row, size, generations, crossover_rate)
    people = toolbox.population(n=size) if isinstance(population, int) else population
    pareto = len(people[0].fitness.weights) > 1
    check_values(row, several=pareto)
    if row.select is not None:
        toolbox = copy.copy(toolbox)  # the caller's keeps its own
        toolbox.register("select", row.select)
    if max_sparsity is not None:
        toolbox = _bounded(toolbox, row, max_sparsity)
    validation: Validation | None = getattr(toolbox, "validation", None)
    size_of_hall = 1 if validation is None else validation.finalists
    fresh: Any = tools.ParetoFront() if pareto else tools.HallOfFame(size_of_hall)
    run = _Run(
        toolbox,
        fresh if halloffame is None else halloffame,
        getattr(toolbox, "sparsity", sparsity),
        max_sparsity,
        stats,
        tools.Logbook() if logbook is None else logbook,
        on_generation,
    )
    limits = all_limits(row, limits or Limits(), size, generations)
    limits = beside_validation(limits, toolbox)
    if row.strategy is None:
        evolution = run.loop(row, people, row.keywords(size, crossover_rate), limits)
    else:
        evolution = run.strategy(strategy_of(row, toolbox, people, limits), limits)
    if validation is not None and len(evolution.halloffame):
        validation.choose(evolution.halloffame, unbounded(toolbox.evaluate))
    return evolution


def unbounded(evaluate: Any) -> Any:
    """A toolbox's ``evaluate`` without a maximum sparsity, if that is a keyword argument of it."""
    return _with_bound(evaluate, 1.0)


def _with_bound(evaluate: Any, max_sparsity: float) -> Any:
    if "max_sparsity" not in getattr(evaluate, "keywords", ()):
        return evaluate
    keywords = {**evaluate.keywords, "max_sparsity": max_sparsity}
    return partial(evaluate.func, *evaluate.args, **keywords)


def _bounded(toolbox: Any, row: Algorithm, max_sparsity: float) -> Any:
    """A toolbox like another, for a maximum sparsity that may be another than it was made for."""
    if not 0 <= max_sparsity <= 1:
        raise InputError(f"max_sparsity is {max_sparsity}: a sparsity lies in [0, 1]")
    toolbox = copy.copy(toolbox)
    space = getattr(toolbox, "space", None)
    if row.strategy is not None and space is not None:
        measure = getattr(toolbox, "sparsity", sparsity)
        toolbox.space = replace(space, removed=most_removed(len(space), max_sparsity, measure))
        return toolbox
    registered = getattr(toolbox.evaluate, "keywords", {}).get("max_sparsity", 1.0)
    if not within(max_sparsity, registered):
        raise InputError(
            f"max_sparsity is {max_sparsity}, and the toolbox was registered with {registered}, "
            "above which the fitness is the worst: register it with the greater one"
        )
    toolbox.evaluate = _with_bound(toolbox.evaluate, max_sparsity)
    return toolbox


def strategy_of(row: Algorithm, toolbox: Any, people: list[Any], limits: Limits) -> Strategy:
    """The strategy of an algorithm that asks and tells.

    :param row: the algorithm.
    :param toolbox: with the ``space`` that it chooses from.
    :param people: the initial individuals.
    :param limits: of which its budget is made; see :func:`all_limits`.
    :raises InputError: for a toolbox without a space, and for parameters that it refuses.
    """
    assert row.strategy is not None
    space = getattr(toolbox, "space", None)
    if space is None:
        raise InputError(
            f"the algorithm {row.name} needs toolbox.space: set it to a Space, or let "
            "sos_deap.register fill the toolbox"
        )
    spent = toolbox.spent() if hasattr(toolbox, "spent") else {"evaluations": 0, "tokens": 0}
    return row.strategy(space, people, _budget(limits, spent, space.tokens), **row.given)


def check_evolution(
    row: Algorithm, population: int, generations: int, crossover_rate: float
) -> None:
    """Raise :class:`InputError` for a setting that is out of range."""
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
    """The limits of a search, with those that its generations mean; see :func:`evolve`."""
    if row.strategy is None:
        return replace(limits, generations=generations)
    if (limits.evaluations, limits.tokens, limits.seconds) == (None, None, None):
        return replace(limits, evaluations=population * (generations + 1))
    return limits


def beside_validation(limits: Limits, toolbox: Any) -> Limits:
    """The limits of a search without what the choice of its winner takes, if there is one.

    :raises InputError: if that leaves nothing.
    """
    validation: Validation | None = getattr(toolbox, "validation", None)
    return limits if validation is None else validation.leaves(limits)


def check_values(row: Algorithm, several: bool) -> None:
    """Raise :class:`InputError` for an algorithm that is for another number of fitness values.

    :param row: the algorithm.
    :param several: whether a fitness has several values.
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


class _OutOfTime(Exception):  # noqa: N818
    """The seconds of a search are over in the middle of a generation."""


class _Run:
    """A search under way: its hall of fame, its logbook, and what it has spent."""

    def __init__(
        self,
        toolbox: Any,
        hall: Any,
        measure: Callable[[Any], float],
        max_sparsity: float | None,
        stats: Any,
        logbook: Any,
        on_generation: Callable[[int, Any], None] | None,
    ) -> None:
        self._toolbox, self._hall, self._measure = toolbox, hall, measure
        self._max_sparsity, self._stats, self._on_generation = max_sparsity, stats, on_generation
        self._logbook = logbook
        self._logbook.header = ["gen", "nevals", *(stats.fields if stats else [])]
        self._spent: Callable[[], Mapping[str, float]] = getattr(toolbox, "spent", self._count_rows)
        self._started = time.perf_counter()
        self._reached: Any = None  # by the best chromosome
        self._since = 0  # the generation that it is from

    def loop(
        self, row: Algorithm, people: list[Any], keywords: dict[str, Any], limits: Limits
    ) -> Evolution:
        """A loop of DEAP's kind, a generation at a time."""
        assert row.run is not None
        reason = None
        while reason is None:
            # A segment starts with a row for the population it is given; only the first is news.
            ngen = min(len(self._logbook), 1)
            try:
                with self._until(limits.seconds):
                    people, segment = row.run(
                        people,
                        self._toolbox,
                        ngen=ngen,
                        stats=self._stats,
                        halloffame=self._hall,
                        verbose=False,
                        **keywords,
                    )
            except _OutOfTime:
                people = [individual for individual in people if individual.fitness.valid]
                return Evolution(people, self._logbook, self._hall, self._out_of_time(limits))
            self._append(segment, ngen)
            self._remove_infeasible()
            reason = limits.reached(self._after(self._hall)) or self._literal_end(row, people)
        return Evolution(people, self._logbook, self._hall, reason)

    def strategy(self, strategy: Strategy, limits: Limits) -> Evolution:
        """A strategy under DEAP's ask and tell; at last its finalists on all examples."""
        space, reason = strategy.space, None
        people: list[Any] = []
        while reason is None:
            try:
                with self._until(limits.seconds):
                    people = self._ask_and_tell(space, strategy.generate, strategy.update)
            except _OutOfTime:
                reason = self._out_of_time(limits)
                finalists = [i for i in strategy.finalists() if not space.solves(i)]
                break
            leaders = self._hall if strategy.incumbent is None else [strategy.incumbent]
            spent = self._after(leaders)
            finalists = [i for i in strategy.finalists() if not space.solves(i)]
            # What they will cost is as good as spent.
            reason = limits.reached(
                spent._replace(
                    evaluations=spent.evaluations + len(finalists),
                    tokens=spent.tokens + len(finalists) * space.tokens,
                )
            ) or ("finished" if strategy.done else None)
        if finalists:
            whole = [space.individual(genes) for genes in finalists]
            people = self._ask_and_tell(space, lambda: whole, lambda _: None)
            self._after(self._hall)
        return Evolution(people, self._logbook, self._hall, reason)

    def _ask_and_tell(
        self, space: Space, ask: Callable[[], list[Any]], tell: Callable[[list[Any]], None]
    ) -> list[Any]:
        """A generation of DEAP's ``eaGenerateUpdate``."""
        toolbox = copy.copy(self._toolbox)
        toolbox.evaluate = unbounded(toolbox.evaluate)
        toolbox.register("generate", ask)
        toolbox.register("update", tell)
        people, segment = algorithms.eaGenerateUpdate(
            toolbox, ngen=1, stats=self._stats, verbose=False
        )
        self._append(segment, 0)
        self._hall.update([i for i in people if space.solves(i) and not is_worst(i)])
        found: list[Any] = people
        return found

    @contextmanager
    def _until(self, seconds: float | None) -> Iterator[None]:
        """End what is done inside, between forward passes, when the time of a search is over."""
        if seconds is None or not hasattr(self._toolbox, "interruptible"):
            yield
            return

        def check() -> None:
            if time.perf_counter() - self._started >= seconds:
                raise _OutOfTime

        with self._toolbox.interruptible(check):
            yield

    def _out_of_time(self, limits: Limits) -> str:
        """The name of the limit; raises :class:`InputError` if nothing was evaluated in time."""
        if not len(self._logbook):
            raise InputError(
                f"no population was evaluated within {limits.seconds} s: allow more seconds, or "
                "give fewer examples or a smaller population"
            )
        return "seconds"

    def _after(self, leaders: Any) -> Spent:
        """Tell of a generation; what has been spent after it."""
        generation = len(self._logbook) - 1
        if self._on_generation is not None:
            self._on_generation(generation, leaders)
        best = leaders[0] if len(leaders) else None
        reached = best.fitness.wvalues if best is not None else None
        if reached != self._reached:  # an equal one in its place is no progress
            self._reached, self._since = reached, generation
        return Spent(
            generations=generation,
            **self._spent(),
            seconds=time.perf_counter() - self._started,
            threshold=max((one.fitness.wvalues[0] for one in self._hall), default=-math.inf),
            stagnation=generation - self._since,
            sparsity=0.0 if best is None else self._measure(best),
        )

    def _count_rows(self) -> dict[str, float]:
        """Without an evaluator that knows better: all the evaluations that were asked for."""
        return {"evaluations": sum(self._logbook.select("nevals")), "tokens": 0}

    def _literal_end(self, row: Algorithm, people: list[Any]) -> str | None:
        """Algorithm 1, line 10, to the letter."""
        bound = self._max_sparsity
        over = row.literal and bound is not None and max(map(self._measure, people)) >= bound
        return "max_sparsity" if over else None

    def _remove_infeasible(self) -> None:
        """Take out of the hall of fame what filled it while nothing better was there."""
        bound, hall = self._max_sparsity, self._hall
        for i in reversed(range(len(hall))):
            above = bound is not None and not within(self._measure(hall[i]), bound)
            if above or is_worst(hall[i]):
                hall.remove(i)

    def _append(self, segment: Any, row: int) -> None:
        """Copy one row of a segment's logbook, chapters included, under its true generation."""
        chapters = {
            name: {k: v for k, v in chapter[row].items() if k not in ("gen", "nevals")}
            for name, chapter in segment.chapters.items()
        }
        self._logbook.record(**{**segment[row], **chapters, "gen": len(self._logbook)})


def _budget(limits: Limits, spent: Mapping[str, float], tokens: float) -> float:
    """The evaluations on all examples, of so many tokens each, that the limits still allow."""
    left = []
    if limits.evaluations is not None:
        left.append(limits.evaluations - spent["evaluations"])
    if limits.tokens is not None and tokens:
        left.append((limits.tokens - spent["tokens"]) / tokens)
    return max(0.0, min(left, default=math.inf))
