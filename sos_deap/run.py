"""The steps of a run in order: plan, load, rehearse, search, prune, save, report."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sos_deap.cli import (
    Interrupted,
    graceful_interrupt,
    quiet,
    run_with_exit_status,
    standard_output,
)
from sos_deap.config import RunConfig, parse
from sos_deap.engines import default_workers
from sos_deap.errors import InputError, WorkerLostError, first_line, one_line
from sos_deap.files.atomic import make_folder
from sos_deap.files.run_folder import (
    JOURNAL,
    chosen_folder,
    claim,
    complete,
    reset_run_folder,
    resumable_folder,
    resume_advice,
)
from sos_deap.user_function import raised_by_user

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO

    from sos_deap.evaluation.evaluator import Evaluator
    from sos_deap.evaluation.journal import Journal
    from sos_deap.finish import Finish
    from sos_deap.plan import Plan
    from sos_deap.report.console import Console, Progress
    from sos_deap.search.drive import Evolution
    from sos_deap.tasks.settings import TaskSettings


def run(config: RunConfig, settings: TaskSettings, out: TextIO | None = None) -> Path:
    """Search, prune, save and report.

    :param config: settings of the run.
    :param settings: settings of its task.
    :param out: stream for JSON lines; standard output by default.
    :returns: the run folder.
    :raises InputError: for bad settings, before anything is written.
    """
    # Imported here, so that --help does not wait for torch.
    from sos_deap.report.console import Console

    console = Console(not config.quiet, config.json_lines, out)
    with console.step("starting"):
        from sos_deap.finish import Finish
        from sos_deap.models.prune import check_layout
        from sos_deap.plan import evaluator_of, plan_of, toolbox_of
        from sos_deap.quality import quality
        from sos_deap.refitting import refit_of
        from sos_deap.rehearsal import rehearse, timed_lengths

        plan = plan_of(config, settings)
        folder = chosen_folder(
            config.resume, config.output_dir, config.model, config.algorithm, config.seed
        )
    with console.step(f"loading {config.model} and {config.dataset}"):
        evaluator = evaluator_of(plan)
        check_layout(evaluator.model, evaluator.gene_map, config.layout)
        refit = refit_of(evaluator, config)
        toolbox = toolbox_of(plan, evaluator)
        rehearse(evaluator, config.layout, *timed_lengths(evaluator.model, evaluator.task.seqlen))
    with console.step("measuring the quality of the dense model"):
        dense = quality(evaluator, evaluator.model)
    names = config.model, config.layout, config.written
    finish = Finish(
        evaluator, *names, folder, console, dense, refit, config.max_loss, config.tensorboard
    )
    with _engine(evaluator, config):
        _Run(plan, evaluator, toolbox, folder, console, finish).do()
    return folder


def _announce(config: RunConfig) -> None:
    """Print what is loaded, before any library is imported that takes seconds."""
    silent = config.quiet or config.json_lines
    if not silent and not (config.engine == "scoop" and _under_scoop()):
        print(one_line(f"loading {config.model}{_size(config.model)}"), flush=True)


def _size(model: str) -> str:
    """Return the size of a file or of the weights in a folder; nothing for another name."""
    path = Path(model).expanduser()
    files = path.glob("*.safetensors") if path.is_dir() else [path]
    total = sum(file.stat().st_size for file in files if file.is_file())
    return f" ({total / 1e6:,.1f} MB)" if total else ""


@contextmanager
def _engine(evaluator: Evaluator, config: RunConfig) -> Iterator[None]:
    """Keep the workers of a run; after an error they are stopped at once."""
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
    """The steps of a run that write into its folder."""

    plan: Plan
    evaluator: Evaluator
    toolbox: Any
    folder: Path
    console: Console
    finish: Finish

    def do(self) -> None:
        """Search, prune, save and report."""
        from sos_deap.artifacts import write_measured

        folder, written = self.folder, self.plan.written()
        resumed = self.plan.config.resume is not None
        make_folder(folder)
        # The journal stays locked until the run ends: only the process with the lock writes here.
        journal = self.evaluator.open_journal(
            folder / JOURNAL,
            lambda: resumable_folder(folder) if resumed else claim(folder, written),
            written,
        )
        try:
            if resumed:
                reset_run_folder(folder, written)
            write_measured(folder, self.evaluator)
            result = self._initial_result()
            self._announce(result)
            evolution, seconds = self._search(result, journal)
            self.finish(result, evolution, seconds)
            journal.check_presence()
            complete(folder)
        except (OSError, InputError) as error:  # such as a full disk
            if journal.is_gone or not folder.is_dir():
                raise OSError(
                    f"run folder {folder} was removed or renamed during the run: start it again"
                ) from error
            if isinstance(error, InputError):
                raise
            raise OSError(f"{first_line(error)}; {resume_advice(folder)}") from error
        finally:
            self.evaluator.close_journal()

    def _announce(self, result: dict[str, Any]) -> None:
        """Print the model, its genes and the run folder."""
        from sos_deap.estimate import estimate
        from sos_deap.finish import tokens_after
        from sos_deap.quality import implausible
        from sos_deap.report.parts import listed, parts_of

        config = self.plan.config
        parts = parts_of(result["search"], [1] * len(self.evaluator.gene_map))
        self.console.print(f"{config.model}: {listed(parts)}")
        self.console.print(f"run folder: {self.folder}")
        if line := implausible(self.evaluator, self.finish.dense):
            self.console.print(line)
        after = tokens_after(self.evaluator, config.max_loss is not None)
        if line := estimate(
            self.evaluator, self.plan.limits, config.population_size, self.console.rate, after
        ):
            self.console.print(line)
        self.console.event("run", folder=str(self.folder), dense=result["dense"])

    def _initial_result(self) -> dict[str, Any]:
        """Return the content of ``result.json`` before the search."""
        from sos_deap.artifacts import initial_result, size

        evaluator = self.evaluator
        genes, stored = evaluator.gene_map, evaluator.stored_dtype
        dense = {**self.finish.dense.metrics, **size(evaluator.model, stored, genes)}
        plan, config = self.plan, self.plan.config
        settings = {"algorithm": config.algorithm, "objective": plan.objective, "seed": config.seed}
        return initial_result(evaluator, dense, settings, plan.command())

    def _search(self, result: dict[str, Any], journal: Journal) -> tuple[Evolution, float]:
        """Search, and write logbook and evaluations; returns the evolution and its seconds."""
        from deap.tools import Logbook

        from sos_deap.plan import search
        from sos_deap.report.live import LivePage
        from sos_deap.report.tables import write_evaluations, write_logbook

        plan, evaluator, folder, logbook = self.plan, self.evaluator, self.folder, Logbook()
        evaluator.open_store(plan.config.store or folder / "store.sqlite")
        progress = self._progress(result, journal)
        page = LivePage(folder, evaluator, progress, logbook, plan.config.model, result)
        watchers = [*self._watchers(progress, logbook), page]  # the page reads rows of the others

        def on_generation(generation: int, halloffame: Any) -> None:
            for watch in watchers:
                watch(generation, halloffame)

        try:
            with (
                page,
                self.console.during(progress.line),
                graceful_interrupt() as check_signals,
                evaluator.interruptible(check_signals),
            ):
                evolution = search(plan, evaluator, on_generation, self.toolbox, logbook)
        except Interrupted as end:
            end.message = f"interrupted, best {progress.best}; {resume_advice(folder)}"
            raise
        except WorkerLostError as lost:
            raise WorkerLostError(f"{lost}; {resume_advice(folder)}") from lost
        except Exception as error:
            if not isinstance(error, InputError) and (raised := raised_by_user(error)):
                raise InputError(f"{raised}; {resume_advice(folder)}") from error
            raise
        finally:  # after Ctrl-C, too: evaluations that are complete are kept
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
        return evolution, seconds

    def _progress(self, result: dict[str, Any], journal: Journal) -> Progress:
        """Return what prints the progress of the search."""
        from sos_deap.finish import SECONDS_AFTER, tokens_after
        from sos_deap.report.console import Progress

        return Progress(
            self.evaluator,
            self.plan.limits,
            self.console,
            lambda: journal.seconds,
            dense=result["dense"]["calibration"][self.evaluator.task.name],
            after=tokens_after(self.evaluator, self.plan.config.max_loss is not None),
            seconds_after=SECONDS_AFTER,
        )

    def _watchers(self, progress: Progress, logbook: Any) -> list[Any]:
        """Return what is called after each generation, in order, without the page."""
        from sos_deap.report.console import Trace
        from sos_deap.report.live import TensorBoard

        config, evaluator, folder = self.plan.config, self.evaluator, self.folder
        watchers: list[Any] = [progress]
        if config.profile:
            watchers.append(Trace(folder / "trace.json"))
        if config.tensorboard:
            watchers.append(TensorBoard(folder, evaluator.task.name, progress, logbook))
        return watchers


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    status = 0

    def job() -> None:
        nonlocal status
        config, settings = parse(given, _announce)
        quiet()
        if config.engine == "scoop" and not _under_scoop():
            from sos_deap.engines.launch import launch
            from sos_deap.plan import plan_of

            plan_of(config, settings)  # to check the settings once, before SCOOP starts
            workers = config.workers or default_workers()
            status = launch("sos_deap.run:main", given, workers, config.hostfile)
        else:
            with standard_output(config.json_lines) as out:
                run(config, settings, out)

    return run_with_exit_status(job) or status


def _under_scoop() -> bool:
    from sos_deap.engines.scoop import running

    return running()


if __name__ == "__main__":
    sys.exit(main())
