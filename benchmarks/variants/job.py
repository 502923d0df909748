"""One run of one variant: search within the budget, then measure the incumbents at checkpoints."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy

from benchmarks.variants.heldout import Yardstick, completed, described, text
from benchmarks.variants.plan import CHECKPOINTS, FRONT, Job, identity
from benchmarks.variants.trace import Budget, Trace
from sos_deap.cards import versions
from sos_deap.errors import InputError, unknown
from sos_deap.evaluation.evaluator import Evaluator
from sos_deap.plan import Plan, evaluator_of, plan_of, search, toolbox_of
from sos_deap.search.chromosome import within
from sos_deap.search.space import Space

#: Maximum generations per generation that the budget allows: cache hits cost nothing, and a search
#: that proposes only known chromosomes has to end, too.
_PATIENCE = 20


def try_out(kind: list[Job], heldout_metric: str | None = None) -> None:
    """Load model, data and task of some jobs, to find errors before anything is written.

    :param kind: jobs with the same model, data and task.
    :param heldout_metric: the metric to compare; ``None`` for the default.
    :raises InputError: if something is missing or does not fit.
    """
    evaluator = evaluator_of(kind[0].plan())
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
    """Check the sparsity and the budget, and set up the search."""
    plan, genes = _plan(job.plan(), job, evaluator, budget), len(evaluator.gene_map)
    toolbox = toolbox_of(plan, evaluator)
    if toolbox.search.space.full([1] * genes):
        raise InputError(
            f"sparsity {job.problem.sparsity} of {genes} genes removes none: "
            "give a larger --sparsity"
        )
    possible = _possible(budget, evaluator)
    population = plan.config.population_size
    if population > possible:
        raise InputError(
            f"a population of {population} needs as many evaluations of "
            f"{evaluator.task.tokens} tokens, but the budget allows {possible:.4g}: "
            "give a larger budget"
        )


def run_job(job: Job) -> dict[str, Any]:
    """Run the search, and measure its incumbents.

    :returns: the content of the job's file.
    :raises InputError: for invalid settings, or if no incumbent was found within the budget.
    """
    plan = job.plan()
    evaluator = evaluator_of(plan)
    yardstick = Yardstick(evaluator, *job.yardstick())
    budget = _budget(job, yardstick)
    evaluator.open_store(job.store)
    plan = _plan(plan, job, evaluator, budget)
    trace = Trace(evaluator, budget)
    started = time.perf_counter()
    try:
        evolution = search(plan, evaluator, trace)
        if evaluator.validation is not None:
            trace(len(trace.rows), evolution.halloffame)  # validation may change the winner
    finally:
        evaluator.close_store()
    seconds = time.perf_counter() - started
    outcome = _outcome(job, evaluator, trace, toolbox_of(plan, evaluator).search.space)
    started = time.perf_counter()
    measured = yardstick.measure(_to_measure(outcome, len(evaluator.gene_map)))
    return {
        **identity(job),
        "metric": {
            "name": yardstick.heldout.name,
            "greater_is_better": yardstick.heldout.greater_is_better,
        },
        "genes": len(evaluator.gene_map),
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
    """Return the budget in tokens; one evaluation is one on the shared calibration examples.

    A search that scores on half of these examples may evaluate twice as many sub-models.
    """
    each, given = yardstick.calibration.tokens, job.problem.budget
    if not job.problem.in_tokens:
        return Budget(None, given * each) if each else Budget(given, None)
    if not each:
        raise InputError(
            f"the task {job.heldout_task} does not count tokens: give --budget, not --budget_tokens"
        )
    return Budget(None, given)


def _plan(plan: Plan, job: Job, evaluator: Evaluator, budget: Budget) -> Plan:
    """Return the plan with the budget, and enough generations that they do not end it earlier.

    A search may exceed the budget by one generation, which is ignored; validation may not.
    """
    config = plan.config
    if evaluator.validation is not None:
        budget = budget.less(config.population_size, evaluator.task.tokens)
    generations = config.generations
    if "generations" not in job.flags:
        needed = _possible(budget, evaluator) / config.population_size
        generations = _PATIENCE * max(1, round(needed))
    config = replace(
        config,
        store=str(job.store),
        max_evaluations=budget.evaluations,
        max_tokens=budget.tokens,
        generations=generations,
    )
    return plan_of(config, plan.settings)


def _possible(budget: Budget, evaluator: Evaluator) -> float:
    """Return how many evaluations on all of the variant's examples the budget allows."""
    counts: list[float] = [] if budget.evaluations is None else [budget.evaluations]
    if budget.tokens is not None and evaluator.task.tokens:
        counts.append(budget.tokens / evaluator.task.tokens)
    return min(counts)


def _outcome(job: Job, evaluator: Evaluator, trace: Trace, space: Space) -> dict[str, Any]:
    """Return the incumbents at the checkpoints, raw and at equal sparsity; the last wins."""
    population = job.plan().config.population_size
    checkpoints = []
    for share in CHECKPOINTS:
        i = trace.at(share)
        if i is None:
            continue
        raw = trace.incumbents[i]
        assert raw is not None
        if not within(evaluator.sparsity(raw), job.problem.sparsity):
            raise RuntimeError(
                f"the incumbent of generation {i} has sparsity {evaluator.sparsity(raw):.3f}, "
                f"more than {job.problem.sparsity}"
            )
        equal = completed(raw, space, trace.last_computed(i, population), job.seed)
        row = trace.rows[i]
        cost = {name: row[name] for name in ("generation", "evaluations", "tokens", "seconds")}
        checkpoints.append({"share": share, **cost, "raw": text(raw), "equal": text(equal)})
    if not checkpoints:
        raise InputError(
            f"{job.variant} found no sub-model in a generation within the budget: "
            "give a larger budget or a smaller population"
        )
    return {
        "removed": checkpoints[-1]["equal"].count("0"),
        "initial": _initial(evaluator, trace),
        "checkpoints": checkpoints,
        "front": [text(genes) for genes in _spread(trace.front)],
    }


def _initial(evaluator: Evaluator, trace: Trace) -> list[str]:
    """Return the sorted chromosomes of the first generation, equal for equal seeds."""
    everything = [genes for genes, _ in evaluator.history()]
    return sorted(text(genes) for genes in everything[: trace.computed[0]])


def _spread(front: Sequence[list[int]]) -> list[list[int]]:
    """Select points of a front evenly by sparsity, including both ends."""
    ordered = sorted(front, key=lambda genes: (sum(genes), genes))
    if len(ordered) <= FRONT:
        return ordered
    return [ordered[round(i)] for i in numpy.linspace(0, len(ordered) - 1, FRONT)]


def _to_measure(outcome: dict[str, Any], genes: int) -> list[list[int]]:
    """Return the chromosomes to measure: the dense model, the incumbents and the front."""
    texts = ["1" * genes, *outcome["front"]]
    texts += [row[form] for row in outcome["checkpoints"] for form in ("raw", "equal")]
    return [[int(gene) for gene in one] for one in texts]
