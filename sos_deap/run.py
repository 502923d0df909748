"""The main job from end to end: load, search, prune, save, report.

This is the only file that sees the configuration; everything it calls takes plain values.
"""

from __future__ import annotations

import math
import random
import shlex
import sys
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sos_deap.cli import (
    Interrupted,
    graceful_interrupt,
    quiet,
    run_with_exit_status,
    standard_output,
)
from sos_deap.config import PRESETS, RunConfig, flags, parse
from sos_deap.engines import check_engine, default_workers
from sos_deap.errors import InputError, WorkerLostError, first_line, unknown
from sos_deap.files.atomic import make_folder, write_json
from sos_deap.files.run_folder import (
    JOURNAL,
    begin_again,
    claim,
    complete,
    free_run_folder,
    new_run_folder,
    stopped,
    to_go_on,
)
from sos_deap.tasks.settings import TaskSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TextIO

    from transformers import PreTrainedModel

    from sos_deap.evaluation.evaluator import Evaluator
    from sos_deap.evaluation.journal import Journal
    from sos_deap.report.console import Console, Progress
    from sos_deap.search.algorithms import Algorithm
    from sos_deap.search.drive import Evolution
    from sos_deap.search.limits import Limits


def run(config: RunConfig, settings: TaskSettings, out: TextIO | None = None) -> Path:
    """Search, prune, save and report.

    :param config: the settings of the run.
    :param settings: those of its task.
    :param out: where to write JSON lines; ``None`` for standard output.
    :returns: the run folder.
    :raises InputError: for bad settings, before anything is written.
    """
    # Imported here, so that --help does not wait for torch.
    from sos_deap.artifacts import quality, size
    from sos_deap.evaluation.store import check_store
    from sos_deap.models.prune import check_layout
    from sos_deap.rehearsal import rehearse
    from sos_deap.report.console import Console
    from sos_deap.tasks.registry import resolved_task

    check(config)
    if config.store is not None:
        check_store(Path(config.store))
    config = replace(config, task=resolved_task(config.task, config.model))
    console = Console(not config.quiet, config.json_lines, out)
    resumed = config.resume is not None
    folder = _folder(config)
    evaluator = evaluator_of(config, settings)
    heads, heldout = evaluator.head_map, evaluator.heldout
    assert heldout is not None  # from_pretrained always cuts a held-out part
    check_layout(evaluator.model, heads, config.layout)
    toolbox = toolbox_of(config, evaluator)
    rehearse(evaluator, config.layout, *_measured_on(evaluator.model, evaluator.task.seqlen))
    dense: dict[str, Any] = {
        **quality(evaluator, heldout, evaluator.model),
        **size(evaluator.model, evaluator.stored_dtype, sum(heads.heads_per_layer)),
    }
    config = replace(config, resume=None)  # from here on both are the same
    with _engine(evaluator, config):
        _Run(config, settings, evaluator, toolbox, folder, dense, console).do(resumed)
    return folder


@contextmanager
def _engine(evaluator: Evaluator, config: RunConfig) -> Iterator[None]:
    """The workers of a run, which after an error are let go at once."""
    from sos_deap.engines.attach import open_engine

    open_engine(evaluator, config.engine, config.workers)
    try:
        yield
    except BaseException:
        evaluator.close_engine(at_once=True)
        raise
    evaluator.close_engine()


