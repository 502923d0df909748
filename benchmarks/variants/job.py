"""One run of one variant: search within the budget, then measure what it had found by when."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy

from benchmarks.variants.heldout import Yardstick, completed, described, text
from benchmarks.variants.plan import CHECKPOINTS, FRONT, Job
from benchmarks.variants.plan import described as told
from sos_deap import run as front
from sos_deap.errors import InputError, unknown
from sos_deap.evaluator import Evaluator
from sos_deap.outcome import versions
from sos_deap.run import RunConfig, evaluator_of, search
from sos_deap.search.chromosome import is_worst, within
from sos_deap.toolbox import most_removed

#: Generations for each that the budget is good for: chromosomes that were met before cost nothing,
#: and a search that meets no others has to end too.
_PATIENCE = 20


@dataclass(frozen=True)
class Budget:
    """What a run may spend; it ends at either.

    :param evaluations: chromosomes computed, each once; ``None`` where tokens are counted.
    :param tokens: that they are computed on; ``None`` where a task has none.
    """

    evaluations: int | None
    tokens: int | None

    def share(self, evaluations: float, tokens: float) -> float:
        """How much of it has been spent; above 1 once it is exceeded."""
        spent = ((evaluations, self.evaluations), (tokens, self.tokens))
        return max(used / limit for used, limit in spent if limit)


class Trace:
    """What a search has cost and found, generation by generation.

    What another run has computed, and the store knows, costs what it would have cost: the accounts
    must not depend on which run was first.

    :param evaluator: whose accounts to keep.
    :param budget: what may be spent.
    """

    def __init__(self, evaluator: Evaluator, budget: Budget) -> None:
        self.rows: list[dict[str, Any]] = []
        #: The incumbent after each generation, if there is one.
        self.incumbents: list[list[int] | None] = []
        #: How many chromosomes were in the cache after each generation.
        self.computed: list[int] = []
        #: The front after the last generation within the budget, of an objective of two values.
        self.front: list[list[int]] = []
        self._evaluator, self._budget = evaluator, budget
        self._started = time.perf_counter()

    def __call__(self, generation: int, halloffame: Any) -> None:
        """Note a generation; for ``on_generation``."""
        counted = self._evaluator.accounting
        evaluations = counted.forward_evaluations + counted.store_hits
        tokens = counted.tokens + counted.store_tokens
        share = self._budget.share(evaluations, tokens)
        best = incumbent(halloffame)
        genes = None if best is None else list(best)
        new = genes is not None and (not self.incumbents or genes != self.incumbents[-1])
        self.rows.append(
            {
                "generation": generation,
                "evaluations": evaluations,
                "tokens": tokens,
                "share": share,
                "seconds": round(time.perf_counter() - self._started, 3),
                "fitness": _fitness(best),
                "calibration": None if best is None else self._evaluator.known(best),
                "sparsity": None if best is None else self._evaluator.sparsity(best),
                "chromosome": text(genes) if new and genes else None,
            }
        )
        self.incumbents.append(genes)
        self.computed.append(sum(1 for _ in self._evaluator.evaluated()))
        if self._evaluator.objectives > 1 and share <= 1:
            self.front = [list(one) for one in halloffame]

    def at(self, share: float) -> int | None:
        """The last generation that ended within a share of the budget and left an incumbent."""
        found = None
        for i, row in enumerate(self.rows):
            if row["share"] <= share and self.incumbents[i] is not None:
                found = i
        return found

    def last_computed(self, generation: int, least: int) -> list[list[int]]:
        """What was computed up to a generation in as many whole generations as give the least."""
        stop = self.computed[generation]
        starts = [0, *self.computed[:generation]]
        start = max((s for s in starts if stop - s >= least), default=0)
        everything = [genes for genes, _ in self._evaluator.evaluated()]
        return everything[start:stop]


def incumbent(halloffame: Any) -> Any:
    """What a search would return now: the best; of a front what removes most; ``None`` if empty."""
    if not len(halloffame):
        return None
    best = halloffame[0]
    values = getattr(best, "fitness", None) and best.fitness.wvalues
    if values and len(values) > 1:
        return max(halloffame, key=lambda one: one.fitness.wvalues[::-1])
    return best


def _fitness(individual: Any) -> float | None:
    """The first value of its fitness, if it has been evaluated."""
    if individual is None or is_worst(individual):
        return None
    value: float = individual.fitness.values[0]
    return value


def try_out(kind: list[Job], heldout_metric: str | None = None) -> None:
    """Load what some jobs load: what is wrong with it is told before anything is written.

    :param kind: jobs that load the same.
    :param heldout_metric: the metric that is to be compared, if it is not the usual one.
    :raises InputError: for anything that is not there or does not fit.
    """
    evaluator = evaluator_of(*kind[0].config())
    yardstick = Yardstick(evaluator, *kind[0].yardstick())
    known = evaluator.metrics_of(evaluator.model, yardstick.calibration)
    if heldout_metric is not None and heldout_metric not in known:
        raise unknown("heldout_metric", heldout_metric, known)
    for job in kind:
        try:
            _try_search(job, evaluator, _budget(job, yardstick))
        except InputError as error:
            raise InputError(f"variant {job.variant}: {error}") from error


def _try_search(job: Job, evaluator: Evaluator, budget: Budget) -> None:
    """Make everything that a search is made of."""
    config, genes = _config(job, evaluator, budget), len(evaluator.head_map)
    if not most_removed(genes, job.problem.sparsity, evaluator.sparsity):
        raise InputError(
            f"sparsity {job.problem.sparsity} of {genes} heads is none: give a larger --sparsity"
        )
    possible = _possible(budget, evaluator)
    if config.population_size > possible:
        raise InputError(
            f"a population of {config.population_size} needs as many evaluations of "
            f"{evaluator.task.tokens} tokens, and the budget is good for {possible:.4g}: "
            "give a larger budget"
        )
    front._toolbox(config, evaluator)


def run_job(job: Job) -> dict[str, Any]:
    """Search and measure.

    :returns: the content of the job's file.
    :raises InputError: for settings that do not fit, and where nothing was found in time.
    """
    config, settings = job.config()
    evaluator = evaluator_of(config, settings)
    yardstick = Yardstick(evaluator, *job.yardstick())
    budget = _budget(job, yardstick)
    if evaluator.fidelity == "full":
        # In a race what is in the store takes no part, so that others would be dropped.
        evaluator.open_store(job.store)
    config = _config(job, evaluator, budget)
    trace = Trace(evaluator, budget)
    started = time.perf_counter()
    try:
        evolution = search(config, evaluator, trace)
    finally:
        evaluator.close_store()
    seconds = time.perf_counter() - started
    outcome = _outcome(job, evaluator, trace, config.population_size)
    started = time.perf_counter()
    measured = yardstick.measure(_to_measure(outcome, len(evaluator.head_map)))
    return {
        **told(job),
        "metric": {
            "name": yardstick.heldout.name,
            "greater_is_better": yardstick.heldout.greater_is_better,
        },
        "genes": len(evaluator.head_map),
        "budget_evaluations": budget.evaluations,
        "budget_tokens": budget.tokens,
        "evaluation_tokens": yardstick.calibration.tokens,
        "search_metric": evaluator.task.name,
        "stopped_by": evolution.stopped_by,
        "seconds": round(seconds, 3),
        "seconds_measuring": round(time.perf_counter() - started, 3),
        **outcome,
        "measured": measured,
        "trace": trace.rows,
        "data": {
            "search": described(evaluator.task),
            "calibration": described(yardstick.calibration),
            "heldout": described(yardstick.heldout),
        },
        "dtype": str(evaluator.model.dtype).removeprefix("torch."),
        "versions": versions(),
    }


def _budget(job: Job, yardstick: Yardstick) -> Budget:
    """In tokens: an evaluation of the budget is one on the calibration examples that all share.

    Who scores on half of them may do so twice as often, and who scores on more of them less often.
    """
    each, given = yardstick.calibration.tokens, job.problem.budget
    if not job.problem.in_tokens:
        return Budget(None, given * each) if each else Budget(given, None)
    if not each:
        raise InputError(
            f"the task {job.heldout_task} counts no tokens: give --budget, not --budget_tokens"
        )
    return Budget(None, given)


def _config(job: Job, evaluator: Evaluator, budget: Budget) -> RunConfig:
    """The settings of the run with its budget, and generations that do not end it before."""
    config, _ = job.config()
    generations = config.generations
    if "generations" not in job.flags:
        needed = _possible(budget, evaluator) / config.population_size
        generations = _PATIENCE * max(1, round(needed))
    return replace(
        config,
        store=str(job.store),
        max_evaluations=budget.evaluations,
        max_tokens=budget.tokens,
        generations=generations,
    )


def _possible(budget: Budget, evaluator: Evaluator) -> float:
    """How many evaluations on all of its examples a variant can afford."""
    counts: list[float] = [] if budget.evaluations is None else [budget.evaluations]
    if budget.tokens is not None and evaluator.task.tokens:
        counts.append(budget.tokens / evaluator.task.tokens)
    return min(counts)


def _outcome(job: Job, evaluator: Evaluator, trace: Trace, population: int) -> dict[str, Any]:
    """The incumbents at the checkpoints, of which the last is the winner, raw and completed."""
    removed = most_removed(len(evaluator.head_map), job.problem.sparsity, evaluator.sparsity)
    checkpoints = []
    for share in CHECKPOINTS:
        i = trace.at(share)
        if i is None:
            continue
        raw = trace.incumbents[i]
        assert raw is not None
        if not within(evaluator.sparsity(raw), job.problem.sparsity):
            raise RuntimeError(
                f"the incumbent of generation {i} removes {evaluator.sparsity(raw):.3f}, more than "
                f"{job.problem.sparsity}"
            )
        equal = completed(raw, removed, trace.last_computed(i, population), job.seed)
        row = trace.rows[i]
        cost = {name: row[name] for name in ("generation", "evaluations", "tokens", "seconds")}
        checkpoints.append({"share": share, **cost, "raw": text(raw), "equal": text(equal)})
    if not checkpoints:
        raise InputError(
            f"no generation of {job.variant} ended within the budget with a sub-model to show: "
            "give a larger budget or a smaller population"
        )
    return {
        "removed": removed,
        "initial": _initial(evaluator, trace),
        "checkpoints": checkpoints,
        "front": [text(genes) for genes in _spread(trace.front)],
    }


def _initial(evaluator: Evaluator, trace: Trace) -> list[str]:
    """What the first generation computed, in alphabetical order: it is the same for a seed."""
    everything = [genes for genes, _ in evaluator.evaluated()]
    return sorted(text(genes) for genes in everything[: trace.computed[0]])


def _spread(front: Sequence[list[int]]) -> list[list[int]]:
    """Some of a front, evenly by sparsity, both ends among them."""
    ordered = sorted(front, key=lambda genes: (sum(genes), genes))
    if len(ordered) <= FRONT:
        return ordered
    return [ordered[round(i)] for i in numpy.linspace(0, len(ordered) - 1, FRONT)]


def _to_measure(outcome: dict[str, Any], genes: int) -> list[list[int]]:
    """The dense model, the incumbents and the front."""
    texts = ["1" * genes, *outcome["front"]]
    texts += [row[form] for row in outcome["checkpoints"] for form in ("raw", "equal")]
    return [[int(gene) for gene in one] for one in texts]
