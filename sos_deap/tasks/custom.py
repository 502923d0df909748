"""A user's metric: any function from a model to a number."""

from __future__ import annotations

import hashlib
import inspect
import reprlib
import secrets
import warnings
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from sos_deap.errors import InputError, first_line, one_line
from sos_deap.models.loading import Pretrained
from sos_deap.tasks.code import Incomparable, code_hash
from sos_deap.tasks.data.draw import Draw, TaskMaker
from sos_deap.tasks.data.reading import Part
from sos_deap.tasks.settings import TaskSettings
from sos_deap.user_function import errors_of


class CallableTask:
    """A task whose metric is a user's function, called for one sub-model at a time.

    :param function: takes the model, which computes as the sub-model does, and ``arguments``;
        returns a number. Higher is better, unless the function has an attribute
        ``greater_is_better`` that is false.
    :param split: source of the function's data, for the report.
    :param arguments: further arguments: nothing, or a tokenizer and the rows of a data set.
    """

    seqlen = 1
    tokens = 0  # unknown
    one_pass = False
    reference_tokens = 0
    shares_passes = False

    def __init__(
        self,
        function: Callable[..., Any],
        split: str = "its own",
        arguments: tuple[Any, ...] = (),
    ) -> None:
        self.name: str = getattr(function, "__name__", type(function).__name__)
        self.greater_is_better = bool(getattr(function, "greater_is_better", True))
        self._function, self._split, self._arguments = function, split, arguments
        # Computed now, since a call may change the values that the function reads.
        self._code_hash = _code_hash(self.name, function)

    def __len__(self) -> int:
        return 1

    def describe(self) -> dict[str, Any]:
        """Return the source, number and hash of the rows, and a hash of the function's code."""
        described: dict[str, Any] = {"split": self._split}
        if self._arguments:
            rows = self._arguments[-1]
            described |= {"rows": len(rows), "row_hash": _hash(repr(rows))}
        return {**described, "code_hash": self._code_hash}

    def score(self, model: Any, examples: slice, sub_models: int) -> Tensor:
        """Return the function's value for one sub-model, (1, 1).

        :raises InputError: if the value is not a number, or the function raises an exception.
        """
        with errors_of(f"the metric {self.name}"):
            value = self._function(model, *self._arguments)
            if isinstance(value, Tensor) and value.numel() == 1:
                value = value.item()
            number = float(value) if isinstance(value, Real) else None
        if number is None:
            raise InputError(
                f"the metric {self.name} returned {one_line(reprlib.repr(value))}: "
                "expected a number for each model"
            )
        return torch.tensor([[number]], dtype=torch.float64)

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """Return the value by the function's name."""
        return {self.name: sums[0]}


def _code_hash(name: str, function: Callable[..., Any]) -> str:
    """Return the hash of a function's code; a random one, with a warning, if it has none."""
    try:
        return code_hash(function)
    except Incomparable as error:
        warnings.warn(
            f"the metric {name} holds a {error}, which cannot be compared between processes: its "
            "evaluations cannot be reused or resumed; leave it out in __getstate__",
            stacklevel=4,
        )
        return secrets.token_hex(8)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def make_custom(
    function: Callable[[Any, Any, list[dict[str, Any]]], Any],
    loaded: Pretrained,
    settings: TaskSettings,
) -> TaskMaker:
    """Return what makes a task of a user's function on the rows of a data set.

    :param function: takes a model, its tokenizer and a list of rows (dictionaries by column).
    :param loaded: model and tokenizer.
    :param settings: settings of the task; not used.
    :raises InputError: if the function does not take three arguments.
    """
    try:
        inspect.signature(function).bind(loaded.model, loaded.tokenizer, [])
    except TypeError as error:
        raise InputError(
            f"the metric {getattr(function, '__name__', function)} cannot be called with a model, "
            f"a tokenizer and a list of rows: {first_line(error)}"
        ) from error

    def task(draw: Draw) -> CallableTask:
        assert draw.part is not None
        rows = _rows(draw.part)
        chosen = draw.rows(lambda part: list(map(repr, _rows(part))))
        arguments = (loaded.tokenizer, [rows[i] for i in chosen])
        return CallableTask(function, draw.part.split, arguments)

    return task


def _rows(part: Part) -> list[dict[str, Any]]:
    columns = zip(*part.columns.values(), strict=True)
    return [dict(zip(part.columns, values, strict=True)) for values in columns]
