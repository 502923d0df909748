"""What a run has computed, line by line, so that it can go on where it was stopped.

A search is a function of its seed and of the sums that sub-models get over examples. So a run that
was stopped, at any moment, goes on by being run again with what the journal holds: it takes every
decision as before, without a forward pass, until it comes to what was not computed yet. There is no
other checkpoint, and none that an algorithm of the user's would have to write.

The file is JSON lines, each with a checksum. What a process that was killed left of its last line
is dropped, and so is all from a line on that is damaged or makes no sense.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from sos_deap.errors import InputError
from sos_deap.files.atomic import sync, sync_folder

fcntl: Any = None  # not on Windows, where two runs in one folder are the user's to prevent
with suppress(ImportError):
    fcntl = importlib.import_module("fcntl")

_log = logging.getLogger(__name__)

_SYNC_SECONDS = 1.0  # from a line's writing until it survives a power failure, at most

# A first line, or what a killed process may have left of one.
_HEAD = re.compile(rb"[0-9a-f]{0,8}|[0-9a-f]{8} \{.*", re.DOTALL)

# Not through a link, behind which there is a file of somebody's.
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND
_FLAGS |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)

Chunk = tuple[Sequence[bytes], Sequence[Sequence[float]]]  # chromosomes, and the sums of each
Run = Callable[[Sequence[bytes], slice], Iterable[Chunk]]  # computes sums, a chunk at a time


class Journal:
    """The sums of each chromosome over each range of examples, in a file.

    :param path: the file; made where there is none.
    :param scope: what the sums depend on, as text.
    :param metrics: raises for sums that make no sense, such as a task's ``metrics``.
    :param claim: called once no other process can have the file, before it is read or written.
    :param settings: those of the run, to be read by :func:`read_settings`.
    :param clock: gives seconds.
    :raises InputError: for a file that another process has open, that cannot be written, that is a
        symbolic link or no journal, or that is of another scope.
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
        self._width: int | None = None  # how many sums a chromosome has
        self._sums: dict[tuple[bytes, int, int], list[float]] = {}
        self._times: dict[tuple[bytes, int, int], float] = {}
        self._began, self._before = clock(), 0.0
        self._settings: Mapping[str, Any] | None = None
        try:
            self._file: IO[bytes] = os.fdopen(os.open(path, _FLAGS, 0o666), "a+b")
        except OSError as error:
            why = "is a symbolic link" if path.is_symlink() else error.strerror
            raise InputError(f"journal {path} cannot be opened: {why}") from error
        self._syncer = _Syncer(self._file)
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
        """The time of the run so far: of this process, and of those that computed what it read.

        The latter is counted as soon as the search has come to the same place again.
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
        """Whether it holds the sums of a chromosome from one example to another."""
        return span in self._sums

    def __len__(self) -> int:
        return len(self._sums)

    def through(
        self,
        keys: Sequence[bytes],
        examples: tuple[int, int],
        compute: Run,
    ) -> Iterator[Chunk]:
        """The sums of chromosomes over some examples: what is there, then the others, computed.

        :param keys: the chromosomes.
        :param examples: from a start to a stop.
        :param compute: computes sums, a chunk at a time, each of which is written before it is
            given.
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
        """Put everything on the disk, and let go of the file."""
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
        """Take in the sound lines, and cut off what follows them."""
        self._file.seek(0)
        lines = self._file.readlines()
        contents = list(map(_content, lines))
        if lines and not (any(contents) or _is_begun(lines[0])):
            raise InputError(
                f"journal {self.path} is no journal, or damaged from its first line on: move it "
                "away to compute everything again"
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
        """Refuse the first line of another journal, or a line that was not the first."""
        if "scope" not in content:
            raise InputError(
                f"journal {self.path} has lost its first line: restore the file, or start a new "
                "run with another --output_dir"
            )
        if content["scope"] != scope:
            raise InputError(
                f"journal {self.path} is of another {_difference(content['scope'], scope)}: "
                "restore what it was, or start a new run with another --output_dir"
            )

    def _take(self, content: dict[str, Any]) -> bool:
        """Take in what a line says; whether it makes sense."""
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
        """Refuse to go on where what is computed is of another kind than what was read."""
        self._width = self._width or len(sums[0])
        if len(sums[0]) != self._width:
            raise InputError(
                f"journal {self.path} has {self._width} sums for each sub-model, and this task "
                f"{len(sums[0])}: begin anew with another --output_dir"
            )

    def _write(self, content: dict[str, Any]) -> None:
        text = json.dumps(content).encode()
        self._file.write(b"%08x %s\n" % (zlib.crc32(text), text))
        self._file.flush()  # a process that is killed loses nothing
        self._syncer.written()
        self.check_presence()


class _Syncer:
    """Puts what is written into a file on the disk soon, also while nothing else is written.

    :param file: the file, flushed after each writing.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._lock = file, threading.Lock()
        self._timer: threading.Timer | None = None
        self._error: OSError | None = None

    def written(self) -> None:
        """Sync within a second; raises :class:`OSError` if that was not possible the last time."""
        with self._lock:
            if self._error is not None:
                raise self._error
            if self._timer is None:
                self._timer = threading.Timer(_SYNC_SECONDS, self._sync)
                self._timer.daemon = True
                self._timer.start()

    def close(self) -> None:
        """Sync what has not been yet."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
                sync(self._file.fileno())

    def _sync(self) -> None:
        with self._lock:
            if self._timer is None:
                return  # closed in the meantime
            self._timer = None
            try:
                sync(self._file.fileno())
            except OSError as error:
                self._error = error


def read_settings(path: Path) -> dict[str, Any] | None:
    """The settings that a run wrote into its journal last; ``None`` if there are none."""
    if not path.is_file():
        return None
    contents = map(_content, path.read_bytes().splitlines(keepends=True))
    found = [content["settings"] for content in contents if content and "settings" in content]
    return found[-1] if found and isinstance(found[-1], dict) else None


def _is_begun(line: bytes) -> bool:
    """Whether a first line may be what a killed process or a power failure left of one."""
    return not line.strip(b"\0") or _HEAD.fullmatch(line.rstrip()) is not None


def _difference(before: Any, now: str) -> str:
    """What differs between two scopes, by the names that evaluators give their parts."""
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
    """The sums by chromosome; raises for what is none."""
    rows = {}
    for genes, numbers in sums.items():
        if not genes or set(genes) - {"0", "1"} or {*map(type, numbers)} != {float}:
            raise ValueError(genes)
        rows[bytes(map(int, genes))] = numbers
    return rows


def _content(line: bytes) -> dict[str, Any] | None:
    """What a line says; ``None`` if it is not whole and sound."""
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    try:
        if not line.endswith(b"\n") or int(checksum, 16) != zlib.crc32(text):
            return None
        content: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
