"""Views of a running search: the page, and TensorBoard's event files."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sos_deap.errors import InputError
from sos_deap.files.atomic import make_empty_subfolder
from sos_deap.files.run_folder import resume_advice
from sos_deap.report.console import Progress
from sos_deap.report.tables import chromosomes, front, generation, generations, number, winner

if TYPE_CHECKING:
    from sos_deap.evaluation.evaluator import Evaluator

_FIRST = 3.0  # seconds before the first page: a shorter search only gets its final page
_PAUSE = 30.0  # least seconds between two pages
_SHARE = 20  # least pause as a multiple of the time a page takes: less than 5 % of the total


class LivePage:
    """Writes the page of a running search at intervals, in less than 5 % of its time.

    :param folder: the run folder.
    :param evaluator: the evaluator of the search.
    :param progress: progress of the search, called earlier in each generation.
    :param logbook: DEAP's logbook of the search.
    :param model: name of the model.
    :param known: the parts of ``result.json`` that are known before the search.
    :param clock: returns the time in seconds.
    """

    def __init__(
        self,
        folder: Path,
        evaluator: Evaluator,
        progress: Progress,
        logbook: Any,
        model: str,
        known: dict[str, Any],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._evaluator, self._progress = folder, evaluator, progress
        self._logbook, self._model, self._known = logbook, model, known
        self._clock, self._due = clock, clock() + _FIRST
        self._stopped = False
        self._halloffame: Any = None  # set with the first page

    def __enter__(self) -> None:
        """Do nothing: the first page is written after a generation."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """If an error ended the search, write the page once more, as that of a stopped search."""
        if kind is not None and self._halloffame is not None:
            self._stopped = True
            with suppress(OSError):  # the error that ended the search is the one to report
                self._write(self._best())

    def __call__(self, _: int, halloffame: Any) -> None:
        """Write the page if it is due; a callback ``on_generation`` of :func:`sos_deap.evolve`.

        :param halloffame: hall of fame or Pareto front of the search.
        """
        started = self._clock()
        if started >= self._due:
            self._halloffame = halloffame
            self._write(self._best())
            ended = self._clock()
            self._due = ended + max(_PAUSE, _SHARE * (ended - started))

    def close(self) -> None:
        """Do nothing: the run writes the final page itself."""

    def _best(self) -> Any:
        return winner(self._halloffame, self._evaluator.task.name)

    def _write(self, best: Any) -> None:
        from sos_deap.report.page import RunTables, write_unfinished  # imports matplotlib

        evaluator, rows = self._evaluator, self._progress.rows
        search = {
            **self._known["search"],
            "generations": len(rows) - 1,
            **evaluator.accounting.asdict(),
            "seconds": rows[-1]["seconds"],
        }
        now, resume = time.strftime("%Y-%m-%d %H:%M:%S"), resume_advice(self._folder)
        if self._stopped:
            state, advice = "was stopped", f"Written on {now}; {resume}."
        else:
            state = "is running"
            advice = (
                f"Written on {now}; the page reloads itself. If this time stops changing, the run "
                f"was killed; {resume}."
            )
        write_unfinished(
            self._folder,
            self._model,
            {**self._known, "best": self._described(best), "search": search},
            RunTables(
                evaluations=list(chromosomes(evaluator, evaluator.history())),
                logbook=generations(self._logbook, rows),
                front=list(chromosomes(evaluator, front(evaluator))),
            ),
            [*self._progress.sentences(state), advice],
            reload=not self._stopped,
        )

    def _described(self, best: Any) -> dict[str, Any]:
        """Return the ``best`` part of ``result.json`` as far as it is known."""
        if best is None:
            return {}
        evaluator = self._evaluator
        metric = evaluator.cached(best)
        return {
            "chromosome": list(best),
            "calibration": {} if metric is None else {evaluator.task.name: metric},
        }


class TensorBoard:
    """Writes the figures of each generation as TensorBoard's event files.

    :param folder: the run folder; its sub-folder ``tensorboard`` is emptied first, since a resumed
        search replays all its generations.
    :param metric: name of the metric.
    :param progress: progress of the search, called earlier in each generation.
    :param logbook: DEAP's logbook of the search.
    """

    def __init__(self, folder: Path, metric: str, progress: Progress, logbook: Any) -> None:
        make_empty_subfolder(folder / "tensorboard")
        self._writer = _writer(folder)
        self._metric, self._progress, self._logbook = metric, progress, logbook

    def __call__(self, step: int, _: Any) -> None:
        """Write the finite scalars of a generation."""
        row = generation(self._logbook, step, self._progress.rows[step])
        for name, value in (
            (f"best/{self._metric}", row["best_metric"]),
            ("best/sparsity", row["best_sparsity"]),
            ("population/fitness", row.get("fitness_avg")),
            ("population/sparsity", row.get("sparsity_avg")),
            ("population/diversity", row.get("diversity_hamming")),
            ("search/evaluations", row["evaluations"]),
            ("search/cache_hits", row["cache_hits"]),
            ("search/tokens_per_second", self._progress.rate),
        ):
            if math.isfinite(number(value)):
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


def add_genes(folder: Path, step: int) -> None:
    """Add the figure of what the winner keeps to the event files.

    :param folder: folder of a complete run, with its page and TensorBoard's files.
    :param step: number of the last generation.
    """
    from matplotlib.image import imread

    writer = _writer(folder)
    writer.add_image("genes", imread(folder / "plots" / "genes.png"), step, dataformats="HWC")
    writer.close()


def check_tensorboard() -> Any:
    """Return the module that writes event files.

    :raises InputError: if the package ``tensorboard`` is not installed.
    """
    try:
        return import_module("torch.utils.tensorboard")
    except ImportError as error:
        raise InputError(
            "--tensorboard needs the package tensorboard: pip install 'sos_deap[tensorboard]'"
        ) from error


def _writer(folder: Path) -> Any:
    return check_tensorboard().SummaryWriter(str(folder / "tensorboard"), flush_secs=10)
