"""Labels in the usual formats, as indices of the model's classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sos_deap.errors import InputError
from sos_deap.tasks.data.columns import LABELS, named, one
from sos_deap.tasks.data.reading import Part


def single_labels(part: Part, given: str | None, config: Any) -> Tensor:
    """Return the class index of each row, (rows,).

    :param part: the data.
    :param given: name of the label column; default: one of the usual names.
    :param config: configuration of the model, for its classes.
    :raises InputError: for a label that is not one of the model's classes.
    """
    column = one(part, given, LABELS, "label")
    values, classes = list(part.columns[column]), part.label_names.get(column)
    numbers = _numbers(config)
    if classes is not None and {name.casefold() for name in classes} == set(numbers):
        # The same classes, possibly in another order; -1 stands for no class.
        in_range = range(len(classes))
        values = [classes[v] if type(v) is int and v in in_range else v for v in values]
    rows = enumerate(values)
    return torch.tensor([_class(part, column, row, v, config, numbers) for row, v in rows])


def _numbers(config: Any) -> dict[str, int]:
    """Return the indices of the model's classes by their names in lower case."""
    names = getattr(config, "id2label", None) or {}
    by_name = (config.label2id or {}).items() if not names else ((n, i) for i, n in names.items())
    return {str(name).strip().casefold(): int(number) for name, number in by_name}


def _class(
    part: Part, column: str, row: int, value: Any, config: Any, numbers: dict[str, int]
) -> int:
    """Return the index of a class given by its name or its index, which may be text."""
    number = numbers.get(_name(value))
    if number is None:
        number = _number(value, truth=config.num_labels == 2)
    if number is None or not 0 <= number < config.num_labels:
        known = ", ".join(list(numbers)[:10])
        missing = _name(value) in ("", "none", "nan")
        what = f"no label ({value!r})" if missing else f"the label {value!r}"
        raise InputError(
            f"{part.split} has {what} in row {row} of its column {column}: the model has the "
            f"classes 0 to {config.num_labels - 1} ({known})"
        )
    return number


def _name(value: Any) -> str:
    """Return a label as a class name in lower case; 1.0 becomes ``1``."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip().casefold()


def _number(value: Any, *, truth: bool) -> int | None:
    """Return a label as a whole number, or ``None``.

    :param value: a number, or its text.
    :param truth: whether true and false are 1 and 0.
    """
    name = _name(value)
    if name in ("true", "false"):
        return int(name == "true") if truth else None
    try:
        number = float(name)
    except ValueError:
        return None
    return int(number) if number.is_integer() else None


def multiple_labels(part: Part, given: str | None, config: Any) -> Tensor:
    """Return the labels of each row, (rows, labels) of 0 and 1.

    The data has one column of lists (of names, of indices, or of a 0 or 1 for each label), or one
    0/1 column for each label.

    :param part: the data.
    :param given: names of the columns with commas between them; default: the usual names, the
        names of the model's labels, or all 0/1 columns.
    :param config: configuration of the model, for its labels.
    :raises InputError: for a label that is not one of the model's.
    """
    columns = named(part, given, "label") or _label_columns(part, _numbers(config))
    if len(columns) == 1:
        rows = _from_lists(part, columns[0], config)
    else:
        rows = _from_columns(part, columns, config)
    for number, row in enumerate(rows):
        if stray := [value for value in row if not _is_flag(value)]:
            raise InputError(
                f"{part.split} has the label {stray[0]!r} in row {number}: expected 0 or 1"
            )
    return torch.tensor([[_number(value, truth=True) for value in row] for row in rows])


def _is_flag(value: Any) -> bool:
    return _number(value, truth=True) in (0, 1)


def _label_columns(part: Part, numbers: dict[str, int]) -> list[str]:
    """Return the usual column of lists, the columns named like labels, or all 0/1 columns."""
    for name in LABELS:
        if name in part.columns and isinstance(part.columns[name][0], list | tuple):
            return [name]
    by_name = [name for name in part.columns if _name(name) in numbers]
    if len(by_name) == len(numbers) > 1:
        return by_name
    flags = [name for name, values in part.columns.items() if all(map(_is_flag, values))]
    return flags if len(flags) > 1 else [one(part, None, LABELS, "label")]


def _from_columns(part: Part, columns: list[str], config: Any) -> list[Sequence[Any]]:
    """Return rows of 0/1 from one column per label, in the order of the model's labels."""
    numbers = _numbers(config)
    if {_name(name) for name in columns} == set(numbers):
        columns = sorted(columns, key=lambda name: numbers[_name(name)])
    elif len(columns) != config.num_labels:
        raise InputError(
            f"{part.split} has {len(columns)} columns of labels ({', '.join(columns[:5])}, ...): "
            f"the model has {config.num_labels}; name them with --label_column"
        )
    return list(zip(*(part.columns[name] for name in columns), strict=True))


def _from_lists(part: Part, column: str, config: Any) -> list[Sequence[Any]]:
    """Return rows of 0/1 from a column of lists."""
    rows = list(part.columns[column])
    if stray := [row for row in rows if not isinstance(row, list | tuple)]:
        raise InputError(
            f"{part.split} has {stray[0]!r} in its column {column}: expected a list of labels"
        )
    flags = all(len(row) == config.num_labels and set(row) <= {0, 1} for row in rows)
    if flags and config.num_labels > 1:
        return rows
    numbers = _numbers(config)
    found = [
        {_class(part, column, i, value, config, numbers) for value in row}
        for i, row in enumerate(rows)
    ]
    return [[int(label in row) for label in range(config.num_labels)] for row in found]
