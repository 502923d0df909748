"""The columns of a data set, found by their usual names or named by the user."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sos_deap.errors import InputError, unknown
from sos_deap.tasks.data.reading import Part

#: Usual names, the likeliest first. A text to classify is one column or a pair of columns.
PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("text_a", "text_b"),
)
TEXTS = ("text", "sentence", "content", "document", "tweet", "review", "comment", "article")
LABELS = ("label", "labels", "target", "class", "category")
#: Texts to summarise, and their reference summaries.
SOURCES = ("article", "document", "dialogue", "text", "content", "source")
SUMMARIES = ("highlights", "summary", "summaries", "abstract", "target")


def named(part: Part, given: str | None, what: str) -> list[str]:
    """Return the columns that the user named.

    :param part: the data.
    :param given: names with commas between them, or ``None`` for no column.
    :param what: kind of column, for the message: ``"text"``, ``"label"`` or ``"summary"``.
    :raises InputError: for a column that the data lacks.
    """
    names = [name.strip() for name in given.split(",")] if given else []
    for name in names:
        if name not in part.columns:
            raise unknown(f"{what}_column of {part.split}", name, part.columns)
    return names


def one(part: Part, given: str | None, names: Sequence[str], what: str) -> str:
    """Return the column that the user named, or the first of some usual names.

    :param part: the data.
    :param given: name given by the user, or ``None``.
    :param names: usual names, the likeliest first.
    :param what: kind of column, for the message: ``"text"``, ``"label"`` or ``"summary"``.
    :raises InputError: if the data has no such column, or the user named several.
    """
    chosen = named(part, given, what)
    if len(chosen) > 1:
        raise InputError(f"{what}_column names {len(chosen)} columns: give one")
    if chosen:
        return chosen[0]
    found = next((name for name in names if name in part.columns), None)
    if found is None:
        raise InputError(
            f"{part.split} has no {what} column: expected one named {', '.join(names[:4])}, found "
            f"{', '.join(part.columns)}; name yours with --{what}_column"
        )
    return found


def only_text(part: Part, given: str | None) -> str:
    """Return the column of running text: the one named, a usual one, or the only column."""
    only = list(part.columns) if len(part.columns) == 1 else []
    return one(part, given, [*TEXTS, *only], "text")


def texts_to_classify(part: Part, given: str | None) -> list[str]:
    """Return one column of texts, or two of pairs of texts.

    :raises InputError: if there is none, or the user named more than two.
    """
    names = named(part, given, "text")
    if len(names) > 2:
        raise InputError(f"text_column names {len(names)} columns: give one, or two for pairs")
    if names:
        return names
    pair = next((pair for pair in PAIRS if set(pair) <= set(part.columns)), None)
    return list(pair) if pair else [one(part, None, TEXTS, "text")]


def strings(part: Part, column: str) -> list[str]:
    """Return the texts of a column.

    :raises InputError: if a value is not text.
    """
    values: list[Any] = list(part.columns[column])
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise InputError(
                f"{part.split} has {value!r} in row {row} of its column {column}: expected text"
            )
    return values
