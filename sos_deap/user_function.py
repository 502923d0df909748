"""Functions of the user's own, named as ``module:function``: metrics, operators, algorithms."""

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
    """The function that a user names as ``module:function``; the module may lie in this folder.

    :raises InputError: if there is no such module or function, or the module fails.
    """
    module_name, _, function_name = name.partition(":")
    if "" not in sys.path and "." not in sys.path:
        sys.path.insert(0, "")  # as `python -m` has it, and the installed program has not
    try:
        module = import_module(module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a user's module may raise anything, SystemExit too
        said = first_line(error) if isinstance(error, Exception) else _described(error)
        raise InputError(f"cannot import {module_name} of {name}: {said}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise unknown(f"function in {module_name}", function_name, names)
    found: Callable[..., Any] = function
    return found


@contextmanager
def errors_of(what: str) -> Iterator[None]:
    """Make one line of any exception of a user's function.

    :param what: the function, such as ``"the metric f"``.
    :raises InputError: in place of anything but ``KeyboardInterrupt``.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit, too: it would end the program as if all was well
        # The first frame is the caller's, the last may be of a library.
        own = traceback.extract_tb(error.__traceback__)[2:3]
        place = "".join(f" ({Path(frame.filename).name}, line {frame.lineno})" for frame in own)
        raise InputError(f"{what} raised {_described(error)}{place}") from error


def _described(error: BaseException) -> str:
    """Type and message of an error, on one line."""
    kind = type(error).__name__
    try:
        text = one_line(first_line(error))[:300]
    except Exception:  # its own __str__ raises
        return kind
    return kind if text == kind else f"{kind}: {text}"
