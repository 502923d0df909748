"""Functions of the user's own, named as ``module:function``: metrics, operators, algorithms."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from sos_deap.errors import InputError, first_line, unknown


def user_function(name: str) -> Callable[..., Any]:
    """The function that a user names as ``module:function``; the module may lie in this folder.

    :raises InputError: if there is no such module or function, or the module fails.
    """
    module_name, _, function_name = name.partition(":")
    if "" not in sys.path and "." not in sys.path:
        sys.path.insert(0, "")  # as `python -m` has it, and the installed program has not
    try:
        module = import_module(module_name)
    except Exception as error:  # a user's module may raise anything
        raise InputError(f"cannot import {module_name} of {name}: {first_line(error)}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise unknown(f"function in {module_name}", function_name, names)
    found: Callable[..., Any] = function
    return found
