"""The output of a run while it is running: lines of text, JSON lines, or nothing."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from sos_deap.files.atomic import whole_file
from sos_deap.report.formats import amount, counted, duration, measurement
from sos_deap.report.status import Status
from sos_deap.report.tables import winner
from sos_deap.search.limits import Limits, Spent

if TYPE_CHECKING:
    from sos_deap.evaluation.evaluator import Evaluator


class Console(Status):
    """The output of a run: text, or events as JSON lines.

    :param words: whether to print text; without effect where ``json_lines`` is true.
    :param json_lines: whether to write events, one JSON object per line.
    :param out: stream for the events; default: standard output.
    """

    def __init__(
        self, words: bool = True, json_lines: bool = False, out: TextIO | None = None
    ) -> None:
        super().__init__(words and not json_lines)
        self._json_lines, self._out = json_lines, out

    def event(self, name: str, **fields: Any) -> None:
        """Write an event, if events are written; NaN and infinity become ``null``."""
        if self._json_lines:
            line = json.dumps({"event": name, **_plain(fields)}, allow_nan=False)
            print(line, file=self._out, flush=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class Progress:
    """Prints the progress of a search and keeps a row of figures per generation.

    A terminal shows one line that is overwritten; other outputs get every tenth generation and the
    last.

    :param evaluator: the evaluator of the search, for its accounting.
    :param limits: limits of the search, for the estimated time left.
    :param console: output; default: text on standard output.
    :param clock: returns the seconds that the search has taken, those before a resumption included;
        default: the seconds since this object was made.
    :param dense: metric of the dense model on the calibration examples; default: not shown.
    :param after: number of tokens to read after the search, for the estimated time left.
    :param seconds_after: seconds of other work after the search.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        limits: Limits,
        console: Console | None = None,
        clock: Callable[[], float] | None = None,
        *,
        dense: float | None = None,
        after: float = 0,
        seconds_after: float = 0,
    ) -> None:
        self._console = console or Console()
        self._dense, self._after, self._seconds_after = dense, after, seconds_after
        self.rows: list[dict[str, Any]] = []
        self._evaluator, self._limits = evaluator, limits
        #: Description of the best sub-model so far.
        self.best = "no sub-model yet"
        started = time.perf_counter()
        self._clock = clock or (lambda: time.perf_counter() - started)

    @property
    def seconds(self) -> float:
        """Seconds that the search has taken."""
        return self._clock()

    def __call__(self, generation: int, halloffame: Any) -> None:
        """Record and print a generation; a callback ``on_generation`` of :func:`sos_deap.evolve`.

        :param generation: its number; 0 is the initial population.
        :param halloffame: hall of fame or Pareto front of the search.
        """
        accounting, seconds = self._evaluator.accounting, self.seconds
        best = winner(halloffame, self._evaluator.task.name)
        self.best = self._describe(best)
        self.rows.append(
            {
                "best_metric": None if best is None else self._evaluator.cached(best),
                "best_sparsity": None if best is None else self._evaluator.sparsity(best),
                "evaluations": accounting.evaluations,
                "forward_evaluations": accounting.forward_evaluations,
                "cache_hits": accounting.cache_hits,
                "store_hits": accounting.store_hits,
                "tokens": accounting.tokens,
                "seconds": round(seconds, 3),
            }
        )
        self._console.event("generation", generation=generation, **self.rows[-1])
        if self._console.terminal or generation % 10 == 0:
            self._console.show(self.line())

    def close(self) -> None:
        """Print the last generation, if it is not printed yet, and what the search has cost."""
        if not self.rows:
            return
        if self._console.terminal or (len(self.rows) - 1) % 10:
            self._console.print(self.line())
        row, spent = self.rows[-1], self._evaluator.spent()
        self._console.print(
            f"{amount(spent['evaluations'])} evaluations, "
            f"{counted(row['cache_hits'], 'cache hit')}, {counted(row['tokens'], 'token')}, "
            f"{measurement(self.rate)} tokens/s"
        )

    def _describe(self, best: Any) -> str:
        if best is None:
            return "no sub-model within the maximum sparsity yet"
        at = f"sparsity {measurement(self._evaluator.sparsity(best))}"
        metric, dense = self._evaluator.cached(best), self._dense
        if metric is not None:
            known = "" if dense is None else f" (dense {measurement(dense)})"
            return f"{self._evaluator.task.name} {measurement(metric)}{known}, {at}"
        if not best.fitness.valid:
            return f"not evaluated yet, {at}"
        return f"fitness {measurement(best.fitness.values[0])} on part of the data, {at}"

    @property
    def rate(self) -> float:
        """Tokens per second, from the start of the search to the last generation."""
        row = self.rows[-1]
        return float(row["tokens"] / max(row["seconds"], 1e-3))

    def sentences(self, state: str = "is running") -> list[str]:
        """Return sentences on the search after the last generation.

        :param state: what happened to the search, such as "was stopped".
        """
        most, left = self._limits.generations, self._left()
        return [
            f"The search {state}: generation {len(self.rows) - 1}"
            + ("." if most is None else f" of {most}."),
            f"{duration(self.rows[-1]['seconds'])} so far"
            + ("." if left is None else f", about {duration(left)} left in the run."),
            f"Best sub-model: {self.best}.",
        ]

    def line(self) -> str:
        """Return the state of the search: generation, best sub-model, time and time left."""
        most, left = self._limits.generations, self._left()
        of = "" if most is None else f"/{most}"
        eta = "" if left is None else f", ETA {duration(left)}"
        last = max(0, len(self.rows) - 1)
        return f"generation {last}{of}: {self.best}, {duration(self.seconds)}{eta}"

    def _left(self) -> float | None:
        """Estimate the seconds left in the run; ``None`` if the limits allow no estimate."""
        seconds, counts = self.seconds, self._evaluator.spent()
        spent = Spent(max(0, len(self.rows) - 1), counts["evaluations"], counts["tokens"], seconds)
        share = self._limits.share(spent)
        if not share:
            return None
        after = self._after * seconds / counts["tokens"] if counts["tokens"] else 0
        return max(0.0, seconds / share - seconds) + after + self._seconds_after


class Trace:
    """Records one generation of a search with PyTorch's profiler.

    :param path: file to write, in Chrome's trace format.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._profile: Any = None

    def __call__(self, generation: int, halloffame: Any) -> None:
        """Start after generation 1, when one-time work is done, and stop after generation 2."""
        if generation == 1:
            from torch.profiler import profile

            self._profile = profile()
            self._profile.start()
        elif self._profile is not None:
            self.close()

    def close(self) -> None:
        """Stop the recording, if it is running, and write the file."""
        if self._profile is not None:
            self._profile.stop()
            with whole_file(self._path) as part:
                self._profile.export_chrome_trace(str(part))
            self._profile = None
