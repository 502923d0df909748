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
from typing import IO


class Lifeline:
    """A worker's end.

    :param address: ``host:port`` of the starter.
    :param token: that the starter gave, which tells its workers from others.
    :param role: ``"origin"``, the process that runs the program, or ``"worker"``.
    """

    def __init__(self, address: str, token: str, role: str) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=60)
        self._socket.settimeout(None)
        self._file: IO[str] = self._socket.makefile("rw", encoding="utf-8")
        self._say(f"{token} {role} {socket.gethostname()}")
        #: Of this process among those on its host, from 0.
        self.number = int(self._file.readline() or -1)
        threading.Thread(target=self._hold, daemon=True).start()

    def ended(self, status: int) -> None:
        """Tell the exit status of the program."""
        self._say(f"status {status}")

    def _say(self, line: str) -> None:
        self._file.write(line + "\n")
        self._file.flush()

    def _hold(self) -> None:
        """Pass signals on; end when the line is cut."""
        for line in self._file:
            os.kill(os.getpid(), int(line.split()[1]))
        os._exit(1)
