"""The line on what a run is doing now, refreshed while it works."""

from __future__ import annotations

import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sos_deap.errors import one_line, print_lines
from sos_deap.progress import Reading, watched
from sos_deap.report.formats import duration

_REFRESH = 1.0  # seconds between two refreshes of the line of a terminal
_SILENCE = 25.0  # seconds of silence after which another output gets a line


class Status:
    """Prints lines, and between them what is being done.

    A terminal has one line for that, which is overwritten every second; another output gets a line
    after 25 s of silence.

    :param words: whether to print anything.
    :param clock: returns the time in seconds.
    """

    def __init__(self, words: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        self.words, self._clock = words, clock
        self.terminal = words and sys.stdout.isatty()
        self._lock = threading.RLock()  # a step is refreshed by a thread of its own
        self._printed = clock()
        #: Tokens per second of the fastest pass over text inside a step; 0 before the first.
        self.rate = 0.0

    def print(self, text: str) -> None:
        """Print lines of text, which stay."""
        if self.words:
            with self._lock:
                self._erase()
                print_lines(self._wrapped(text) if self.terminal else text)
                self._printed = self._clock()

    def show(self, text: str) -> None:
        """Print a line that the next one overwrites; on outputs other than terminals it stays."""
        if self.terminal:
            with self._lock:
                width = shutil.get_terminal_size().columns - 1  # longer is not overwritten
                print(f"\r\x1b[K{one_line(text)[:width]}", end="", flush=True)
        else:
            self.print(text)

    @contextmanager
    def during(self, text: Callable[[], str]) -> Iterator[None]:
        """Refresh a line inside the context, from another thread.

        :param text: returns the line; it is called in that thread.
        """
        if not self.words:
            yield
            return
        ended = threading.Event()
        thread = threading.Thread(target=self._refresh, args=(text, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            with self._lock:
                self._erase()

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Show what is done inside the context, with the time that it has taken.

        :param text: what is done, such as "timing both models".
        """
        started, reading = self._clock(), Reading(self._clock)
        if self.terminal:
            self.show(text)

        def line() -> str:
            left = reading.left
            eta = "" if left is None else f", ETA {duration(left)}"
            far = f": {reading.done:,} of {reading.total:,} tokens" if eta else ""
            return f"{text}{far}, {duration(self._clock() - started)}{eta}"

        with self.during(line), watched(reading):
            yield
        self.rate = max(self.rate, reading.rate)

    def _refresh(self, text: Callable[[], str], ended: threading.Event) -> None:
        while not ended.wait(_REFRESH):
            if self.terminal or self._clock() - self._printed >= _SILENCE:
                self.show(text())

    @staticmethod
    def _wrapped(text: str) -> str:
        """Break lines longer than the terminal between words."""
        width = shutil.get_terminal_size().columns - 1
        style: Any = {"subsequent_indent": "  ", "break_on_hyphens": False}
        return "\n".join(
            textwrap.fill(line, width, break_long_words=False, **style)
            if len(line) > width
            else line
            for line in text.split("\n")
        )

    def _erase(self) -> None:
        """Clear the line of a terminal."""
        if self.terminal:
            print("\r\x1b[K", end="", flush=True)
