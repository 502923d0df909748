"""Run a program under SCOOP with its true exit status, without a hang or an orphaned process."""

from __future__ import annotations

import os
import secrets
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from sos_deap.cli import no_answer
from sos_deap.engines import scoop_entry
from sos_deap.engines.lifeline import ALIVE
from sos_deap.errors import InputError, first_line

#: Seconds that the workers have to connect, and to end.
_TO_COME, _TO_GO = 300.0, 10.0

#: Seconds of silence after which a message is printed, and after which a signal ends the run.
_SILENCE, _SILENCE_AFTER_SIGNAL = 60.0, 10.0


@dataclass
class _Line:
    """The state of a connection to a process."""

    buffer: bytes = b""
    role: str = ""
    host: str = ""
    number: int = 0
    heard: float = field(default_factory=time.monotonic)


class Lost(Exception):  # noqa: N818
    """A process ended before the program did; the message names it."""


def launch(target: str, arguments: list[str], workers: int, hostfile: str | None = None) -> int:
    """Run a function of command line arguments in the first of some SCOOP workers.

    :param target: ``module:function``, which takes a list of arguments and returns a status.
    :param arguments: the arguments.
    :param workers: the number of processes, of which the first runs the function and computes, too.
    :param hostfile: a file with a host per line, reached by ssh. Default: this machine.
    :returns: the status that the function returned; 1 if a process was lost.
    :raises InputError: for a host file that cannot be read or does not begin with this machine.
    """
    run = _Run(target, arguments, workers, hostfile)
    before = {number: signal.signal(number, run.signalled) for number in _SIGNALS}
    try:
        return run.watch()
    except Lost as lost:
        print(f"error: {lost}", file=sys.stderr)
        return 1
    finally:
        run.end()
        for number, handler in before.items():
            signal.signal(number, handler)


