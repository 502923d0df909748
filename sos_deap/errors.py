"""Errors for the user: what was given, what was expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input from the user; the command line prints it as one line and exits with status 2."""


class WorkerLostError(RuntimeError):
    """A worker process ended unexpectedly; the command line exits with status 1."""


def one_line(text: str) -> str:
    """Replace line breaks and other characters that move a terminal's cursor by spaces."""
    return "".join(character if character.isprintable() else " " for character in text)


def print_lines(text: str) -> None:
    """Print lines; characters that move a terminal's cursor become spaces."""
    print("\n".join(map(one_line, text.split("\n"))), flush=True)


def check_utf8(arguments: Iterable[str]) -> None:
    """Raise :class:`InputError` for an argument that is not UTF-8, which no file could record."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{argument} is not UTF-8: rename the file or folder, or write it in UTF-8"
            ) from error


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or its type if there is none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(" :")


def unknown(kind: str, given: str, known: Iterable[str], where: str | None = None) -> InputError:
    """Return the error for an unknown name, with the nearest known name as a suggestion.

    :param kind: kind of the name, such as ``"algorithm"``.
    :param given: the name as the user wrote it.
    :param known: the known names.
    :param where: where many known names are listed, such as ``"--help lists all"``; default: the
        message lists them.
    :returns: the error, which the caller raises.
    """
    names = sorted(known)
    bare = {name.lstrip("-"): name for name in names}  # the dashes of flags are alike
    near = difflib.get_close_matches(given.lstrip("-"), bare, n=1, cutoff=0.5)
    hint = f"did you mean {bare[near[0]]!r}? " if near else ""
    listed = f"known are {', '.join(names)}" if where is None else where
    return InputError(f"unknown {kind} {given!r}: {hint}{listed}")
