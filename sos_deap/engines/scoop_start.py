"""Start SCOOP's processes with private sockets.

    python -m sos_deap.engines.scoop_start ROLE WHERE [arguments]

SCOOP binds its sockets to all interfaces and unpickles every message. Here the sockets are files in
a private folder, if WHERE is one, or else bound to one address: the broker's to WHERE, a worker's
to its own address on the route to the broker. The roles, each started by the one before:

- ``launcher``, with the arguments of ``python -m scoop``: runs the broker in a thread;
- ``host``, with a number of workers and their arguments: one on each machine;
- ``worker``, with the arguments of ``python -m scoop.bootstrap``.
"""

from __future__ import annotations

import os
import runpy
import shutil
import socket
import sys
import time
from contextlib import suppress
from subprocess import Popen
from threading import Thread
from typing import Any

import scoop
import zmq
from scoop import launcher, utils
from scoop.launch import Host


def keep_private(where: str) -> None:
    """Bind the sockets of this process in a folder or to an address, not to all interfaces.

    :param where: an absolute path of a folder, or the broker's host name.
    """
    sockets: Any = zmq.Socket
    bind, connect = sockets.bind, sockets.connect

    def bind_to_address(self: Any, endpoint: str) -> Any:
        name = getattr(scoop, "worker", where.encode()).decode().partition(":")[0]
        return bind(self, endpoint.replace("*", socket.gethostbyname(name), 1))

    def bind_in_folder(self: Any, endpoint: str) -> Any:
        port = endpoint.rpartition(":")[2]
        if port == "*":  # for the broker, which is first; workers draw a port above 49151
            port = str(1024 + len(os.listdir(where)))
        os.mkdir(os.path.join(where, port))  # fails where ZeroMQ would replace another socket
        return bind(self, _path(where, port))

    def connect_in_folder(self: Any, endpoint: str) -> Any:
        return connect(self, _path(where, endpoint.rpartition(":")[2]))

    if os.path.isabs(where):
        sockets.bind, sockets.connect = bind_in_folder, connect_in_folder
    else:
        sockets.bind = bind_to_address


def _path(folder: str, port: str) -> str:
    """The endpoint that replaces a TCP port; the port also follows its last colon."""
    return f"ipc://{folder}/{port}/:{port}"


class _Host(Host):  # type: ignore[misc]
    """A machine whose processes run in the roles of this module."""

    where = ""

    def _WorkerCommand_launcher(self) -> list[str]:  # noqa: N802
        python = self.workersArguments.pythonExecutable
        return [python, "-m", __spec__.name, "host", self.where, str(self.workerAmount)]

    def _WorkerCommand_options(self) -> list[str]:  # noqa: N802
        options: list[str] = super()._WorkerCommand_options()
        # SCOOP uses 127.0.0.1 on the broker's host, to which the broker is not bound.
        options[options.index("--brokerHostname") + 1] = self.workersArguments.brokerHostname
        return options

    def launch(self, tunnelPorts: Any = None) -> Any:  # noqa: N803
        """Start the processes; end SCOOP if those of another host end too early."""
        processes = super().launch(tunnelPorts)
        if not self.isLocal():
            Thread(target=lambda: os._exit(1) if processes[0].wait() else None, daemon=True).start()
        return processes


def _launcher(where: str) -> None:
    _Host.where = where
    launcher.ScoopApp.LAUNCH_HOST_CLASS = _Host
    if not os.path.isabs(where):
        # SCOOP connects by ssh to every host whose name it does not know as local.
        utils.localHostnames.append(where)
    try:
        launcher.main()
    finally:
        if os.path.isabs(where):
            shutil.rmtree(where, ignore_errors=True)


def _host(where: str) -> int:
    """Start the workers of this machine; end all when one is lost or the first ends."""
    count, *arguments = sys.argv[1:]
    command = [sys.executable, "-m", __spec__.name, "worker", where]
    others = list(arguments)
    with suppress(ValueError):
        others.remove("--origin")  # SCOOP's flag, which precedes the program's arguments
    workers = [Popen([*command, *arguments])]
    workers += [Popen([*command, *others]) for _ in range(int(count) - 1)]
    origin = len(others) < len(arguments)
    try:
        while True:
            ended = [worker.poll() for worker in workers]
            if lost := [status for status in ended if status]:
                return 1 if lost[0] < 0 else lost[0]
            if None not in ended or (origin and ended[0] == 0):
                return 0
            time.sleep(0.1)
    finally:
        for worker in workers:
            worker.terminate()


def _worker(_: str) -> None:
    runpy.run_module("scoop.bootstrap.__main__", run_name="__main__", alter_sys=True)


_ROLES = {"launcher": _launcher, "host": _host, "worker": _worker}

if __name__ == "__main__":
    role, where = sys.argv[1:3]
    del sys.argv[1:3]
    if role != "host":
        keep_private(where)
    sys.exit(_ROLES[role](where))
