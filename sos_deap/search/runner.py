"""The loops that run a search: of DEAP's algorithms, of generators, and of strategies."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from deap import algorithms

from sos_deap.errors import InputError
from sos_deap.search.algorithms import Algorithm
from sos_deap.search.bound import unbounded
from sos_deap.search.chromosome import is_worst, within
from sos_deap.search.context import SearchContext
from sos_deap.search.limits import Limits, Spent
from sos_deap.search.space import Space
from sos_deap.search.strategies.strategy import Strategy


class _OutOfTime(Exception):  # noqa: N818
    """The limit on seconds was reached in the middle of a generation."""


class Runner:
    """One search: fills a hall of fame and a logbook, and stops at the first limit.

    :param toolbox: a DEAP toolbox.
    :param context: what the search needs beyond it.
    :param halloffame: a DEAP ``HallOfFame`` or ``ParetoFront`` to fill.
    :param logbook: a DEAP ``Logbook`` to fill.
    :param max_sparsity: largest share removed of an individual in the hall of fame; ``None`` for no
        bound.
    :param stats: a DEAP ``Statistics`` or ``MultiStatistics``, or ``None``.
    :param on_generation: called after each generation with its number and the best individuals, or
        ``None``.
    """

    def __init__(
        self,
        toolbox: Any,
        context: SearchContext,
        halloffame: Any,
        logbook: Any,
        *,
        max_sparsity: float | None,
        stats: Any,
        on_generation: Callable[[int, Any], None] | None,
    ) -> None:
        self._toolbox, self._context = toolbox, context
        self._hall, self._logbook = halloffame, logbook
        self._max_sparsity, self._stats, self._on_generation = max_sparsity, stats, on_generation
        self._logbook.header = ["gen", "nevals", *(stats.fields if stats else [])]
        self._started = time.perf_counter()
        self._best_values: Any = None  # weighted fitness values of the best individual
        self._best_generation = 0  # the generation in which it got them

    def loop(
        self, row: Algorithm, individuals: list[Any], keywords: dict[str, Any], limits: Limits
    ) -> tuple[list[Any], str]:
        """Run a loop with DEAP's signature or a generator, a generation at a time.

        :param row: the algorithm.
        :param individuals: the initial population.
        :param keywords: more keyword arguments of the loop.
        :param limits: when to stop.
        :returns: the last population, and why the search stopped.
        :raises InputError: if no population was evaluated in the time allowed, and if a generator
            yields something other than individuals, or nothing.
        """
        generations = (self._resumed if row.generator else self._called)(row, individuals, keywords)
        reason = None
        while reason is None:
            try:
                with self._until(limits.seconds):
                    following = next(generations, None)
            except _OutOfTime:
                evaluated = [individual for individual in individuals if individual.fitness.valid]
                return evaluated, self._out_of_time(limits)
            if following is None:
                return individuals, "finished"
            individuals = following
            self._remove_infeasible()
            reason = limits.reached(self._after(self._hall)) or self._literal_end(row, individuals)
        return individuals, reason

    def _called(
        self, row: Algorithm, individuals: list[Any], keywords: dict[str, Any]
    ) -> Iterator[list[Any]]:
        """Yield the population after each generation of a loop, which is called for each anew."""
        assert row.run is not None
        ngen = 0  # a segment begins with a row for the population it is given, which is new once
        while True:
            individuals, segment = row.run(
                individuals,
                self._toolbox,
                ngen=ngen,
                stats=self._stats,
                halloffame=self._hall,
                verbose=False,
                **keywords,
            )
            self._append(segment, ngen)
            yield individuals
            ngen = 1

    def _resumed(
        self, row: Algorithm, individuals: list[Any], keywords: dict[str, Any]
    ) -> Iterator[list[Any]]:
        """Yield the individuals of each generation of a generator, evaluated and recorded."""
        assert row.run is not None
        toolbox, evaluated = copy.copy(self._toolbox), 0

        def counting_map(function: Callable[..., Any], *arguments: Any) -> list[Any]:
            nonlocal evaluated
            found = list(self._toolbox.map(function, *arguments))
            evaluated += len(found)
            return found

        toolbox.map = counting_map
        for generation in row.run(individuals, toolbox, **keywords):
            individuals = _individuals(row, generation)
            invalid = [one for one in individuals if not one.fitness.valid]
            for one, values in zip(invalid, toolbox.map(toolbox.evaluate, invalid), strict=True):
                one.fitness.values = values
            self._hall.update([one for one in individuals if not is_worst(one)])
            record = self._stats.compile(individuals) if self._stats else {}
            self._logbook.record(gen=len(self._logbook), nevals=evaluated, **record)
            yield individuals
            evaluated = 0
        if not len(self._logbook):
            raise InputError(f"the algorithm {row.name} ended before it yielded a generation")

    def strategy(self, strategy: Strategy, limits: Limits) -> tuple[list[Any], str]:
        """Run a strategy under DEAP's ask-and-tell loop, then score its finalists on all examples.

        :param strategy: proposes individuals and learns from their fitness.
        :param limits: when to stop.
        :returns: the last population, and why the search stopped.
        :raises InputError: if no population was evaluated in the time allowed.
        """
        space, reason = strategy.space, None
        individuals: list[Any] = []
        while reason is None:
            try:
                with self._until(limits.seconds):
                    individuals = self._ask_and_tell(space, strategy.generate, strategy.update)
            except _OutOfTime:
                reason = self._out_of_time(limits)
                finalists = _unscored(strategy)
                break
            leaders = self._hall if strategy.incumbent is None else [strategy.incumbent]
            spent = self._after(leaders)
            finalists = _unscored(strategy)
            # The cost of the finalists counts as spent: they are always evaluated.
            reason = limits.reached(
                spent._replace(
                    evaluations=spent.evaluations + len(finalists),
                    tokens=spent.tokens + len(finalists) * space.tokens,
                )
            ) or ("finished" if strategy.done else None)
        if finalists:
            copies = [space.individual(genes) for genes in finalists]  # to score on all examples
            individuals = self._ask_and_tell(space, lambda: copies, lambda _: None)
            self._after(self._hall)
        return individuals, reason

    def _ask_and_tell(
        self, space: Space, ask: Callable[[], list[Any]], tell: Callable[[list[Any]], None]
    ) -> list[Any]:
        """Run one generation of DEAP's ``eaGenerateUpdate``; return its individuals."""
        toolbox = copy.copy(self._toolbox)
        toolbox.evaluate = unbounded(toolbox.evaluate)
        toolbox.register("generate", ask)
        toolbox.register("update", tell)
        individuals: list[Any]
        individuals, segment = algorithms.eaGenerateUpdate(
            toolbox, ngen=1, stats=self._stats, verbose=False
        )
        self._append(segment, 0)
        self._hall.update([i for i in individuals if space.solves(i) and not is_worst(i)])
        return individuals

    @contextmanager
    def _until(self, seconds: float | None) -> Iterator[None]:
        """Raise :class:`_OutOfTime` between forward passes once the search's time is over."""
        if seconds is None:
            yield
            return

        def check() -> None:
            if time.perf_counter() - self._started >= seconds:
                raise _OutOfTime

        with self._context.interruptible(check):
            yield

    def _out_of_time(self, limits: Limits) -> str:
        """Return the name of the limit; raise :class:`InputError` if nothing was evaluated."""
        if not len(self._logbook):
            raise InputError(
                f"no population was evaluated within {limits.seconds} s: allow more seconds, or "
                "give fewer examples or a smaller population"
            )
        return "seconds"

    def _after(self, leaders: Any) -> Spent:
        """Report a generation to the callback; return what the search has spent and reached."""
        generation = len(self._logbook) - 1
        if self._on_generation is not None:
            self._on_generation(generation, leaders)
        best = leaders[0] if len(leaders) else None
        values = best.fitness.wvalues if best is not None else None
        if values != self._best_values:  # another individual of equal fitness is no progress
            self._best_values, self._best_generation = values, generation
        return Spent(
            generations=generation,
            **self._context.spent_after(self._logbook),
            seconds=time.perf_counter() - self._started,
            threshold=max((one.fitness.wvalues[0] for one in self._hall), default=-math.inf),
            stagnation=generation - self._best_generation,
            sparsity=0.0 if best is None else self._context.sparsity(best),
        )

    def _literal_end(self, row: Algorithm, individuals: list[Any]) -> str | None:
        """Stop the paper's algorithm once a chromosome reaches S (Algorithm 1, line 10)."""
        bound, measure = self._max_sparsity, self._context.sparsity
        over = row.literal and bound is not None and max(map(measure, individuals)) >= bound
        return "max_sparsity" if over else None

    def _remove_infeasible(self) -> None:
        """Remove infeasible individuals, which fill a hall of fame while nothing better exists."""
        bound, hall = self._max_sparsity, self._hall
        for i in reversed(range(len(hall))):
            above = bound is not None and not within(self._context.sparsity(hall[i]), bound)
            if above or is_worst(hall[i]):
                hall.remove(i)

    def _append(self, segment: Any, row: int) -> None:
        """Copy one row of a segment's logbook, chapters included, under its true generation."""
        chapters = {
            name: {k: v for k, v in chapter[row].items() if k not in ("gen", "nevals")}
            for name, chapter in segment.chapters.items()
        }
        self._logbook.record(**{**segment[row], **chapters, "gen": len(self._logbook)})


def _individuals(row: Algorithm, generation: Any) -> list[Any]:
    """Return what a generator yielded as a list; raise :class:`InputError` for another thing."""
    found = list(generation) if isinstance(generation, list | tuple) else []
    if not found or not all(hasattr(one, "fitness") for one in found):
        raise InputError(
            f"the algorithm {row.name} must yield the individuals of each generation as a list"
        )
    return found


def _unscored(strategy: Strategy) -> list[Any]:
    """Return the finalists that were not scored on all examples yet."""
    return [i for i in strategy.finalists() if not strategy.space.solves(i)]
