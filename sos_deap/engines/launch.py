"""Run a program under SCOOP, and see to its end: the true exit status, no hang and no orphan."""

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

#: Seconds that the workers have to come, and to go.
_TO_COME, _TO_GO = 300.0, 10.0

#: Seconds of silence after which the user is informed; and after which a signal ends the run.
_SILENCE, _SILENCE_AFTER_SIGNAL = 60.0, 10.0


@dataclass
class _Line:
    """What is known of who is at the other end."""

    buffer: bytes = b""
    role: str = ""
    host: str = ""
    number: int = 0
    heard: float = field(default_factory=time.monotonic)


class Lost(Exception):  # noqa: N818
    """A process is gone before the program was done; says which."""


def launch(target: str, arguments: list[str], workers: int, hostfile: str | None = None) -> int:
    """Run a function of command line arguments in the first of some SCOOP workers.

    :param target: ``module:function``, which takes a list of arguments and returns a status.
    :param arguments: its arguments.
    :param workers: processes, of which the first runs the function and computes, too.
    :param hostfile: a host a line, reached by ssh; ``None`` for this machine.
    :returns: the status that the function returned; 1 if a process was lost.
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


_GO_ON = "to go on: python -m sos_deap.run --resume and the run folder"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Run:
    """SCOOP's processes, and the lines to them."""

    def __init__(
        self, target: str, arguments: list[str], workers: int, hostfile: str | None
    ) -> None:
        hosts = _hosts(hostfile)
        self._workers, self._token = workers, secrets.token_hex(16)
        #: Of the sockets, on one machine: nobody else may look into it.
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
        else:  # not a batch system's hosts either
            command += ["--hosts", *hosts]
        command += ["-n", str(workers)]
        command += [scoop_entry.__file__, address, self._token, str(together), target]
        self._process = subprocess.Popen(
            [*command, *arguments],
            start_new_session=True,  # signals are passed on by the line, once
            stdin=subprocess.DEVNULL,
        )
        self._started = time.monotonic()
        self._said = self._started  # when the user was last informed of a silence

    def watch(self) -> int:
        """Wait for the program's end; returns its status."""
        while self._status is None:
            for key, _ in self._selector.select(timeout=0.2):
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._hear(key.fileobj)
            self._check()
        return self._status

    def signalled(self, number: int, _: Any) -> None:
        """Pass a first signal on to the program; end at once after a second."""
        self._signals, self._signal = self._signals + 1, number
        origin = [line for line, known in self._lines.items() if known.role == "origin"]
        if origin and self._signals == 1:
            with suppress(OSError):  # it is gone, which is noticed where it is heard
                origin[0].sendall(b"signal %d\n" % number)
        else:
            self._status, self._at_once = 128 + number, True

    def end(self) -> None:
        """Wait a little for SCOOP to end its processes; end what is left."""
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
            else:  # a stranger, who may say more
                self._cut(line)
                return

    def _cut(self, line: Any) -> None:
        known = self._lines.pop(line)
        self._selector.unregister(line)
        line.close()
        if known.role and self._status is None:
            raise Lost(
                f"a process of the engine scoop on {known.host} was lost, out of memory perhaps: "
                f"what was computed before is kept; {_GO_ON}"
            )

    def _check(self) -> None:
        """See that SCOOP goes on, and that all workers have come."""
        if self._status is not None:
            return
        if self._process.poll() is not None:
            raise Lost(
                f"SCOOP ended with status {self._process.returncode} before the program, as a "
                f"process of it was lost perhaps: what was computed before is kept; {_GO_ON}"
            )
        there = sum(bool(known.role) for known in self._lines.values())
        if there < self._workers and time.monotonic() > self._started + _TO_COME:
            raise Lost(
                f"{there} of {self._workers} workers came within {_TO_COME:.0f} s: see that "
                "ssh reaches each host without a password, and python is at the same place there"
            )
        self._check_silence()

    def _check_silence(self) -> None:
        """Inform the user of a process that is stopped, say; end at once if a signal has come."""
        there = [known for known in self._lines.values() if known.role]
        if not there:
            return
        now, known = time.monotonic(), min(there, key=lambda known: known.heard)
        silence = now - known.heard
        if self._signals and silence > _SILENCE_AFTER_SIGNAL:
            self._status, self._at_once = 128 + self._signal, True
            print(f"interrupted; {_GO_ON}", file=sys.stderr)
        elif min(silence, now - self._said) > _SILENCE:
            self._said = now
            print(no_answer(f"worker {known.number} on {known.host}", silence), file=sys.stderr)


def _short_folder() -> str:
    """A new folder of this user's alone, whose path leaves room for a socket's name (104 bytes)."""
    folder = tempfile.mkdtemp(prefix="sos_deap-")
    if len(os.fsencode(folder)) > 80:
        os.rmdir(folder)
        raise InputError(
            f"the folder for temporary files is {os.path.dirname(folder)}, too long for a socket: "
            "set TMPDIR to a shorter one, such as /tmp"
        )
    return folder


def _hosts(hostfile: str | None) -> list[str]:
    """The hosts, of which the first is this one, by the name that the others know."""
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
        socket.create_server((hosts[0], 0)).close()  # which only works here
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
