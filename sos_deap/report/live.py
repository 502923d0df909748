"""What shows a search while it goes on: a page, and TensorBoard's event files."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from sos_deap.errors import InputError
from sos_deap.evaluation.evaluator import Evaluator
from sos_deap.files.atomic import make_anew
from sos_deap.files.run_folder import to_go_on
from sos_deap.report.console import Progress
from sos_deap.report.tables import chromosomes, front, generation, generations, number, winner

_FIRST = 3.0  # seconds: a search that ends before has its whole page soon enough
_PAUSE = 30.0  # seconds between two pages, at least
_SHARE = 20  # and so many times as long as a page takes: less than 5 % of the time


class LivePage:
    """Writes the page of a run after the first generation and now and then, at little cost.

    :param folder: the run folder.
    :param evaluator: the search's.
    :param progress: has seen each generation before.
    :param logbook: that of the search, which grows.
    :param model: its name.
    :param known: what there is of a ``result.json`` before the search.
    :param clock: tells the seconds.
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
        self._halloffame: Any = None  # once there is a page

    def __enter__(self) -> None:
        """Nothing is written before the first generation."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Where an error ended the search, write the page once more: it is no longer under way."""
        if kind is not None and self._halloffame is not None:
            self._stopped = True
            with suppress(OSError):  # the search's own error is the one to show
                self._write(self._best())

    def __call__(self, _: int, halloffame: Any) -> None:
        """Write the page, if it is time; for :func:`sos_deap.evolve`'s ``on_generation``."""
        started = self._clock()
        if started >= self._due:
            self._halloffame = halloffame
            self._write(self._best())
            ended = self._clock()
            self._due = ended + max(_PAUSE, _SHARE * (ended - started))

    def close(self) -> None:
        """Nothing: the run writes the last page itself."""

    def _best(self) -> Any:
        return winner(self._halloffame, self._evaluator.task.name)

    def _write(self, best: Any) -> None:
        from sos_deap.report.page import write_unfinished

        evaluator, rows = self._evaluator, self._progress.rows
        search = {
            **self._known["search"],
            "generations": len(rows) - 1,
            **evaluator.accounting.asdict(),
            "seconds": rows[-1]["seconds"],
        }
        now, resume = time.strftime("%Y-%m-%d %H:%M:%S"), to_go_on(self._folder)
        if self._stopped:
            state, advice = "was stopped", f"Written on {now}; {resume}."
        else:
            state = "is going on"
            advice = (
                f"Written on {now}; the page reloads itself. If that time does not change for "
                f"long, the run was killed; {resume}."
            )
        write_unfinished(
            self._folder,
            self._model,
            {**self._known, "best": self._described(best), "search": search},
            list(chromosomes(evaluator, evaluator.history())),
            generations(self._logbook, rows),
            list(chromosomes(evaluator, front(evaluator))),
            [*self._progress.where(state), advice],
            reload=not self._stopped,
        )

    def _described(self, best: Any) -> dict[str, Any]:
        """What is known of the best so far."""
        if best is None:
            return {}
        evaluator = self._evaluator
        metric = evaluator.cached(best)
        return {
            "heads": sum(map(len, evaluator.head_map.kept_heads(best))),
            "chromosome": list(best),
            "calibration": {} if metric is None else {evaluator.task.name: metric},
        }


class TensorBoard:
    """Writes what each generation came to as TensorBoard's event files.

    :param folder: the run folder; ``tensorboard`` in it is begun anew, since a search that goes on
        goes through all its generations again.
    :param metric: the name of the metric.
    :param progress: has seen each generation before.
    :param logbook: that of the search, which grows.
    """

    def __init__(self, folder: Path, metric: str, progress: Progress, logbook: Any) -> None:
        make_anew(folder / "tensorboard")
        self._writer = _writer(folder)
        self._metric, self._progress, self._logbook = metric, progress, logbook

    def __call__(self, step: int, _: Any) -> None:
        """Write the scalars of a generation, those that are finite."""
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
        """Write what is left."""
        self._writer.close()


def add_heads(folder: Path, step: int) -> None:
    """Add the picture of the heads that stay, from the plots of a complete run."""
    from matplotlib.image import imread

    writer = _writer(folder)
    writer.add_image("heads", imread(folder / "plots" / "heads.png"), step, dataformats="HWC")
    writer.close()


def check_tensorboard() -> Any:
    """The module that writes event files; raises :class:`InputError` where it cannot."""
    try:
        return import_module("torch.utils.tensorboard")
    except ImportError as error:
        raise InputError(
            "--tensorboard needs the package tensorboard: pip install 'sos_deap[tensorboard]'"
        ) from error


def _writer(folder: Path) -> Any:
    return check_tensorboard().SummaryWriter(str(folder / "tensorboard"), flush_secs=10)
