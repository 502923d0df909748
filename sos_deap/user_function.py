"""User functions named as ``module:function``: metrics, operators and algorithms."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from sos_deap.errors import InputError, first_line, one_line, unknown

_imported: set[str] = set()  # names of the modules that users named


def user_function(name: str) -> Callable[..., Any]:
    """Import a user function.

    :param name: ``"module:function"``; the module may be in the current folder.
    :raises InputError: if the module or function does not exist, or the import fails.
    """
    module_name, _, function_name = name.partition(":")
    if "" not in sys.path and "." not in sys.path:
        sys.path.insert(0, "")  # `python -m` adds it, the installed program does not
    try:
        module = import_module(module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # user modules may raise anything, also SystemExit
        reason = first_line(error) if isinstance(error, Exception) else _described(error)
        raise InputError(f"cannot import {module_name} of {name}: {reason}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise unknown(f"function in {module_name}", function_name, names)
    found: Callable[..., Any] = function
    _imported.add(module_name)
    return found


def raised_by_user(error: Exception) -> str | None:
    """Return a description of an exception from the code of a module that the user named.

    :returns: module, line, type and message on one line; ``None`` if no such code raised it, or
        this package did which that code called.
    """
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        module = str(frame.f_globals.get("__name__"))
        if module in _imported:
            file = Path(frame.f_code.co_filename).name
            return f"{frame.f_code.co_name} ({file}, line {line}) raised {_described(error)}"
        if module.partition(".")[0] == "sos_deap":
            return None
    return None


@contextmanager
def errors_of(what: str) -> Iterator[None]:
    """Turn any exception of a user function into an :class:`InputError` of one line.

    :param what: description of the function for the message, such as ``"the metric f"``.
    :raises InputError: in place of any exception but ``KeyboardInterrupt``.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also SystemExit, which would exit with status 0
        # The first frame is of the caller, the second of the user function.
        own = traceback.extract_tb(error.__traceback__)[2:3]
        place = "".join(f" ({Path(frame.filename).name}, line {frame.lineno})" for frame in own)
        raise InputError(f"{what} raised {_described(error)}{place}") from error


def _described(error: BaseException) -> str:
    """Return type and message of an exception on one line."""
    kind = type(error).__name__
    try:
        text = one_line(first_line(error))[:300]
    except Exception:  # its own __str__ raises
        return kind
    return kind if text == kind else f"{kind}: {text}"
