"""A connection between each of SCOOP's processes and the launcher, by which both notice an end.

The operating system closes a connection when a process ends, however it ends. The launcher
therefore notices a lost worker at once, which SCOOP does not report, and workers notice a launcher
that was killed, for which they would otherwise wait for ever. The connection also carries a
worker's number, signals and the exit status. It is text: nothing on it is unpickled.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from typing import IO

#: The message that a process sends every few seconds, so that a stopped process is noticed.
ALIVE, _PAUSE = b"alive", 2.0


class Lifeline:
    """A worker's end of the connection.

    :param address: ``host:port`` of the launcher, or the path of its socket on this machine.
    :param token: a secret of the launcher, by which it recognises its workers.
    :param role: ``"origin"``, the process that runs the program, or ``"worker"``.
    """

    def __init__(self, address: str, token: str, role: str) -> None:
        self._socket = _connected(address)
        self._file: IO[str] = self._socket.makefile("r", encoding="utf-8")
        self._say(f"{token} {role} {socket.gethostname()}")
        #: The number of this process among those on its host, from 0.
        self.number = int(self._file.readline() or -1)
        for task in (self._hold, self._beat):
            threading.Thread(target=task, daemon=True).start()

    def ended(self, status: int) -> None:
        """Send the exit status of the program."""
        self._say(f"status {status}")

    def _say(self, line: str) -> None:
        self._socket.sendall(line.encode() + b"\n")

    def _beat(self) -> None:
        """Send :data:`ALIVE` every few seconds."""
        with suppress(OSError):  # a closed connection is noticed where it is read
            while True:
                self._say(ALIVE.decode())
                time.sleep(_PAUSE)

    def _hold(self) -> None:
        """Raise the signals that arrive; end this process when the connection is closed."""
        for line in self._file:
            os.kill(os.getpid(), int(line.split()[1]))
        os._exit(1)


def _connected(address: str) -> socket.socket:
    if os.path.isabs(address):
        line = socket.socket(socket.AF_UNIX)
        line.connect(address)
        return line
    host, _, port = address.rpartition(":")
    line = socket.create_connection((host, int(port)), timeout=60)
    line.settimeout(None)
    return line
