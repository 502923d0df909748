"""A file of evaluations that several runs and processes share.

It is an SQLite file in WAL mode, which several processes can write. A row is a chromosome's metric
within a scope: everything that the metric depends on, such as model, task, data and dtype.
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
_SECONDS = 30  # longest wait for another process that is writing
_COMPANIONS = ("-wal", "-shm")  # of a file that is open, or was open when its process was killed
_BEGINNING = 4096  # bytes at the start of the file, which hold the schema


class Store:
    """The evaluations of one scope in a file.

    :param path: the file; created if it does not exist. A damaged store is renamed and replaced,
        with a warning.
    :param scope: everything that the metrics depend on, as text.
    :raises InputError: for a path that cannot be written, a file of another kind, a symbolic link,
        or a file that another process keeps locked.

    A store saves time and is never the only copy. If it fails later (locked, damaged, disk full),
    it logs one warning and is not used any more.
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
        """The metric of a chromosome, bit for bit; ``None`` if it is missing or its row is damaged.

        Rows that other processes write are found at once.
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
            _log.warning("store %s has a damaged row, which is computed again", self.path)
            return None
        value: float = _METRIC.unpack(metric)[0]
        return value

    def put(self, metrics: Mapping[bytes, float]) -> None:
        """Write metrics by chromosome, in one transaction."""
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
        """Write everything into the one file and close it."""
        try:
            self._connection.close()
        except sqlite3.Error as error:
            _log.warning("store %s fails (%s): its last evaluations may be lost", self.path, error)

    def _tried(self, job: Callable[[sqlite3.Connection], Any]) -> Any:
        """Run a job in a transaction; returns its result, or ``None`` after any job has failed."""
        if self._given_up:
            return None
        try:
            with self._connection as connection:
                return job(connection)
        except sqlite3.Error as error:
            self._given_up = True
            _log.warning("store %s fails (%s): the run continues without it", self.path, error)
            return None

    def _rows(self, metrics: Mapping[bytes, float]) -> Iterable[tuple[int, bytes, bytes, int]]:
        for chromosome, value in metrics.items():
            metric = _METRIC.pack(value)  # a REAL of SQLite cannot be NaN
            yield self._scope, chromosome, metric, _checksum(chromosome, metric)


_METRIC = struct.Struct("<d")


def _checksum(chromosome: bytes, metric: bytes) -> int:
    return zlib.crc32(chromosome + metric)


def check_store(path: Path) -> None:
    """Raise :class:`InputError` for a file that was never a store; it is left unchanged.

    In a run folder any content is accepted, since a killed process or a power failure may have left
    it.
    """
    if not path.name:
        raise InputError(f"store {path} is a folder: give --store a file")
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
    """Whether a damaged SQLite file was created as a store."""
    with path.open("rb") as file:
        made = b"CREATE TABLE scopes" in file.read(_BEGINNING)
    return made or path.with_name(JOURNAL).is_file()


def _opened(path: Path) -> sqlite3.Connection:
    """A connection to a sound store."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return _connected(path)
    except sqlite3.OperationalError:
        raise  # locked or unreadable, which does not mean that its content is damaged
    except sqlite3.DatabaseError as error:
        if not _was_store(path):
            raise InputError(
                f"store {path} is a damaged file of another kind ({error}): give another --store"
            ) from error
        aside = _free(path.with_name(f"{path.name}.damaged"))
        _log.warning("store %s is damaged (%s): renamed to %s", path, error, aside.name)
        os.replace(path, aside)
        for end in _COMPANIONS:  # these belong to the damaged file
            path.with_name(path.name + end).unlink(missing_ok=True)
        return _connected(path)


def _connected(path: Path) -> sqlite3.Connection:
    # The evaluator calls it from one thread at a time, but not always from the same one.
    connection = sqlite3.connect(path, timeout=_SECONDS, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")  # a killed process loses nothing
        with closing(connection.execute("PRAGMA quick_check(1)")) as checked:
            if (verdict := checked.fetchone()[0]) != "ok":
                raise sqlite3.DatabaseError(verdict.splitlines()[-1])
        connection.execute("BEGIN IMMEDIATE")  # one of several processes creates the tables
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
    """The path itself, or with a number appended if it exists."""
    number = 0
    free = path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free
