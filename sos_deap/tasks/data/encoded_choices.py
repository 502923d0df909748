"""Questions as token sequences, in which choices that begin alike share what the model reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sos_deap.errors import InputError
from sos_deap.tasks.data.choices import Question
from sos_deap.tasks.data.sequences import SpecialTokens


@dataclass(frozen=True)
class Choice:
    """An answer in one of the rows that the model reads for its question.

    :param row: index of the row.
    :param start: the position in the row that predicts the first token of the answer.
    :param tokens: token ids of the answer.
    :param characters: length of the answer.
    """

    row: int
    start: int
    tokens: list[int]
    characters: int


@dataclass(frozen=True)
class Example:
    """A tokenized question.

    :param rows: token ids that the model reads; answers whose rows begin alike share one.
    :param choices: the choices.
    :param gold: index of the right one.
    """

    rows: list[list[int]]
    choices: list[Choice]
    gold: int

    @property
    def padded(self) -> int:
        """Number of tokens in its rows, each as long as the longest."""
        return len(self.rows) * max(map(len, self.rows))


def encoded_questions(
    split: str,
    asked: Sequence[Question],
    tokenizer: Any,
    most: int,
    start: SpecialTokens,
) -> list[Example]:
    """Tokenize questions; contexts that are too long lose tokens at their start.

    As in lm-eval, the tokens of an answer are those of context and answer together that follow
    as many tokens as the context has alone.

    :param split: source of the questions, for error messages.
    :param asked: the questions.
    :param tokenizer: tokenizer of the model.
    :param most: most tokens that the model reads at a time.
    :param start: start tokens of each text.
    :raises InputError: for an answer without tokens, or one that does not fit.
    """
    pairs = [pair for question in asked for pair in question.choices]

    def tokens(texts: list[str]) -> Any:
        return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]

    # Space at the end of a prompt belongs to the answer, as tokens begin with a space.
    contexts = tokens([context.rstrip() for context, _ in pairs])
    both = tokens([f"{context}{_space_after(context)}{answer}" for context, answer in pairs])
    encoded = iter(zip(pairs, contexts, both, strict=True))
    room = most + 1 - len(start.before)  # the last token is predicted, not read
    found = []
    for question in asked:
        sequences = []
        for _ in question.choices:
            (context, answer), head, whole = next(encoded)
            tail = whole[len(head) :]
            if not tail or not (head or start.before):
                raise InputError(
                    f"{split} has a question {context!r} and an answer {answer!r} of which the "
                    "tokenizer makes no tokens: leave such rows out"
                )
            if len(tail) + (not start.before) > room:
                raise InputError(
                    f"{split} has an answer of {len(tail)} tokens, and the model reads {most} at a "
                    "time: give a larger --seqlen or shorter answers"
                )
            sequences.append(([*start.before, *(head + tail)[-room:]], tail, len(answer)))
        found.append(_example(sequences, question.gold))
    return found


def _space_after(context: str) -> str:
    return "" if context[-1:].isspace() else " "


def _example(sequences: Sequence[tuple[list[int], list[int], int]], gold: int) -> Example:
    """Return an example without rows that others begin with.

    :param sequences: for each choice all tokens, those of the answer, and its characters.
    :param gold: index of the right choice.
    """
    rows: list[list[int]] = []
    for row in sorted((whole[:-1] for whole, _, _ in sequences), key=len, reverse=True):
        if not any(other[: len(row)] == row for other in rows):
            rows.append(row)
    choices = []
    for whole, tail, characters in sequences:
        read = len(whole) - 1
        index = next(i for i, other in enumerate(rows) if other[:read] == whole[:-1])
        choices.append(Choice(index, read - len(tail), tail, characters))
    return Example(rows, choices, gold)
