"""Parts of all commands: parser, exit status, signals, standard output, quiet libraries."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn, TextIO

from sos_deap.errors import (
    InputError,
    WorkerLostError,
    check_utf8,
    first_line,
    one_line,
    unknown,
)

# torchao, which transformers imports if it is installed, logs which of its kernels it cannot load,
# also on machines that have no use for them.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)


class _HelpShown(SystemExit):
    """Exit of a program after it has printed its help."""


class Parser(argparse.ArgumentParser):
    """Argument parser that raises :class:`InputError` instead of exiting."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does; raises :class:`InputError` for arguments that are not UTF-8."""
        check_utf8(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does; raises :class:`InputError` for a flag that is not known."""
        given = sys.argv[1:] if args is None else args
        for argument in takewhile("--".__ne__, given):
            flag = argument.partition("=")[0]
            if flag.startswith("--") and flag not in self._option_string_actions:
                raise unknown("flag", flag, self._option_string_actions, "--help lists all")
        return super().parse_args(given, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise :class:`InputError` with the message of argparse."""
        raise InputError(message)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Exit after the help was printed."""
        raise _HelpShown(status)


def check_free(path: Path) -> None:
    """Raise :class:`InputError` for an output that exists or whose folder does not exist."""
    try:
        exists = path.exists() or path.is_symlink()
    except (OSError, ValueError) as error:  # a name that is too long or invalid
        why = getattr(error, "strerror", None) or error
        raise InputError(f"cannot write --output {str(path)[:40]}...: {why}") from error
    if exists:
        raise InputError(f"output {path} exists: give another --output")
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}")


class Interrupted(KeyboardInterrupt):
    """Raised after a first SIGINT or SIGTERM, once the computation under way is complete.

    :param number: number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        #: Line that the command prints.
        self.message = "interrupted"


_pending: list[int] = []  # the signal that was received, until Interrupted is raised for it


def pending_end() -> Interrupted | None:
    """Return the exception to raise if a signal was received, for code that cannot wait longer."""
    return Interrupted(_pending[0]) if _pending else None


def no_answer(workers: str, seconds: float) -> str:
    """Return the message about workers that may have been stopped."""
    return (
        f"no answer from {workers} for {seconds:.0f} s; Ctrl-C ends the run, which can be resumed"
    )


@contextmanager
def graceful_interrupt() -> Iterator[Callable[[], None]]:
    """Delay a first SIGINT or SIGTERM to the next safe point; a second one interrupts at once.

    The end of the context is a safe point, too.

    :returns: a function to call at each safe point; it raises :class:`Interrupted` after a signal.
    """

    def handle(number: int, _: Any) -> None:
        if _pending:
            raise KeyboardInterrupt
        _pending.append(number)
        print("finishing the current computation; press Ctrl-C again to stop now", file=sys.stderr)

    def check() -> None:
        if end := pending_end():
            raise end

    if threading.current_thread() is not threading.main_thread():
        yield check  # only the main thread may handle signals
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield check
        check()  # for a signal after the last safe point
    finally:
        _pending.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def standard_output(alone: bool) -> Iterator[TextIO | None]:
    """Redirect what user functions and libraries print from standard output to standard error.

    This includes output of C code and of child processes.

    :param alone: whether to redirect.
    :returns: a stream to the real standard output, or ``None`` without redirection.
    """
    if not alone:
        yield None
        return
    stream = sys.stdout
    stream.flush()
    descriptor = os.dup(1)
    with open(descriptor, "w", encoding="utf-8") as out, redirect_stdout(sys.stderr):
        os.dup2(2, 1)
        try:
            yield out if _is_descriptor(stream, 1) else stream
        finally:
            out.flush()
            os.dup2(descriptor, 1)


def _is_descriptor(stream: TextIO, number: int) -> bool:
    try:
        return stream.fileno() == number
    except OSError:  # a stream in memory
        return False


def run_with_exit_status(job: Callable[[], Any]) -> int:
    """Call a function and return the exit status; errors are printed on one line each."""
    try:
        job()
    except InputError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 2
    except _HelpShown:
        raise
    except SystemExit as end:  # its status may be 0, although there is no result
        print(f"error: a user function called sys.exit({end.code!r})", file=sys.stderr)
        return 2
    except (OSError, WorkerLostError) as error:  # such as a full disk; files are written whole
        print(f"error: {one_line(first_line(error))}", file=sys.stderr)
        return 2 if getattr(error, "errno", None) == errno.ENAMETOOLONG else 1
    except Interrupted as end:
        print(one_line(end.message), file=sys.stderr)
        return 128 + end.number
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def quiet() -> None:
    """Silence progress bars and advice of the libraries; this program prints errors itself."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
