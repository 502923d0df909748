"""Every evaluation on disk as it is made, for later runs, other seeds and other processes.

An SQLite file in WAL mode, so that several processes can write one. A row is a chromosome's metric
within a scope, which is all that the metric depends on: model, task, data, dtype.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from sos_deap.errors import InputError
from sos_deap.files.run_folder import JOURNAL

_log = logging.getLogger(__name__)

_VERSION = 1  # of the schema, in the file's header
_SCHEMA = (
    f"PRAGMA user_version = {_VERSION}",
    "CREATE TABLE scopes (number INTEGER PRIMARY KEY, scope TEXT UNIQUE NOT NULL)",
    "CREATE TABLE evaluations (scope INTEGER NOT NULL REFERENCES scopes, chromosome BLOB NOT NULL, "
    "metric BLOB NOT NULL, checksum INTEGER NOT NULL, PRIMARY KEY (scope, chromosome)) "
    "WITHOUT ROWID",
)
_SECONDS = 30  # to wait for another process that is writing
_COMPANIONS = ("-wal", "-shm")  # of a file that is open, or was open in a process that was killed
_BEGINNING = 4096  # bytes, with the schema of a store


class Store:
    """The evaluations of one scope in a file.

    :param path: the file; made where there is none. A store that is damaged is renamed and
        replaced, with a warning.
    :param scope: what the metrics depend on, as text.
    :raises InputError: for a path that cannot be written, a file of another kind, a symbolic link,
        or a file that another process keeps locked.

    A store saves time and is nobody's only copy. So when it fails later, locked or damaged or on a
    full disk, it warns once and is done without.
    """

    def __init__(self, path: Path, scope: str) -> None:
        self.path = path
        check_store(path)
        try:
            self._connection = _opened(path)
            with self._connection as connection:
                connection.execute("INSERT OR IGNORE INTO scopes (scope) VALUES (?)", (scope,))
            found = self._connection.execute("SELECT number FROM scopes WHERE scope = ?", (scope,))
            self._scope: int = found.fetchone()[0]
            self._given_up = False
        except (sqlite3.Error, OSError) as error:
            locked = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY
            hint = ": another process has it, end that or give another --store" if locked else ""
            raise InputError(f"store {path} cannot be opened: {error}{hint}") from error

    def get(self, chromosome: bytes) -> float | None:
        """The metric of a chromosome, bit for bit; ``None`` if it is not there, or damaged.

        Sees what other processes have written in the meantime.
        """
        row = self._tried(
            lambda connection: connection.execute(
                "SELECT metric, checksum FROM evaluations WHERE scope = ? AND chromosome = ?",
                (self._scope, chromosome),
            ).fetchone()
        )
        if row is None:
            return None
        metric, checksum = row
        sound = isinstance(metric, bytes) and len(metric) == _METRIC.size
        if not sound or checksum != _checksum(chromosome, metric):
            _log.warning("store %s has a damaged row: it is computed again", self.path)
            return None
        value: float = _METRIC.unpack(metric)[0]
        return value

    def put(self, metrics: Mapping[bytes, float]) -> None:
        """Write metrics by chromosome, all or none of them."""
        self._tried(
            lambda connection: connection.executemany(
                "INSERT OR REPLACE INTO evaluations VALUES (?, ?, ?, ?)", self._rows(metrics)
            )
        )

    def __len__(self) -> int:
        count = self._connection.execute(
            "SELECT COUNT(*) FROM evaluations WHERE scope = ?", (self._scope,)
        )
        number: int = count.fetchone()[0]
        return number

    def close(self) -> None:
        """Put everything into the one file, and let go of it."""
        try:
            self._connection.close()
        except sqlite3.Error as error:
            _log.warning("store %s fails (%s): its last evaluations may be lost", self.path, error)

    def _tried(self, job: Callable[[sqlite3.Connection], Any]) -> Any:
        """What a job in a transaction returns; ``None`` once one has failed."""
        if self._given_up:
            return None
        try:
            with self._connection as connection:
                return job(connection)
        except sqlite3.Error as error:
            self._given_up = True
            _log.warning("store %s fails (%s): going on without it", self.path, error)
            return None

    def _rows(self, metrics: Mapping[bytes, float]) -> Iterable[tuple[int, bytes, bytes, int]]:
        for chromosome, value in metrics.items():
            metric = _METRIC.pack(value)  # a REAL of SQLite cannot be NaN
            yield self._scope, chromosome, metric, _checksum(chromosome, metric)


_METRIC = struct.Struct("<d")


def _checksum(chromosome: bytes, metric: bytes) -> int:
    return zlib.crc32(chromosome + metric)


def check_store(path: Path) -> None:
    """Raise :class:`InputError` for a file that never was a store, which is left alone.

    What a killed process or a power failure left in a run folder may be anything.
    """
    for end in ("", *_COMPANIONS):
        if path.with_name(path.name + end).is_symlink():
            raise InputError(f"store {path}{end} is a symbolic link: give --store the file itself")
    if not path.is_file() or not path.stat().st_size or path.with_name(JOURNAL).is_file():
        return
    with path.open("rb") as file:
        beginning = file.read(_BEGINNING)
    if not beginning.startswith(b"SQLite format 3\0"):
        raise InputError(f"store {path} is a file of another kind: give another --store")


def _was_store(path: Path) -> bool:
    """Whether a damaged SQLite file was made as a store."""
    with path.open("rb") as file:
        made = b"CREATE TABLE scopes" in file.read(_BEGINNING)
    return made or path.with_name(JOURNAL).is_file()


def _opened(path: Path) -> sqlite3.Connection:
    """A connection to a sound store."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return _connected(path)
    except sqlite3.OperationalError:
        raise  # locked, or not to be opened: nothing is wrong with what is in it
    except sqlite3.DatabaseError as error:
        if not _was_store(path):
            raise InputError(
                f"store {path} is a damaged file of another kind ({error}): give another --store"
            ) from error
        aside = _free(path.with_name(f"{path.name}.damaged"))
        _log.warning("store %s is damaged (%s): set aside as %s", path, error, aside.name)
        os.replace(path, aside)
        for end in _COMPANIONS:  # they belong to what was damaged
            path.with_name(path.name + end).unlink(missing_ok=True)
        return _connected(path)


def _connected(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_SECONDS)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")  # a killed process loses nothing
        with closing(connection.execute("PRAGMA quick_check(1)")) as checked:
            if (verdict := checked.fetchone()[0]) != "ok":
                raise sqlite3.DatabaseError(verdict.splitlines()[-1])
        connection.execute("BEGIN IMMEDIATE")  # of several processes, one makes the tables
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        tables = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
        if version != _VERSION and tables:
            raise InputError(
                f"store {path} is an SQLite file of another kind: give another --store"
            )
        if not tables:
            for statement in _SCHEMA:
                connection.execute(statement)
        connection.commit()
    except BaseException:
        connection.close()
        raise
    return connection


def _free(path: Path) -> Path:
    """A name that is not taken."""
    number = 0
    free = path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free
