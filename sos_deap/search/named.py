"""Parse functions with parameters as a user writes them: ``NAME,key=value,key=value``.

Values are YAML (numbers, ``true``, ``[1, 2]``); nothing is evaluated.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar, get_type_hints

from sos_deap.errors import InputError, unknown
from sos_deap.safe_yaml import plain
from sos_deap.user_function import user_function

Row = TypeVar("Row")

#: The largest size, such as of a population or a tournament.
LARGEST = 1_000_000

# A comma before a key; a comma within a value, as in [1, 2], does not match.
_BETWEEN = re.compile(r",(?=\s*[A-Za-z_]\w*\s*=)")
_EXPONENT = re.compile(r"[-+]?\d+[eE][-+]?\d+")  # a string in YAML, which demands a point


class Named(NamedTuple):
    """The name of a function and its parameters, as the user gave them."""

    name: str
    parameters: dict[str, Any]


def split(text: str) -> Named:
    """Parse ``NAME,key=value,key=value``.

    >>> split("selTournament,tournsize=5")
    Named(name='selTournament', parameters={'tournsize': 5})

    :raises InputError: for text of another form, a value that is not YAML, or a duplicate key.
    """
    name, *pairs = (part.strip() for part in _BETWEEN.split(text))
    parameters: dict[str, Any] = {}
    if not name or "," in name or "=" in name:
        raise InputError(f"cannot read {text!r}: write NAME or NAME,key=value,key=value")
    for key, value in (pair.split("=", 1) for pair in pairs):
        if (key := key.strip()) in parameters:
            raise InputError(f"{key} is given twice in {text!r}: give it once")
        parameters[key] = _value(value.strip(), text)
    return Named(name, parameters)


def look_up(kind: str, name: str, rows: Mapping[str, Row]) -> Row | Callable[..., Any]:
    """Return the row of a table by its name, or the user's function by ``module:function``.

    :param kind: what the name denotes, for the error message, such as ``"algorithm"``.
    :param name: the name.
    :param rows: the table.
    :raises InputError: for a name that is not in the table, and for a module or function that
        cannot be imported.
    """
    if name in rows:
        return rows[name]
    if ":" in name:
        return user_function(name)
    raise unknown(kind, name, [*rows, "module:function"])


def name_of(function: Any) -> str:
    """Return the name of a function or other callable."""
    return str(getattr(function, "__name__", None) or type(function).__name__)


def check_parameters(
    what: str,
    function: Callable[..., Any],
    given: Mapping[str, Any],
    places: int,
    supplied: Collection[str] = (),
    optional: Collection[str] = (),
) -> None:
    """Check the user's parameters of a function against its signature and type hints.

    :param what: what to call the function in messages, such as ``"the algorithm swap"``.
    :param function: a function, or a class whose constructor is called.
    :param given: the user's parameters.
    :param places: number of leading parameters that the caller passes by position.
    :param supplied: names of further parameters that the caller passes, not open to the user.
    :param optional: names of further parameters that the caller passes if the user does not.
    :raises InputError: for a parameter that the function does not have, a required one that is
        missing, and a value of another type than declared.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:  # such as of some functions written in C
        raise InputError(f"{what} has no signature: wrap it in a Python function") from error
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        return
    own = {one.name: one for one in parameters[places:] if one.kind is not one.VAR_POSITIONAL}
    open_to_user = [name for name in own if name not in supplied]
    for name in given:
        if name not in open_to_user:
            if not open_to_user:
                raise InputError(f"{what} takes no parameters: leave {name} out")
            raise unknown(f"parameter of {what}", name, open_to_user)
    known = {*given, *optional}
    lacking = [n for n in open_to_user if own[n].default is own[n].empty and n not in known]
    if lacking:
        name = what.rsplit(" ", 1)[-1]
        example = ",".join(f"{parameter}=..." for parameter in lacking)
        raise InputError(f"{what} lacks {', '.join(lacking)}: write {name},{example}")
    hints = _hints(function)
    for name, value in given.items():
        if name in hints and not _fits(value, hints[name]):
            kind = getattr(hints[name], "__name__", hints[name])
            raise InputError(f"{name} of {what} is {value!r}: expected {kind}")


def check_sizes(what: str, given: Mapping[str, Any]) -> None:
    """Raise :class:`InputError` for integers too large for any search, above :data:`LARGEST`."""
    for name, value in given.items():
        if type(value) is int and abs(value) > LARGEST:
            shown = str(value) if abs(value) < 10**30 else "a number of over 30 digits"
            raise InputError(f"{name} of {what} is {shown}: give at most {LARGEST:,}")


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the declared types of a function's parameters; none if they cannot be resolved."""
    try:
        function = function.func if isinstance(function, partial) else function
        code: Any = vars(function)["__init__"] if isinstance(function, type) else function
        return get_type_hints(code)
    except Exception:  # a user's annotations may name anything
        return {}


def _fits(value: Any, hint: Any) -> bool:
    try:
        # An integer is accepted for a float.
        return isinstance(value, hint) or (type(value) is int and isinstance(float(value), hint))
    except TypeError:  # isinstance does not support the hint, such as list[int]
        return True


def _value(value: str, text: str) -> Any:
    if _EXPONENT.fullmatch(value):
        return float(value)
    try:
        return plain(value)
    except ValueError as error:
        raise InputError(f"cannot read the value {value!r} in {text!r}: {error}") from error
