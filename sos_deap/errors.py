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
