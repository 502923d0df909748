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
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from sos_deap.errors import InputError

fcntl: Any = None  # not on Windows, where two runs in one folder are the user's to prevent
with suppress(ImportError):
    fcntl = importlib.import_module("fcntl")

_log = logging.getLogger(__name__)

Chunk = tuple[Sequence[bytes], Sequence[Sequence[float]]]  # chromosomes, and the sums of each
Run = Callable[[Sequence[bytes], slice], Iterable[Chunk]]  # computes sums, a chunk at a time


class Journal:
    """The sums of each chromosome over each range of examples, in a file.

    :param path: the file; made where there is none.
    :param scope: what the sums depend on, as text.
    :param metrics: raises for sums that make no sense, such as a task's ``metrics``.
    :param claim: called once no other process can have the file, before it is read or written.
    :raises InputError: for a file that another process has open, cannot be written, or is of
        another scope.
    """

    def __init__(
        self,
        path: Path,
        scope: str,
        metrics: Callable[[list[float]], Any] = list,
        claim: Callable[[], Any] = lambda: None,
    ) -> None:
        self.path, self._synced, self._metrics = path, 0.0, metrics
        self._width: int | None = None  # how many sums a chromosome has
        self._sums: dict[tuple[bytes, int, int], list[float]] = {}
        try:
            self._file: IO[bytes] = path.open("a+b")
        except OSError as error:
            raise InputError(f"journal {path} cannot be opened: {error.strerror}") from error
        try:
            self._lock()
            claim()
            self._read(scope)
        except BaseException:
            self._file.close()
            raise

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
            yield known, [self._sums[key, *examples] for key in known]
        new = [key for key in keys if (key, *examples) not in self._sums]
        for chunk, sums in compute(new, slice(*examples)) if new else ():
            self._check(sums)
            self._write(_line(chunk, sums, examples))
            yield chunk, sums

    def close(self) -> None:
        """Let go of the file."""
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
        whole = 0
        for number, line in enumerate(self._file):
            content = _content(line)
            if number == 0 and content is not None and content.get("scope") != scope:
                raise InputError(
                    f"journal {self.path} is of another model, task or other data: restore them as "
                    "they were, or begin anew with another --output_dir"
                )
            if content is None or (number and not self._take(content)):
                _log.warning("journal %s is damaged from line %d on", self.path, number + 1)
                break
            whole += len(line)
        self._file.truncate(whole)
        if not whole:
            self._write({"scope": scope})

    def _take(self, content: dict[str, Any]) -> bool:
        """Take in what a line says; whether it makes sense."""
        try:
            (start, stop), rows = _span(content["examples"]), _rows(content["sums"])
            widths = set(map(len, rows.values()))
            if len(widths) != 1 or self._width not in {None, *widths}:
                return False
            for row in rows.values():
                self._metrics(row)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            return False
        (self._width,) = widths
        for key, row in rows.items():
            self._sums[key, start, stop] = row
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
        if time.monotonic() > self._synced + 1:  # a power failure loses the last second
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()


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
