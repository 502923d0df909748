"""Processes that begin with torch and sos_deap imported, which takes a new one many seconds."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path

RUN = "import sys; from sos_deap.run import main; sys.exit(main(sys.argv[1:]))"

#: Starts processes as copies of one that has these imported. It computes nothing itself and has no
#: threads, which a copy would lack; hence without the package datasets, whose allocator has one.
SERVER = get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "sos_deap.finish",
        "sos_deap.evaluation.evaluator",
        "sos_deap.tasks.registry",
        "transformers.models.llama.modeling_llama",
    ]
)


@contextmanager
def running(
    code: str, arguments: Sequence[str], output: Path | str = os.devnull
) -> Iterator[ForkServerProcess]:
    """Run ``python -c code arguments`` in a process of its own, killed at the end of the context.

    :param code: a program.
    :param arguments: its arguments, ``sys.argv[1:]``.
    :param output: file for what it prints.
    """
    state = (os.getcwd(), dict(os.environ))
    process = SERVER.Process(target=_run, args=(code, list(arguments), str(output), *state))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def status_of(code: str, arguments: Sequence[str], output: Path | str = os.devnull) -> int | None:
    """Run a program as :func:`running` does, and return its exit status."""
    with running(code, arguments, output) as process:
        process.join(240)
        return process.exitcode


def _run(
    code: str, arguments: list[str], output: str, folder: str, environment: dict[str, str]
) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    with open(output, "wb") as file:
        for standard in (1, 2):
            os.dup2(file.fileno(), standard)
    sys.argv = ["-c", *arguments]
    exec(compile(code, "-c", "exec"), {"__name__": "__main__"})
