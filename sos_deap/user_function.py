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
    return found


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
