"""The output of a run while it is running: lines of text, JSON lines, or nothing."""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from sos_deap.errors import one_line, say
from sos_deap.files.atomic import whole_file
from sos_deap.report.formats import counted, measurement
from sos_deap.report.tables import winner
from sos_deap.search.limits import Limits, Spent

if TYPE_CHECKING:
    from sos_deap.evaluation.evaluator import Evaluator


class Console:
    """The output of a run: text, or events as JSON lines.

    :param words: whether to print text; without effect where ``json_lines`` is true.
    :param json_lines: whether to write events, one JSON object per line.
    :param out: stream for the events; default: standard output.
    """

    def __init__(
        self, words: bool = True, json_lines: bool = False, out: TextIO | None = None
    ) -> None:
        self.words, self._json_lines, self._out = words and not json_lines, json_lines, out

    def say(self, text: str) -> None:
        """Print lines of text, if text is printed."""
        if self.words:
            say(text)

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
    """

    def __init__(
        self,
        evaluator: Evaluator,
        limits: Limits,
        console: Console | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._console = console or Console()
        self.rows: list[dict[str, Any]] = []
        self._evaluator, self._limits = evaluator, limits
        #: Description of the best sub-model so far.
        self.best = "nothing yet"
        self._terminal = self._console.words and sys.stdout.isatty()
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
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1  # a longer line would not be overwritten
            print(f"\r\x1b[K{one_line(self._line(generation))[:width]}", end="", flush=True)
        elif generation % 10 == 0:
            self._console.say(self._line(generation))

    def close(self) -> None:
        """End a terminal's line; on other outputs, print the last generation if not yet printed."""
        last = len(self.rows) - 1
        if self._terminal:
            print()
        elif self.rows and last % 10:
            self._console.say(self._line(last))

    def _describe(self, best: Any) -> str:
        if best is None:
            return "none within the maximum sparsity yet"
        at = f"at sparsity {measurement(self._evaluator.sparsity(best))}"
        metric = self._evaluator.cached(best)
        if metric is not None:
            return f"{self._evaluator.task.name} {measurement(metric)} {at}"
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

        :param state: what the search does, such as "was stopped".
        """
        most, left = self._limits.generations, self._left()
        return [
            f"The search {state}: generation {len(self.rows) - 1}"
            + ("." if most is None else f" of {most}."),
            f"{measurement(self.rows[-1]['seconds'])} s so far"
            + ("." if left is None else f", about {measurement(left)} s left."),
            f"Best sub-model: {self.best}.",
        ]

    def _left(self) -> float | None:
        """Estimate the seconds left; ``None`` if the limits allow no estimate."""
        seconds, counts = self.rows[-1]["seconds"], self._evaluator.spent()
        spent = Spent(len(self.rows) - 1, counts["evaluations"], counts["tokens"], seconds)
        share = self._limits.share(spent)
        return seconds / share - seconds if share else None

    def _line(self, generation: int) -> str:
        row, limits, left = self.rows[-1], self._limits, self._left()
        most = "" if limits.generations is None else f"/{limits.generations}"
        eta = "" if left is None else f", ETA {measurement(left)} s"
        return (
            f"generation {generation:{max(1, len(most) - 1)}d}{most}  "
            f"{measurement(row['seconds'])} s{eta}  best {self.best}  "
            f"{counted(row['forward_evaluations'], 'forward evaluation')}, "
            f"{counted(row['cache_hits'], 'cache hit')}, "
            f"{measurement(self.rate)} tokens/s"
        )


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
