"""What all commands share: bad input is one line and exit status 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from sos_deap.errors import InputError, first_line


class Parser(argparse.ArgumentParser):
    """A parser of flags that raises :class:`InputError` for bad ones."""

    def error(self, message: str) -> NoReturn:
        """Raise; what argparse would print and exit with comes from :func:`answered`."""
        raise InputError(message)


def answered(job: Callable[[], Any]) -> int:
    """Do a job; returns the exit status."""
    try:
        job()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, say; what was written before is whole
        print(f"error: {first_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def quiet() -> None:
    """Silence the progress bars and advice of the libraries; errors are this program's to tell."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
