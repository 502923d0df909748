"""Sync a file to the disk soon after each write, in the background."""

from __future__ import annotations

import threading
from typing import IO

from sos_deap.files.atomic import sync


class Syncer:
    """Syncs what is written into a file within some seconds, even if nothing else is written.

    :param file: the file, flushed after each write.
    :param seconds: longest time from a write to its sync.
    """

    def __init__(self, file: IO[bytes], seconds: float) -> None:
        self._file, self._seconds, self._lock = file, seconds, threading.Lock()
        self._timer: threading.Timer | None = None
        self._error: OSError | None = None

    def written(self) -> None:
        """Start the timer of a sync; raises :class:`OSError` if the last sync failed."""
        with self._lock:
            if self._error is not None:
                raise self._error
            if self._timer is None:
                self._timer = threading.Timer(self._seconds, self._sync)
                self._timer.daemon = True
                self._timer.start()

    def close(self) -> None:
        """Sync what has not been synced yet."""
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
