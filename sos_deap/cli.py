"""What all commands share: bad input is one line and exit status 2."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, NoReturn, TextIO

from sos_deap.errors import InputError, WorkerLostError, check_utf8, first_line, one_line


class _HelpShown(SystemExit):
    """The end of a program that has shown its help."""


class Parser(argparse.ArgumentParser):
    """A parser of flags that raises :class:`InputError` for bad ones."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does; raises :class:`InputError` for names that are not UTF-8."""
        check_utf8(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise :class:`InputError` instead of printing and exiting as argparse does."""
        raise InputError(message)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """End the program, after its help was shown."""
        raise _HelpShown(status)


class Interrupted(KeyboardInterrupt):
    """A signal asked for the end, and what was under way is finished.

    :param number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        #: What to tell the user.
        self.message = "interrupted"


_pending: list[int] = []  # the signal that asked for the end, as long as it is to come


def pending_end() -> Interrupted | None:
    """What to raise if a signal asked for the end, where waiting for it takes too long."""
    return Interrupted(_pending[0]) if _pending else None


def no_answer(who: str, seconds: float) -> str:
    """The message about workers that may have been stopped."""
    return f"no answer from {who} for {seconds:.0f} s; Ctrl-C ends the run, which can be resumed"


@contextmanager
def graceful_interrupt() -> Iterator[Callable[[], None]]:
    """Let Ctrl-C and SIGTERM end the work where that is easy, and a second one at once.

    :returns: a function to call there, which raises :class:`Interrupted` after a signal; the end
        of the work is such a place.
    """

    def handle(number: int, _: Any) -> None:
        if _pending:
            raise KeyboardInterrupt
        _pending.append(number)
        print("finishing what is being computed; once more to end at once", file=sys.stderr)

    def check() -> None:
        if end := pending_end():
            raise end

    if threading.current_thread() is not threading.main_thread():
        yield check  # only the main thread may handle signals
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield check
        check()  # a signal after the last time that anybody asked
    finally:
        _pending.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def standard_output(alone: bool) -> Iterator[TextIO | None]:
    """Keep standard output free of what functions of the user's and libraries print.

    Meanwhile that goes to standard error, also what is printed by code in C and by processes that
    are started.

    :param alone: whether to do so.
    :returns: a stream to standard output, or ``None`` if nothing is kept from it.
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
    except OSError:  # it is in memory
        return False


def run_with_exit_status(job: Callable[[], Any]) -> int:
    """Do a job; returns the exit status."""
    try:
        job()
    except InputError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 2
    except _HelpShown:
        raise
    except SystemExit as end:  # its status may be that of success, and there is no result
        print(f"error: a function of the user's called sys.exit({end.code!r})", file=sys.stderr)
        return 2
    except (OSError, WorkerLostError) as error:  # a full disk, say; what was written is whole
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
    """Silence the progress bars and advice of the libraries; errors are this program's to tell."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
