"""The one error a user can mend: what was given, what was expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input from the user; the command line prints it as one line and exits with status 2."""


class WorkerLostError(RuntimeError):
    """A process that was to compute something is gone; the command line exits with status 1."""


def one_line(text: str) -> str:
    """A text without line breaks and what else would move a terminal's cursor."""
    return "".join(character if character.isprintable() else " " for character in text)


def say(text: str) -> None:
    """Print lines in which no name or text from a file can move a terminal's cursor."""
    print("\n".join(map(one_line, text.split("\n"))), flush=True)


def check_utf8(arguments: Iterable[str]) -> None:
    """Raise :class:`InputError` for one that is no UTF-8, which no file could name afterwards."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{argument} is not UTF-8: rename the file or folder, or write it in UTF-8"
            ) from error


def first_line(error: BaseException) -> str:
    """What an error of a library says, on one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(" :")


def unknown(kind: str, given: str, known: Iterable[str]) -> InputError:
    """The error for a name that is in no table, with the nearest name that is.

    :param kind: what the name stands for, such as ``"algorithm"``.
    :param given: the name as the user wrote it.
    :param known: the names that exist.
    :returns: the error, for the caller to raise.
    """
    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return InputError(f"unknown {kind} {given!r}: {hint}known are {', '.join(names)}")
