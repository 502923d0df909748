"""A file of all sums that a run has computed, from which a stopped run resumes.

A search is a function of its seed and of the sums over examples of its sub-models. A stopped run
therefore resumes by running again with the sums in the journal: it makes every decision as before,
without a forward pass, until it reaches a sub-model that was not computed. There is no other
checkpoint, and a user's algorithm need not write one.

The file holds JSON lines, each with a checksum. A last line that a killed process left incomplete
is dropped, and so are all lines from the first damaged or inconsistent one on.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from sos_deap.errors import InputError
from sos_deap.evaluation.compute import Chunk, Compute
from sos_deap.files.atomic import sync_folder
from sos_deap.files.checksummed_lines import decoded, encoded
from sos_deap.files.syncer import Syncer

fcntl: Any = None  # absent on Windows, where two runs in one folder are not prevented
with suppress(ImportError):
    fcntl = importlib.import_module("fcntl")

_log = logging.getLogger(__name__)

_SYNC_SECONDS = 1.0  # longest time until a written line survives a power failure

# A first line, or an incomplete one that a killed process left.
_HEAD = re.compile(rb"[0-9a-f]{0,8}|[0-9a-f]{8} \{.*", re.DOTALL)

# Never opens the target of a symbolic link.
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND
_FLAGS |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


class Journal:
    """The sums of each chromosome over each range of examples, in a file.

    :param path: the file; created if it does not exist.
    :param scope: everything that the sums depend on, as text.
    :param metrics: a function of sums which raises for inconsistent ones, such as a task's
        ``metrics``.
    :param claim: called once the file is locked, before it is read or written.
    :param settings: the settings of the run, which
        :func:`sos_deap.files.checksummed_lines.read_settings` reads.
    :param clock: returns seconds.
    :raises InputError: for a file that another process has open, that cannot be written, that is a
        symbolic link or not a journal, or that has another scope.
    """

    def __init__(
        self,
        path: Path,
        scope: str,
        metrics: Callable[[list[float]], Any] = list,
        claim: Callable[[], Any] = lambda: None,
        settings: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path, self._metrics, self._clock = path, metrics, clock
        self._width: int | None = None  # sums of a chromosome
        self._sums: dict[tuple[bytes, int, int], list[float]] = {}
        self._times: dict[tuple[bytes, int, int], float] = {}
        self._began, self._before = clock(), 0.0
        self._settings: Mapping[str, Any] | None = None
        try:
            self._file: IO[bytes] = os.fdopen(os.open(path, _FLAGS, 0o666), "a+b")
        except OSError as error:
            why = "is a symbolic link" if path.is_symlink() else error.strerror
            raise InputError(f"journal {path} cannot be opened: {why}") from error
        self._syncer = Syncer(self._file, _SYNC_SECONDS)
        try:
            self._lock()
            claim()
            self._read(scope)
            if settings is not None and settings != self._settings:
                self._write({"settings": settings})
            sync_folder(path.parent)
        except BaseException:
            self.close()
            raise

    @property
    def seconds(self) -> float:
        """Seconds of the run so far, including those before it was stopped.

        The latter are counted once the resumed search has reached the same place.
        """
        return self._before + self._clock() - self._began

    @property
    def is_gone(self) -> bool:
        """Whether the file was removed while it is open."""
        return os.fstat(self._file.fileno()).st_nlink == 0

    def check_presence(self) -> None:
        """Raise :class:`OSError` if the file was removed while it is open."""
        if self.is_gone:
            raise OSError(f"journal {self.path} was removed during the run")

    def __contains__(self, span: tuple[bytes, int, int]) -> bool:
        """Whether the sums of ``(chromosome, first example, stop)`` are in the journal."""
        return span in self._sums

    def __len__(self) -> int:
        return len(self._sums)

    def through(
        self,
        keys: Sequence[bytes],
        examples: tuple[int, int],
        compute: Compute,
    ) -> Iterator[Chunk]:
        """Yield the sums of chromosomes over some examples: known ones first, then computed ones.

        :param keys: the chromosomes.
        :param examples: first example and stop.
        :param compute: computes sums a chunk at a time; each chunk is written before it is yielded.
        """
        known = [key for key in keys if (key, *examples) in self._sums]
        if known:
            self._before = max(self._before, *(self._times[key, *examples] for key in known))
            yield known, [self._sums[key, *examples] for key in known]
        new = [key for key in keys if (key, *examples) not in self._sums]
        for chunk, sums in compute(new, slice(*examples)) if new else ():
            self._check(sums)
            self._write({**_line(chunk, sums, examples), "seconds": round(self.seconds, 3)})
            yield chunk, sums

    def close(self) -> None:
        """Sync the file and close it."""
        try:
            self._syncer.close()
        finally:
            self._file.close()

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"run folder {self.path.parent} is in use by another process: wait for it, or give "
                "another --output_dir"
            ) from error
        except OSError as error:  # a file system without locks
            _log.warning("%s cannot be locked (%s)", self.path, error.strerror)

    def _read(self, scope: str) -> None:
        """Read the sound lines, and truncate the file after them."""
        self._file.seek(0)
        lines = self._file.readlines()
        contents = list(map(decoded, lines))
        if lines and not (any(contents) or _is_begun(lines[0])):
            raise InputError(
                f"journal {self.path} is not a journal, or its first line is damaged: move it away "
                "to compute everything again"
            )
        whole = 0
        for number, (line, content) in enumerate(zip(lines, contents, strict=True)):
            if number == 0 and content is not None:
                self._check_scope(content, scope)
            if content is None or (number and not self._take(content)):
                _log.warning("journal %s is damaged from line %d on", self.path, number + 1)
                break
            whole += len(line)
        self._file.truncate(whole)
        if not whole:
            self._write({"scope": scope})

    def _check_scope(self, content: dict[str, Any], scope: str) -> None:
        """Raise :class:`InputError` for a first line of another journal, or a lost first line."""
        if "scope" not in content:
            raise InputError(
                f"journal {self.path} has lost its first line: restore the file, or start a new "
                "run with another --output_dir"
            )
        if content["scope"] != scope:
            raise InputError(
                f"journal {self.path} is of another {_difference(content['scope'], scope)}: "
                "restore it, or start a new run with another --output_dir"
            )

    def _take(self, content: dict[str, Any]) -> bool:
        """Store the content of a line; returns whether it is consistent."""
        if isinstance(content.get("settings"), dict):
            self._settings = content["settings"]
            return True
        try:
            (start, stop), rows = _span(content["examples"]), _rows(content["sums"])
            widths = set(map(len, rows.values()))
            seconds = float(content.get("seconds", 0.0))  # which earlier versions did not write
            if len(widths) != 1 or self._width not in {None, *widths} or not 0 <= seconds < 1e12:
                return False
            for row in rows.values():
                self._metrics(row)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            return False
        (self._width,) = widths
        for key, row in rows.items():
            self._sums[key, start, stop] = row
            self._times[key, start, stop] = seconds
        return True

    def _check(self, sums: Sequence[Sequence[float]]) -> None:
        """Raise :class:`InputError` if computed sums have another width than those read."""
        self._width = self._width or len(sums[0])
        if len(sums[0]) != self._width:
            raise InputError(
                f"journal {self.path} has {self._width} sums for each sub-model, and this task "
                f"{len(sums[0])}: start a new run with another --output_dir"
            )

    def _write(self, content: dict[str, Any]) -> None:
        self._file.write(encoded(content))
        self._file.flush()  # so that a killed process loses nothing
        self._syncer.written()
        self.check_presence()


def _is_begun(line: bytes) -> bool:
    """Whether a first line may be the beginning of one that was interrupted."""
    return not line.strip(b"\0") or _HEAD.fullmatch(line.rstrip()) is not None


def _difference(before: Any, now: str) -> str:
    """The names of the parts in which two scopes differ."""
    try:
        old, new = json.loads(before), json.loads(now)
        names = [name for name in new if old.get(name) != new[name]]
    except (AttributeError, TypeError, ValueError, RecursionError):
        names = []
    return ", ".join(names) or "model, task or other data"


def _line(chunk: Sequence[bytes], sums: Any, examples: tuple[int, int]) -> dict[str, Any]:
    return {
        "examples": examples,
        "sums": {
            "".join(map(str, key)): [float(number) for number in row]
            for key, row in zip(chunk, sums, strict=True)
        },
    }


def _span(examples: Any) -> tuple[int, int]:
    start, stop = examples
    if type(start) is not int or type(stop) is not int or not 0 <= start < stop:
        raise ValueError(examples)
    return start, stop


def _rows(sums: dict[str, list[float]]) -> dict[bytes, list[float]]:
    """The sums by chromosome; raises :class:`ValueError` for other content."""
    rows = {}
    for genes, numbers in sums.items():
        if not genes or set(genes) - {"0", "1"} or {*map(type, numbers)} != {float}:
            raise ValueError(genes)
        rows[bytes(map(int, genes))] = numbers
    return rows