@dataclass
class _Run:
    """All that a run does in its folder, which is its own meanwhile.

    :param dense: quality and size of the whole model.
    """

    config: RunConfig
    settings: TaskSettings
    evaluator: Evaluator
    toolbox: Any
    folder: Path
    dense: dict[str, Any]
    console: Console

    def do(self, resumed: bool) -> None:
        """Search, prune, save and report."""
        folder, written = self.folder, self._written()
        make_folder(folder)
        # Held to the end: whoever cannot have it must not touch what is in the folder.
        journal = self.evaluator.open_journal(
            folder / JOURNAL,
            lambda: stopped(folder) if resumed else claim(folder, written),
            written,
        )
        try:
            if resumed:
                begin_again(folder, written)
            self._say_what_begins()
            known = self._known()
            searched, chromosome = self._search(known, journal)
            self._end(known, searched, chromosome)
            journal.check_presence()
            complete(folder)
        except (OSError, InputError) as error:  # such as a full disk
            if journal.is_gone or not folder.is_dir():
                raise OSError(
                    f"run folder {folder} was removed or renamed during the run: start it again"
                ) from error
            if isinstance(error, InputError):
                raise
            raise OSError(f"{first_line(error)}; {to_go_on(folder)}") from error
        finally:
            self.evaluator.close_journal()

    def _written(self) -> dict[str, Any]:
        """The content of ``config.json``; JSON has no infinity, and the flags read the word."""
        return {
            name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in (asdict(self.config) | asdict(self.settings)).items()
        }

    def _say_what_begins(self) -> None:
        heads, say = self.evaluator.head_map, self.console.say
        layers = f"in {len(heads.layers)} layers"
        groups = f"; {len(heads)} groups are the genes" if self.config.unit == "group" else ""
        say(f"{self.config.model}: {self.dense['heads']} attention heads {layers}{groups}")
        say(f"run folder: {self.folder}")
        self.console.event("run", folder=str(self.folder), dense=self.dense)

    def _known(self) -> dict[str, Any]:
        """A ``result.json`` before the search, its parts in their order."""
        from sos_deap.artifacts import versions

        config, evaluator = self.config, self.evaluator
        tasks: dict[str, Any] = {"calibration": evaluator.task, "held-out": evaluator.heldout}
        if evaluator.validation is not None:
            tasks["validation"] = evaluator.validation.task
        given = flags(replace(config, output_dir=None), self.settings)
        return {
            "dense": self.dense,
            "best": {},
            "search": {
                "algorithm": config.algorithm,
                "objective": objective_of(config),
                "sparsity_of": config.sparsity_of,
                "genes_per_layer": list(evaluator.head_map.genes_per_layer),
                "seed": config.seed,
            },
            "data": {part: task.describe() for part, task in tasks.items()},
            "dtype": str(evaluator.model.dtype).removeprefix("torch."),
            "command": shlex.join(["python", "-m", "sos_deap.run", *given]),
            "versions": versions(),
        }

    def _search(self, known: dict[str, Any], journal: Journal) -> tuple[dict[str, Any], Any]:
        """Search; leave logbook and evaluations in the folder; return figures and winner."""
        from deap.tools import Logbook

        from sos_deap.artifacts import search_figures
        from sos_deap.report.console import Progress
        from sos_deap.report.live import LivePage
        from sos_deap.report.tables import winner, write_evaluations, write_front, write_logbook

        config, evaluator, folder = self.config, self.evaluator, self.folder
        evaluator.open_store(config.store or folder / "store.sqlite")
        limits, logbook = _all_limits(config), Logbook()
        progress = Progress(evaluator, limits, self.console, lambda: journal.seconds)
        page = LivePage(folder, evaluator, progress, logbook, config.model, known)
        watchers = [*self._watchers(progress, logbook), page]  # the page shows what the others know

        def on_generation(generation: int, halloffame: Any) -> None:
            for watch in watchers:
                watch(generation, halloffame)

        try:
            with (
                page,
                graceful_interrupt() as check_signals,
                evaluator.interruptible(check_signals),
            ):
                evolution = search(config, evaluator, on_generation, self.toolbox, logbook)
        except Interrupted as end:
            end.message = f"interrupted, best {progress.best}; {to_go_on(folder)}"
            raise
        except WorkerLostError as lost:
            raise WorkerLostError(f"{lost}; {to_go_on(folder)}") from lost
        finally:  # after Ctrl-C too: what was computed is kept
            seconds = progress.seconds
            for watch in watchers:
                watch.close()
            evaluator.close_store()
            write_evaluations(folder / "evaluations.csv", evaluator)
        write_logbook(folder / "logbook.csv", logbook, progress.rows)
        if not evolution.halloffame:
            raise InputError(
                f"no sub-model had a finite {evaluator.task.name}: try another dtype or other data"
            )
        write_front(folder / "pareto.csv", evaluator)
        figures = search_figures(evaluator, evolution, known)
        found = {**known["search"], **figures, "seconds": seconds}
        return found, winner(evolution.halloffame, evaluator.task.name)

    def _watchers(self, progress: Progress, logbook: Any) -> list[Any]:
        """All that is called after each generation, in order, but for the page."""
        from sos_deap.report.console import Trace
        from sos_deap.report.live import TensorBoard

        config, evaluator, folder = self.config, self.evaluator, self.folder
        watchers: list[Any] = [progress]
        if config.profile:
            watchers.append(Trace(folder / "trace.json"))
        if config.tensorboard:
            watchers.append(TensorBoard(folder, evaluator.task.name, progress, logbook))
        return watchers

    def _end(self, known: dict[str, Any], searched: dict[str, Any], chromosome: Any) -> None:
        """Prune, measure and report."""
        from sos_deap.artifacts import write_samples
        from sos_deap.report.tables import measured_table, search_lines, table

        say, folder, evaluator = self.console.say, self.folder, self.evaluator
        say(search_lines(searched))
        best, pruned = self._save(known, list(chromosome))
        result = {**known, "best": best, "search": searched}
        write_json(folder / "result.json", result)
        say(f"\n{table(result)}\n")
        if not best["sparsity"]:
            say("nothing was removed: no smaller sub-model had a better fitness\n")
        models = {"dense": evaluator.model, "pruned": pruned}
        measured = _measure(models, evaluator.task.seqlen)
        write_json(folder / "measured.json", measured)
        say(f"{measured_table(measured)}\n")
        write_samples(folder / "samples.json", evaluator, models)
        self.console.event("result", **result, measured=measured)
        self._draw(searched["generations"])

    def _save(
        self, known: dict[str, Any], chromosome: list[int]
    ) -> tuple[dict[str, Any], PreTrainedModel]:
        """Prune and save; returns the ``best`` part of ``result.json``, and the pruned model."""
        from sos_deap.artifacts import original, save_best
        from sos_deap.report.tables import inline

        config = self.config
        facts = {
            "command": known["command"],
            "seed": config.seed,
            **{f"{part} data": inline(described) for part, described in known["data"].items()},
        }
        return save_best(
            self.folder,
            self.evaluator,
            original(config.model, self.evaluator),
            chromosome,
            layout=config.layout,
            name=config.model,
            dense=self.dense,
            facts=facts,
        )

    def _draw(self, generations: int) -> None:
        """Make the page, and say where everything is."""
        from sos_deap.report.live import add_heads
        from sos_deap.report.page import write_page  # not before: matplotlib takes its time

        say, folder = self.console.say, self.folder
        say(f"report:       {write_page(folder)}")
        if self.config.tensorboard:
            add_heads(folder, generations)
        say(f"result:       {folder / 'result.json'}")
        say(f"pruned model: {folder / 'pruned'}  (its README.md tells how to load it)")


