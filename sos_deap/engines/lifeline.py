"""The line between SCOOP's processes and the one that started them: who holds it, lives.

The system closes a line when a process ends, however it ends. So the starter learns at once of a
worker that was lost, which SCOOP does not tell, and workers of a starter that was killed, which
would wait for ever. The line also carries a worker's number, signals and the exit status. It is
text: nothing on it is unpickled.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from typing import IO

#: What a process sends every few seconds, so that one which is stopped is noticed.
ALIVE, _PAUSE = b"alive", 2.0


class Lifeline:
    """A worker's end.

    :param address: ``host:port`` of the starter, or the path of its socket on this machine.
    :param token: that the starter gave, which tells its workers from others.
    :param role: ``"origin"``, the process that runs the program, or ``"worker"``.
    """

    def __init__(self, address: str, token: str, role: str) -> None:
        self._socket = _connected(address)
        self._file: IO[str] = self._socket.makefile("r", encoding="utf-8")
        self._say(f"{token} {role} {socket.gethostname()}")
        #: Of this process among those on its host, from 0.
        self.number = int(self._file.readline() or -1)
        for task in (self._hold, self._beat):
            threading.Thread(target=task, daemon=True).start()

    def ended(self, status: int) -> None:
        """Tell the exit status of the program."""
        self._say(f"status {status}")

    def _say(self, line: str) -> None:
        self._socket.sendall(line.encode() + b"\n")

    def _beat(self) -> None:
        """Show that this process is running."""
        with suppress(OSError):  # a line that is cut is noticed where it is read
            while True:
                self._say(ALIVE.decode())
                time.sleep(_PAUSE)

    def _hold(self) -> None:
        """Pass signals on; end when the line is cut."""
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
