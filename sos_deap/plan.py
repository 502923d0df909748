"""From the settings of a run to a checked :class:`Plan`, and from a plan to its search."""

from __future__ import annotations

import math
import random
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy
from deap import base

from sos_deap.budget import Budget, budget_of
from sos_deap.config import RunConfig
from sos_deap.engines import check_engine
from sos_deap.errors import InputError
from sos_deap.evaluation.evaluator import OPTIONS, Evaluator
from sos_deap.evaluation.store import check_store
from sos_deap.files.run_folder import TIME_TABLE, read_channels
from sos_deap.flags import changed_flags
from sos_deap.loss_settings import WIDEST, check_max_loss, with_validation_samples
from sos_deap.models.costs import check_time_options
from sos_deap.models.find_genes import checked_kinds
from sos_deap.models.quantised import check_quantisations
from sos_deap.models.uniform import uniform_counts
from sos_deap.presets import PRESETS
from sos_deap.refit_settings import with_refit_samples
from sos_deap.report.live import check_tensorboard
from sos_deap.search.algorithms import Algorithm, algorithm_of
from sos_deap.search.drive import (
    Evolution,
    all_limits,
    check_evolution,
    check_values,
    evolve,
    strategy_of,
    without_validation,
)
from sos_deap.search.limits import Limits
from sos_deap.search.statistics import statistics
from sos_deap.tasks.objectives import Objective, checked_objective
from sos_deap.tasks.registry import resolved_task
from sos_deap.tasks.settings import TaskSettings
from sos_deap.toolbox import check_operators, chosen_operators, register


@dataclass(frozen=True)
class Plan:
    """The settings of a run, resolved and checked; :func:`plan_of` makes it.

    :param config: settings of the run, with the task resolved.
    :param settings: settings of the task.
    :param algorithm: row of the algorithm, with the parameters given.
    :param objective: key of :data:`sos_deap.tasks.objectives.OBJECTIVES`.
    :param fitness: function from metric and sparsity to fitness values.
    :param operators: keyword arguments of :func:`sos_deap.register`: ``crossover``, ``mutation``,
        ``selection``, ``mutation_rate``, ``tournament_size``.
    :param budget: how much may be removed.
    :param limits: all limits of the search, also those that follow from the generations.
    """

    config: RunConfig
    settings: TaskSettings
    algorithm: Algorithm
    objective: str
    fitness: Objective
    operators: Mapping[str, Any]
    budget: Budget
    limits: Limits

    def written(self) -> dict[str, Any]:
        """Return the content of ``config.json``; infinities are texts, which JSON lacks."""
        return {
            name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in (asdict(self._new_run()) | asdict(self.settings)).items()
        }

    def command(self) -> str:
        """Return the shell command that repeats the run in another folder."""
        given = changed_flags(replace(self._new_run(), output_dir=None), self.settings)
        return shlex.join(["python", "-m", "sos_deap.run", *given])

    def _new_run(self) -> RunConfig:
        """Return the settings of the run as if it had not been resumed."""
        return replace(self.config, resume=None)


def plan_of(config: RunConfig, settings: TaskSettings) -> Plan:
    """Resolve and check the settings of a run, before anything is loaded or written.

    Of the model only its ``config.json`` is read, for the task ``"auto"``.

    :param config: settings of the run.
    :param settings: settings of its task.
    :raises InputError: for settings that are out of range, unknown or do not fit each other.
    """
    limits = _limits(config)
    _check_process(config)
    row = algorithm_of(config.algorithm)
    objective = row.objective if config.objective is None else config.objective
    check_evolution(row, config.population_size, config.generations, config.crossover_rate)
    check_values(row, several=objective == "pareto")
    _check_fit(config, row)
    operators = _operators(config, row, objective)
    checked_kinds(config.genes)
    check_max_loss(config.max_loss, row.name, row.strategy is not None, row.given)
    budget = _budget(config)
    fitness = checked_objective(objective, config.tradeoff_weight)
    return Plan(
        config=replace(config, task=resolved_task(config.task, config.model)),
        settings=with_validation_samples(config.max_loss, with_refit_samples(config, settings)),
        algorithm=row,
        objective=objective,
        fitness=fitness,
        operators=operators,
        budget=budget,
        limits=all_limits(row, limits, config.population_size, config.generations),
    )


def _limits(config: RunConfig) -> Limits:
    return Limits(
        evaluations=config.max_evaluations,
        tokens=config.max_tokens,
        seconds=config.max_seconds,
        threshold=config.threshold,
        stagnation=config.stagnation,
        sparsity=config.target_sparsity,
    )


def _check_process(config: RunConfig) -> None:
    """Check what does not depend on the search: preset, engine, TensorBoard, seed and store."""
    if config.algorithm in PRESETS:
        raise InputError(
            f"algorithm is {config.algorithm}, which is a preset of several settings: give it "
            f"first, python -m sos_deap.run {config.algorithm}"
        )
    check_quantisations(config.quantize, config.written)
    check_engine(config.engine, config.workers, config.hostfile)
    if config.tensorboard:
        check_tensorboard()
    if not 0 <= config.seed < 2**32:
        raise InputError(f"seed is {config.seed}: give a number from 0 to {2**32 - 1}")
    if config.store is not None:
        check_store(Path(config.store))