def evaluator_of(config: RunConfig, settings: TaskSettings) -> Evaluator:
    """The evaluator of a run: its model, with its task on both parts of its data."""
    from sos_deap.evaluation.evaluator import OPTIONS, Evaluator
    from sos_deap.tasks.objectives import checked_objective

    return Evaluator.from_pretrained(
        config.model,
        dataset=config.dataset,
        task=config.task,
        objective=checked_objective(objective_of(config), config.tradeoff_weight),
        device=config.device,
        dtype=config.dtype,
        seed=config.seed,
        **{name: getattr(config, name) for name in OPTIONS},
        **vars(settings),
    )


def _measure(models: dict[str, Any], seqlen: int) -> Any:
    """Time the models on no more positions than they were evaluated on, for some ten seconds."""
    from sos_deap.models.measure import measure

    length, new_tokens = _measured_on(models["dense"], seqlen)
    return measure(models, lengths=[length], new_tokens=new_tokens, seconds=10)


def _measured_on(model: PreTrainedModel, seqlen: int) -> tuple[int, int]:
    """The prompt length and the number of new tokens that models are timed on."""
    from sos_deap.models.length import most_tokens

    seqlen = min(seqlen, most_tokens(model) or seqlen)  # of several beams it is that of all
    new_tokens = min(16, seqlen // 2)
    return min(512, seqlen - new_tokens), new_tokens if new_tokens > 1 else 0


def check(config: RunConfig) -> None:
    """Check everything that can be without the model; raises :class:`InputError`."""
    from sos_deap.models.costs import MAX_SPARSITY
    from sos_deap.search.drive import check_evolution, check_values
    from sos_deap.toolbox import check_operators

    _limits(config)
    if config.algorithm in PRESETS:
        raise InputError(
            f"algorithm is {config.algorithm}, which names several settings: give it first, "
            f"python -m sos_deap.run {config.algorithm}"
        )
    check_engine(config.engine, config.workers, config.hostfile)
    if config.tensorboard:
        from sos_deap.report.live import check_tensorboard

        check_tensorboard()
    if not 0 <= config.seed < 2**32:
        raise InputError(f"seed is {config.seed}: give a number from 0 to {2**32 - 1}")
    row = _algorithm(config)
    check_evolution(row, config.population_size, config.generations, config.crossover_rate)
    check_values(row, several=objective_of(config) == "pareto")
    _check_fit(config, row)
    _operators(config)
    if config.sparsity_of not in MAX_SPARSITY:
        raise unknown("sparsity_of", config.sparsity_of, MAX_SPARSITY)
    check_operators(
        config.initial_sparsity,
        _max_sparsity(config),
        config.mutation_rate,
        config.tournament_size,
        config.sparsity_of,
    )


def _check_fit(config: RunConfig, row: Algorithm) -> None:
    """Refuse what the algorithm has no use for."""
    given = [
        name for name in ("crossover", "mutation", "selection") if getattr(config, name) is not None
    ]
    if row.select is not None and config.selection is not None:
        raise InputError(
            f"the algorithm {row.name} has a selection of its own: leave --selection out, or use "
            "eaMuPlusLambda with the objective pareto"
        )
    if row.strategy is None:
        return
    if given:
        raise InputError(
            f"the algorithm {row.name} proposes sub-models itself, without a {given[0]}: leave "
            f"--{given[0]} out"
        )
    if config.prior is not None:
        raise InputError(
            f"the algorithm {row.name} makes no chromosomes by --prior: leave it out, or use "
            f"sweep,prior={config.prior}"
        )
    if config.layout == "uniform":
        raise InputError(
            f"the algorithm {row.name} does not keep as many heads in every layer, as the layout "
            "uniform does: use sos-repaired, or the layout sliced"
        )


def _algorithm(config: RunConfig) -> Algorithm:
    from sos_deap.search.algorithms import algorithm_of

    return algorithm_of(config.algorithm)


def objective_of(config: RunConfig) -> str:
    """The objective of a run: the given, else the algorithm's own."""
    return _algorithm(config).objective if config.objective is None else config.objective


def _operators(config: RunConfig) -> dict[str, Any]:
    """The operators' names, as :func:`sos_deap.toolbox.register` takes them, and checked."""
    from sos_deap.toolbox import chosen_operators

    pareto, literal = objective_of(config) == "pareto", _algorithm(config).literal
    chosen: dict[str, Any] = {
        "crossover": config.crossover or ("paper" if literal else "sign-aware"),
        "mutation": config.mutation or "flip",
        "selection": config.selection or ("nsga2" if pareto else "tournament"),
        "mutation_rate": config.mutation_rate,
        "tournament_size": config.tournament_size,
    }
    chosen_operators(**chosen)
    return chosen


def _max_sparsity(config: RunConfig) -> float:
    from sos_deap.models.costs import MAX_SPARSITY

    chosen = config.max_sparsity
    return MAX_SPARSITY[config.sparsity_of] if chosen is None else chosen


def search(
    config: RunConfig,
    evaluator: Evaluator,
    on_generation: Callable[[int, Any], None] | None = None,
    toolbox: Any = None,
    logbook: Any = None,
) -> Evolution:
    """The search of a run alone, seeded.

    :param config: the settings of the run.
    :param evaluator: what :func:`evaluator_of` gives for them.
    :param on_generation: see :func:`sos_deap.evolve`.
    :param toolbox: the run's, if it has been filled before.
    :param logbook: see :func:`sos_deap.evolve`.
    :raises InputError: for operators and parameters that do not fit.
    """
    import numpy

    from sos_deap.search.drive import evolve
    from sos_deap.toolbox import statistics

    toolbox = toolbox or toolbox_of(config, evaluator)
    random.seed(config.seed)  # DEAP's operators and ours
    numpy.random.seed(config.seed)  # some of DEAP's selections
    return evolve(
        toolbox,
        config.algorithm,
        population=config.population_size,
        generations=config.generations,
        crossover_rate=config.crossover_rate,
        max_sparsity=_max_sparsity(config),
        limits=_all_limits(config),
        stats=statistics(evaluator.sparsity),
        logbook=logbook,
        on_generation=on_generation,
    )


def _limits(config: RunConfig) -> Limits:
    from sos_deap.search.limits import Limits

    return Limits(
        evaluations=config.max_evaluations,
        tokens=config.max_tokens,
        seconds=config.max_seconds,
        threshold=config.threshold,
        stagnation=config.stagnation,
        sparsity=config.target_sparsity,
    )


def _all_limits(config: RunConfig) -> Limits:
    from sos_deap.search.drive import all_limits

    row = _algorithm(config)
    return all_limits(row, _limits(config), config.population_size, config.generations)


def _folder(config: RunConfig) -> Path:
    """The run folder: an empty one, or that of a run that was stopped."""
    if config.resume is not None:
        return stopped(Path(config.resume))
    if config.output_dir is not None:
        return free_run_folder(Path(config.output_dir))
    return new_run_folder(config.model, config.algorithm, config.seed)


def toolbox_of(config: RunConfig, evaluator: Evaluator) -> Any:
    """The toolbox of a run, filled; raises :class:`InputError` for what does not fit."""
    from deap import base

    from sos_deap.models.prune import uniform_counts
    from sos_deap.search.drive import beside_validation, strategy_of
    from sos_deap.toolbox import register

    uniform = config.layout == "uniform"
    counts = uniform_counts(evaluator.model, evaluator.head_map) if uniform else None
    toolbox = base.Toolbox()
    register(
        toolbox,
        evaluator,
        initial_sparsity=config.initial_sparsity,
        max_sparsity=_max_sparsity(config),
        prior=config.prior,
        repair=not _algorithm(config).literal,
        uniform=counts,
        finalists=config.finalists,
        **_operators(config),
    )
    row, limits = _algorithm(config), beside_validation(_all_limits(config), toolbox)
    if row.strategy is not None:  # what it refuses, it refuses now
        strategy_of(row, toolbox, toolbox.population(n=2), limits)
    return toolbox


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    status = 0

    def job() -> None:
        nonlocal status
        config, settings = parse(given)
        quiet()
        if config.engine == "scoop" and not _under_scoop():
            check(config)
            status = _launch(config, given)
        else:
            with standard_output(config.json_lines) as out:
                run(config, settings, out)

    return run_with_exit_status(job) or status


def _under_scoop() -> bool:
    from sos_deap.engines.scoop import running

    return running()


def _launch(config: RunConfig, arguments: list[str]) -> int:
    """The same once more, in the first of SCOOP's workers."""
    from sos_deap.engines.launch import launch

    workers = config.workers or default_workers()
    return launch("sos_deap.run:main", arguments, workers, config.hostfile)


if __name__ == "__main__":
    sys.exit(main())
