"""Set up a worker process: its GPU, its share of the cores, its signals."""

from __future__ import annotations

import os
import signal
import threading
from multiprocessing import parent_process

_configured: list[bool] = []  # not empty once this process is set up


def gpus() -> list[str]:
    """The GPUs that this process may use, by CUDA's names, without initialising one."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible:
        return visible.split(",")
    return [str(number) for number in range(torch.cuda.device_count())]


def begin(number: int, together: int) -> None:
    """Set up a worker: a GPU of its own if there is one, and its share of the cores.

    :param number: number of the worker on its host, from 0.
    :param together: workers on the host.
    """
    devices = gpus()
    if devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
    configure_process(together)


def is_configured() -> bool:
    """Whether this process has been set up."""
    return bool(_configured)


def configure_process(together: int) -> None:
    """Set torch's threads to this process's share of the cores, and silence the libraries.

    :param together: processes that share the cores.
    """
    import torch

    from sos_deap.cli import quiet

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // together))
    quiet()
    _configured.append(True)


def ignore_sigint() -> None:
    """Ignore Ctrl-C, which the parent handles, and end when the parent ends, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):  # the parent has blocked it until now
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process with its parent: the workers of a killed one would wait for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