def _check_fit(config: RunConfig, row: Algorithm) -> None:
    """Refuse settings that the algorithm does not use."""
    if row.select is not None and config.selection is not None:
        raise InputError(
            f"the algorithm {row.name} has a selection of its own: leave --selection out, or use "
            "eaMuPlusLambda with the objective pareto"
        )
    if row.strategy is None:
        return
    for name in ("crossover", "mutation", "selection"):
        if getattr(config, name) is not None:
            raise InputError(
                f"the algorithm {row.name} proposes sub-models itself, without a {name}: leave "
                f"--{name} out"
            )
    if config.prior is not None:
        raise InputError(
            f"the algorithm {row.name} does not use --prior: leave it out, or use "
            f"sweep,prior={config.prior}"
        )
    if config.layout == "uniform":
        raise InputError(
            f"the algorithm {row.name} does not keep the same number of heads in every layer, "
            "which the layout uniform needs: use sos-repaired, or the layout sliced"
        )


def _operators(config: RunConfig, row: Algorithm, objective: str) -> dict[str, Any]:
    """Return the operators as keyword arguments of :func:`sos_deap.register`, checked."""
    chosen: dict[str, Any] = {
        "crossover": config.crossover or ("paper" if row.literal else "sign-aware"),
        "mutation": config.mutation or "flip",
        "selection": config.selection or ("nsga2" if objective == "pareto" else "tournament"),
        "mutation_rate": config.mutation_rate,
        "tournament_size": config.tournament_size,
    }
    chosen_operators(**chosen)
    return chosen


def _budget(config: RunConfig) -> Budget:
    """Return the budget that is given or the default, checked as far as possible."""
    names = ("genes", "sparsity_of", "max_sparsity", "speedup", "target_parameters", "target_bytes")
    given = {name: getattr(config, name) for name in names}
    if config.max_loss is not None and all(given[name] is None for name in names[2:]):
        given["max_sparsity"] = WIDEST
    budget = budget_of(**given)
    check_operators(
        config.initial_sparsity,
        budget.max_sparsity,
        config.mutation_rate,
        config.tournament_size,
        budget.sparsity_of,
    )
    options = ("time_table", "time_tokens", "time_of")
    check_time_options(budget.sparsity_of, **{name: getattr(config, name) for name in options})
    return budget


def evaluator_of(plan: Plan) -> Evaluator:
    """Return the evaluator of a run: its model, and its task on each part of its data.

    :raises InputError: for settings that do not fit the model, its budget included.
    """
    config = plan.config
    options = {name: getattr(config, name) for name in OPTIONS}
    options |= {"sparsity_of": plan.budget.sparsity_of, "max_sparsity": plan.budget.max_sparsity}
    if config.refit == "during":
        options |= {"refit": "during", "refit_damping": config.refit_damping}
    if config.resume is not None and plan.budget.sparsity_of == "time":
        # Times that are measured again would be others, and the search another search.
        options["time_table"] = Path(config.resume, TIME_TABLE)
    if config.resume is not None and "channels" in checked_kinds(config.genes):
        options["channel_order"] = read_channels(Path(config.resume))
    evaluator = Evaluator.from_pretrained(
        config.model,
        dataset=config.dataset,
        task=config.task,
        objective=plan.fitness,
        device=config.device,
        dtype=config.dtype,
        quantize=config.quantize,
        seed=config.seed,
        **options,
        **vars(plan.settings),
    )
    evaluator.max_sparsity = plan.budget.bound(evaluator)
    return evaluator


def toolbox_of(plan: Plan, evaluator: Evaluator) -> Any:
    """Return the filled DEAP toolbox of a run.

    :raises InputError: for settings of the search that do not fit the model.
    """
    config, row = plan.config, plan.algorithm
    uniform = config.layout == "uniform"
    toolbox = base.Toolbox()
    register(
        toolbox,
        evaluator,
        initial_sparsity=config.initial_sparsity,
        prior=config.prior,
        repair=not row.literal,
        uniform=uniform_counts(evaluator.model, evaluator.gene_map) if uniform else None,
        # Where the loss decides, the validation examples choose at the end of the run.
        finalists=None if config.max_loss is not None else config.finalists,
        **plan.operators,
    )
    limits = without_validation(plan.limits, toolbox)
    if row.strategy is not None:  # to check its parameters; `search` makes it after seeding
        strategy_of(row, toolbox, toolbox.population(n=2), limits)
    return toolbox


def search(
    plan: Plan,
    evaluator: Evaluator,
    on_generation: Callable[[int, Any], None] | None = None,
    toolbox: Any = None,
    logbook: Any = None,
) -> Evolution:
    """Run the search of a plan, seeded.

    :param plan: the run.
    :param evaluator: the result of :func:`evaluator_of`.
    :param on_generation: function called after each generation with its number and the hall of
        fame; see :func:`sos_deap.evolve`.
    :param toolbox: the result of :func:`toolbox_of`; by default it is made here.
    :param logbook: an empty DEAP ``Logbook`` to fill; by default a new one.
    :raises InputError: for operators and parameters that do not fit.
    """
    config = plan.config
    toolbox = toolbox or toolbox_of(plan, evaluator)
    random.seed(config.seed)  # DEAP's operators and ours
    numpy.random.seed(config.seed)  # some of DEAP's selections
    return evolve(
        toolbox,
        plan.algorithm,
        population=config.population_size,
        generations=config.generations,
        crossover_rate=config.crossover_rate,
        max_sparsity=evaluator.max_sparsity,
        limits=plan.limits,
        stats=statistics(evaluator.sparsity),
        logbook=logbook,
        on_generation=on_generation,
    )
