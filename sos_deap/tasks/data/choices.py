"""Questions with answers to choose from, read from the rows of a data set."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sos_deap.errors import InputError
from sos_deap.tasks.data.reading import Part

#: The columns of each format; ``gold`` is the index of the right choice.
FORMATS = (
    ("query", "choices", "gold"),
    ("context_options", "continuation", "gold"),
    ("context", "continuation"),
)


@dataclass(frozen=True)
class Question:
    """A question whose answer is the likeliest of some texts.

    :param contexts: what the model reads first: one text for all answers, or one for each choice.
    :param answers: how the text goes on, without the space before: one for each choice, or one for
        all contexts.
    :param gold: index of the right choice. Rows are compared without it.
    """

    contexts: tuple[str, ...]
    answers: tuple[str, ...]
    gold: int = field(compare=False)

    @property
    def choices(self) -> list[tuple[str, str]]:
        """Context and answer of each choice."""
        count = max(len(self.contexts), len(self.answers))
        contexts, answers = (
            texts * count if len(texts) == 1 else texts for texts in (self.contexts, self.answers)
        )
        return list(zip(contexts, answers, strict=True))


def questions(part: Part, prompt: str | None = None) -> list[Question]:
    """Return the questions of a part.

    :param part: the data, whose rows have the columns of one of :data:`FORMATS`.
    :param prompt: template of each context, with ``{text}`` in its place. Default: the context, and
        a line ``Answer:`` if one of its lines begins with ``Question:``, as lm-eval has it.
    :raises InputError: for a row of another format.
    """
    known = {name for names in FORMATS for name in names} & set(part.columns)
    rows = zip(*(part.columns[name] for name in known), strict=True)
    found = [dict(zip(known, values, strict=True)) for values in rows]
    if not found:
        raise _unfit(part, f"has the columns {', '.join(part.columns)}")
    return [_question(part, number, row, prompt) for number, row in enumerate(found)]


def _question(part: Part, number: int, row: Mapping[str, Any], prompt: str | None) -> Question:
    # A column that other rows have is None.
    given = {name for name, value in row.items() if value is not None}
    names = next((names for names in FORMATS if given == set(names)), None)
    if names is None:
        raise _unfit(part, f"has {', '.join(sorted(given)) or 'nothing'} in row {number}")
    first, second = (_texts(part, number, name, row[name]) for name in names[:2])
    count, gold = max(len(first), len(second)), row["gold"] if "gold" in names else 0
    if type(gold) is not int or not 0 <= gold < count:
        raise InputError(
            f"{part.split} has {gold!r} in row {number} of its column gold: expected the index of "
            f"one of its {count} choices, from 0"
        )
    return Question(tuple(_prompted(context, prompt) for context in first), second, gold)


def _texts(part: Part, number: int, name: str, value: Any) -> tuple[str, ...]:
    several = name in ("choices", "context_options")
    texts = value if several else [value]
    fits = isinstance(texts, list) and texts
    if not fits or not all(isinstance(text, str) and text.strip() for text in texts):
        expected = "a list of texts" if several else "a text"
        raise InputError(
            f"{part.split} has {reprlib.repr(value)} in row {number} of its column {name}: "
            f"expected {expected}, not empty"
        )
    return tuple(texts)


def _prompted(context: str, prompt: str | None) -> str:
    context = context.rstrip()
    if prompt is not None:
        return prompt.replace("{text}", context)
    asks = re.search("^Question:", context, re.MULTILINE) and not context.endswith("Answer:")
    return f"{context}\nAnswer:" if asks else context


def _unfit(part: Part, found: str) -> InputError:
    formats = ["+".join(names) for names in FORMATS]
    return InputError(f"{part.split} {found}: a question needs {' or '.join(formats)}")
