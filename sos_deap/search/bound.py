"""The maximum sparsity that ``toolbox.evaluate`` was registered with, read and replaced."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any


def registered_bound(evaluate: Any) -> float:
    """Return the keyword argument ``max_sparsity`` of a toolbox's ``evaluate``; 1 without one."""
    bound: float = _keywords(evaluate).get("max_sparsity", 1.0)
    return bound


def with_bound(evaluate: Any, max_sparsity: float) -> Any:
    """Return a toolbox's ``evaluate`` with another ``max_sparsity``, if it was registered with one.

    A function that was registered without this keyword argument is returned unchanged.
    """
    keywords = _keywords(evaluate)
    if "max_sparsity" not in keywords:
        return evaluate
    return partial(evaluate.func, *evaluate.args, **{**keywords, "max_sparsity": max_sparsity})


def unbounded(evaluate: Any) -> Any:
    """Return a toolbox's ``evaluate`` for sub-models of any sparsity, see :func:`with_bound`."""
    return with_bound(evaluate, 1.0)


def _keywords(evaluate: Any) -> Mapping[str, Any]:
    return evaluate.keywords if isinstance(evaluate, partial) else {}
