"""A metric of the user's own: any function of a model."""

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
from sos_deap.tasks.data.draw import Draw, Make
from sos_deap.tasks.data.reading import Part
from sos_deap.tasks.settings import TaskSettings
from sos_deap.user_function import errors_of


class CallableTask:
    """A function from a model to a number; each sub-model is given to it alone.

    :param function: called with the model, which computes as the sub-model does. A greater number
        is better, unless the function has an attribute ``greater_is_better`` that is false.
    :param split: where its data is from, for the report.
    :param arguments: what else it is called with: a tokenizer and the rows of a data set, if any.
    """

    seqlen = 1
    tokens = 0  # how many it reads is its own business
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
        # Now, as what the function reads may change when it is called.
        self._code_hash = _code_hash(self.name, function)

    def __len__(self) -> int:
        return 1

    def describe(self) -> dict[str, Any]:
        """Where its data is from, how many rows it has, and hashes of them and of its code."""
        described: dict[str, Any] = {"split": self._split}
        if self._arguments:
            rows = self._arguments[-1]
            described |= {"rows": len(rows), "row_hash": _hash(repr(rows))}
        return {**described, "code_hash": self._code_hash}

    def score(self, model: Any, examples: slice, sub_models: int) -> Tensor:
        """What the function returns, (1, 1).

        :raises InputError: if that is not a number, or the function raises anything.
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
        """The number."""
        return {self.name: sums[0]}


def _code_hash(name: str, function: Callable[..., Any]) -> str:
    try:
        return code_hash(function)
    except Incomparable as error:
        warnings.warn(
            f"the metric {name} holds a {error}, which cannot be compared with another one: no "
            "other process can use what is computed, nor resume; leave it out in __getstate__",
            stacklevel=4,
        )
        return secrets.token_hex(8)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def make_custom(
    function: Callable[[Any, Any, list[dict[str, Any]]], Any],
    loaded: Pretrained,
    settings: TaskSettings,
) -> Make:
    """A task of a function of model, tokenizer and rows.

    :raises InputError: if the function does not take these three.
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