_RESUME = "to resume: python -m sos_deap.run --resume and the run folder"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Run:
    """SCOOP's processes, and the connections to them."""

    def __init__(
        self, target: str, arguments: list[str], workers: int, hostfile: str | None
    ) -> None:
        hosts = _hosts(hostfile)
        self._workers, self._token = workers, secrets.token_hex(16)
        #: The folder of the sockets, on one machine; only this user can read it.
        self._folder = None if hostfile else _short_folder()
        self._lines: dict[socket.socket, _Line] = {}
        self._status: int | None = None
        self._signals, self._signal, self._at_once = 0, 0, False
        self._selector = selectors.DefaultSelector()
        if self._folder:
            address = f"{self._folder}/line"
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(address)
            self._listener.listen()
        else:
            self._listener = socket.create_server((hosts[0], 0))
            address = f"{hosts[0]}:{self._listener.getsockname()[1]}"
        self._selector.register(self._listener, selectors.EVENT_READ)
        together = -(-workers // len(hosts))
        command = [sys.executable, "-m", "sos_deap.engines.scoop_start", "launcher"]
        command += [self._folder or hosts[0], "--quiet"]
        if hostfile is not None:
            command += ["--hostfile", hostfile, "--external-hostname", hosts[0]]
        else:  # and not the hosts of a batch system
            command += ["--hosts", *hosts]
        command += ["-n", str(workers)]
        command += [scoop_entry.__file__, address, self._token, str(together), target]
        self._process = subprocess.Popen(
            [*command, *arguments],
            start_new_session=True,  # signals are sent over the connection, once
            stdin=subprocess.DEVNULL,
        )
        self._started = time.monotonic()
        self._printed = self._started  # time of the last message about a silence

    def watch(self) -> int:
        """Wait until the program ends; returns its status."""
        while self._status is None:
            for key, _ in self._selector.select(timeout=0.2):
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._hear(key.fileobj)
            self._check()
        return self._status

    def signalled(self, number: int, _: Any) -> None:
        """Send a first signal to the program; end at once after a second one."""
        self._signals, self._signal = self._signals + 1, number
        origin = [line for line, known in self._lines.items() if known.role == "origin"]
        if origin and self._signals == 1:
            with suppress(OSError):  # it has ended, which is noticed where messages are read
                origin[0].sendall(b"signal %d\n" % number)
        else:
            self._status, self._at_once = 128 + number, True

    def end(self) -> None:
        """Wait a short time for SCOOP to end its processes, then kill the rest."""
        if self._status is not None and not self._at_once:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_TO_GO)
        for line in [*self._lines, self._listener]:
            line.close()  # which ends the workers, on any host
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _accept(self) -> None:
        line, _ = self._listener.accept()
        self._lines[line] = _Line()
        self._selector.register(line, selectors.EVENT_READ)

    def _hear(self, line: Any) -> None:
        known = self._lines[line]
        try:
            heard = line.recv(4096)
        except OSError:
            heard = b""
        if not heard:
            self._cut(line)
            return
        known.heard = time.monotonic()
        *whole, known.buffer = (known.buffer + heard).split(b"\n")
        for text in whole:
            words = text.split()
            if known.role == "origin" and words[:1] == [b"status"]:
                self._status = int(words[1])
            elif known.role and words == [ALIVE]:
                pass
            elif len(words) == 3 and secrets.compare_digest(words[0], self._token.encode()):
                on_host = Counter(other.host for other in self._lines.values())
                known.role, known.host = (word.decode() for word in words[1:])
                known.number = on_host[known.host]
                line.sendall(b"%d\n" % known.number)
            else:  # not one of the workers
                self._cut(line)
                return

    def _cut(self, line: Any) -> None:
        known = self._lines.pop(line)
        self._selector.unregister(line)
        line.close()
        if known.role and self._status is None:
            raise Lost(
                f"a process of the engine scoop on {known.host} was lost, out of memory perhaps: "
                f"what was computed before is kept; {_RESUME}"
            )

    def _check(self) -> None:
        """Raise :class:`Lost` if SCOOP has ended, or if workers did not connect in time."""
        if self._status is not None:
            return
        if self._process.poll() is not None:
            raise Lost(
                f"SCOOP ended with status {self._process.returncode} before the program, as a "
                f"process of it was lost perhaps: what was computed before is kept; {_RESUME}"
            )
        there = sum(bool(known.role) for known in self._lines.values())
        if there < self._workers and time.monotonic() > self._started + _TO_COME:
            raise Lost(
                f"{there} of {self._workers} workers connected within {_TO_COME:.0f} s: check that "
                "ssh reaches each host without a password, and that python has the same path there"
            )
        self._check_silence()

    def _check_silence(self) -> None:
        """Print a message about a process that does not answer; end at once after a signal."""
        there = [known for known in self._lines.values() if known.role]
        if not there:
            return
        now, known = time.monotonic(), min(there, key=lambda known: known.heard)
        silence = now - known.heard
        if self._signals and silence > _SILENCE_AFTER_SIGNAL:
            self._status, self._at_once = 128 + self._signal, True
            print(f"interrupted; {_RESUME}", file=sys.stderr)
        elif min(silence, now - self._printed) > _SILENCE:
            self._printed = now
            print(no_answer(f"worker {known.number} on {known.host}", silence), file=sys.stderr)


def _short_folder() -> str:
    """Create a private folder whose path leaves room for a socket's name (104 bytes in all)."""
    folder = tempfile.mkdtemp(prefix="sos_deap-")
    if len(os.fsencode(folder)) > 80:
        os.rmdir(folder)
        raise InputError(
            f"the folder for temporary files is {os.path.dirname(folder)}, too long for a socket: "
            "set TMPDIR to a shorter one, such as /tmp"
        )
    return folder


def _hosts(hostfile: str | None) -> list[str]:
    """The hosts; the first is this machine, by a name under which the others reach it."""
    from scoop import utils

    if hostfile is None:
        return ["127.0.0.1"]
    try:
        hosts = [name for name, _ in utils.getHosts(hostfile)]
    except (OSError, ValueError) as error:
        raise InputError(
            f"hostfile {hostfile} cannot be read ({first_line(error)}): give lines of hosts"
        ) from error
    try:
        socket.create_server((hosts[0], 0)).close()  # possible only for an address of this machine
    except (IndexError, OSError) as error:
        raise InputError(
            f"hostfile {hostfile} begins with {hosts[0] if hosts else 'nothing'}, which is not "
            "this machine: begin it with the name or address by which the others reach this one"
        ) from error
    if len(set(hosts)) > 1 and (here := socket.gethostbyname(hosts[0])).startswith("127."):
        raise InputError(
            f"hostfile {hostfile} begins with {hosts[0]}, which is {here} on this machine: begin "
            "it with the address by which the others reach this one"
        )
    return hosts
