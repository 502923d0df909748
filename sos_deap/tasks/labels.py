"""Labels from wherever people keep them, as the numbers of the model's classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sos_deap.errors import InputError
from sos_deap.tasks.columns import LABELS, named, one
from sos_deap.tasks.data import Part


def single_labels(part: Part, given: str | None, config: Any) -> Tensor:
    """The class numbers of a part's rows, (rows,).

    :param given: the label column's name, if the user gave one.
    :param config: the model's, for its classes.
    :raises InputError: for labels that are not among the model's classes.
    """
    column = one(part, given, LABELS, "label")
    values, classes = list(part.columns[column]), part.label_names.get(column)
    numbers = {name.casefold(): number for name, number in (config.label2id or {}).items()}
    by_name = classes is not None and {name.casefold() for name in classes} == set(numbers)
    if by_name and classes is not None:  # the same classes, maybe in another order
        values = [classes[value] if type(value) is int else value for value in values]
    return torch.tensor([_class(part, column, v, config, numbers) for v in values])


def _class(part: Part, column: str, value: Any, config: Any, numbers: dict[str, int]) -> int:
    number = numbers.get(value.casefold()) if isinstance(value, str) else value
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if type(number) is not int or not 0 <= number < config.num_labels:
        known = ", ".join(list(numbers)[:10])
        raise InputError(
            f"{part.split} has the label {value!r} in its column {column}: the model has the "
            f"classes 0 to {config.num_labels - 1} ({known})"
        )
    return number


def multiple_labels(part: Part, given: str | None, config: Any) -> Tensor:
    """The labels of a part's rows, (rows, labels) of 0 and 1.

    They stand in one column of lists (names, numbers, or a 0 or 1 for each label), or in one 0/1
    column for each label.

    :param given: the columns' names, if the user gave them, with commas.
    :param config: the model's, for its labels.
    :raises InputError: for labels that are not the model's.
    """
    columns = named(part, given, "label") or _label_columns(part)
    if len(columns) == 1:
        rows = _from_lists(part, columns[0], config)
    else:
        rows = _from_columns(part, columns, config)
    for row in rows:
        if stray := [value for value in row if value not in (0, 1)]:
            raise InputError(f"{part.split} has the label {stray[0]!r}: expected 0 or 1")
    return torch.tensor([[int(value) for value in row] for row in rows])


def _label_columns(part: Part) -> list[str]:
    """The usual column of lists, or all columns of 0 and 1."""
    for name in LABELS:
        if name in part.columns and isinstance(part.columns[name][0], list | tuple):
            return [name]
    flags = [
        name
        for name, values in part.columns.items()
        if all(type(value) in (int, bool) and value in (0, 1) for value in values)
    ]
    return flags if len(flags) > 1 else [one(part, None, LABELS, "label")]


def _from_columns(part: Part, columns: list[str], config: Any) -> list[Sequence[Any]]:
    """Rows of 0/1 from one column for each label, in the order of the model's labels."""
    numbers = config.label2id or {}
    if set(columns) == set(numbers):
        columns = sorted(columns, key=lambda name: int(numbers[name]))
    elif len(columns) != config.num_labels:
        raise InputError(
            f"{part.split} has {len(columns)} columns of labels ({', '.join(columns[:5])}, ...): "
            f"the model has {config.num_labels}; name them with --label_column"
        )
    return list(zip(*(part.columns[name] for name in columns), strict=True))


def _from_lists(part: Part, column: str, config: Any) -> list[Sequence[Any]]:
    """Rows of 0/1 from a column of lists."""
    rows = list(part.columns[column])
    if stray := [row for row in rows if not isinstance(row, list | tuple)]:
        raise InputError(
            f"{part.split} has {stray[0]!r} in its column {column}: expected a list of labels"
        )
    flags = all(len(row) == config.num_labels and set(row) <= {0, 1} for row in rows)
    if flags and config.num_labels > 1:
        return rows
    numbers = {name.casefold(): number for name, number in (config.label2id or {}).items()}
    found = [{_class(part, column, value, config, numbers) for value in row} for row in rows]
    return [[int(label in row) for label in range(config.num_labels)] for row in found]
