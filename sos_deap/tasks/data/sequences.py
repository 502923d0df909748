"""Running text as token sequences of one length."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sos_deap.errors import InputError
from sos_deap.models.length import most_tokens
from sos_deap.models.loading import Pretrained
from sos_deap.tasks.data.columns import only_text, strings
from sos_deap.tasks.data.draw import Draw
from sos_deap.tasks.data.reading import Part

#: Rows of running text shorter than this (headings, blank lines) may stand in both parts.
_SHORT = 100


@dataclass(frozen=True)
class Sequences:
    """Token sequences of one length, cut from a text without overlap.

    :param split: where they are from, for the report.
    :param input_ids: token numbers, (sequences, seqlen).
    :param start_token: which start token stands where, for the report, if that was chosen.
    :param context: tokens at the head of each sequence that are read and not scored.
    """

    split: str
    input_ids: Tensor
    start_token: str | None = None
    context: int = 1

    def describe(self) -> dict[str, Any]:
        """All that makes a perplexity on these tokens comparable."""
        count, seqlen = self.input_ids.shape
        start = {} if self.start_token is None else {"start_token": self.start_token}
        return {
            "split": self.split,
            "sequences": count,
            "seqlen": seqlen,
            **start,
            "tokens": count * seqlen,
            "token_hash": token_hash([self.input_ids]),
        }


def token_hash(tensors: Iterable[Tensor]) -> str:
    """A short hash of token numbers or labels."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.to("cpu", torch.int32).numpy().tobytes())
    return found.hexdigest()[:16]


class Ends(NamedTuple):
    """Special tokens before and after each sequence, and for the report which ones were chosen."""

    before: Sequence[int] = ()
    after: Sequence[int] = ()
    start_token: str | None = None


def running_text(draw: Draw, text_column: str | None) -> list[str]:
    """The texts of a part, without those that must not be seen."""

    def texts(part: Part) -> list[str]:
        return strings(part, only_text(part, text_column))

    assert draw.part is not None
    own = texts(draw.part)
    unseen = {text for text in texts(draw.unseen) if len(text) >= _SHORT} if draw.unseen else set()
    return [text for text in own if text not in unseen]


def cut_sequences(
    draw: Draw, documents: Sequence[str], tokenizer: Any, seqlen: int, ends: Ends | None = None
) -> Sequences:
    """Tokenize a text, cut it into sequences, and draw some of them.

    This is the field's convention for language-model perplexity: concatenate, cut, no overlap.

    :param draw: which sequences, of a part that tells where the text is from and what stands
        between its texts.
    :param documents: the texts, in order.
    :param seqlen: tokens in a sequence, special ones included.
    :param ends: special tokens of each sequence; without any, the text as a whole has those that
        the tokenizer puts around a text.
    :raises InputError: if the text has fewer tokens than one sequence.
    """
    assert draw.part is not None
    split, separator = draw.part.split, draw.part.separator
    joined = ((tokenizer.eos_token or "\n\n") if separator is None else separator).join(documents)
    ends = ends or Ends()
    inner = seqlen - len(ends.before) - len(ends.after)
    whole = not (ends.before or ends.after)
    encoded = tokenizer(joined, verbose=False, add_special_tokens=whole)["input_ids"]
    ids = torch.tensor(encoded, dtype=torch.long)
    count = len(ids) // inner if inner > 0 else 0
    if not count:
        raise InputError(
            f"{split} has {len(ids)} tokens, fewer than one sequence of {seqlen}: "
            "give more text or a smaller --seqlen"
        )
    windows = ids[: count * inner].view(count, inner)[draw.numbers(count)]
    first, last = (
        torch.tensor(tokens, dtype=torch.long).expand(len(windows), -1)
        for tokens in (ends.before, ends.after)
    )
    context = max(1, len(ends.before))
    return Sequences(split, torch.cat((first, windows, last), dim=1), ends.start_token, context)


def around(tokenizer: Any) -> Ends:
    """The special tokens that a tokenizer puts before and after a text.

    :raises InputError: if it makes no token of a letter or digit.
    """
    for text in ("a", "A", "1"):
        ids: list[int] = tokenizer(text)["input_ids"]
        # Not by its mask of special tokens, which some tokenizers written in Python leave empty.
        inner = tokenizer(text, add_special_tokens=False)["input_ids"]
        for start in range(len(ids) - len(inner) + 1) if inner else ():
            if ids[start : (end := start + len(inner))] == inner:
                return Ends(ids[:start], ids[end:])
    raise InputError("the tokenizer makes no token of a letter: give a model with one for text")


def start_of_sequences(tokenizer: Any, how: str, default: int | None = None) -> Ends:
    """The tokens at the head of each sequence of a causal language model.

    :param how: a name in :data:`sos_deap.tasks.settings.START_TOKENS`.
    :param default: token at the head where the tokenizer puts none.
    :raises InputError: for ``"each"``, if the tokenizer has no start token.
    """
    if how == "each" and default is None:
        default = tokenizer.bos_token_id
    before = around(tokenizer).before or ([] if default is None else [default])
    if how == "each" and not before:
        raise InputError(
            "start_token is each, and the tokenizer has no start token: give auto or none"
        )
    name = "".join(map(str, tokenizer.convert_ids_to_tokens(before)))
    if how == "none":
        return Ends(start_token=f"{name} before the text alone" if before else "none")
    return Ends(before, start_token=f"{name} in each sequence" if before else "none")


def checked_seqlen(seqlen: int | None, model: Any) -> int:
    """The sequence length to use.

    :param seqlen: the user's, or ``None`` for the model's longest, at most 2,048.
    :param model: the model; see :func:`most_tokens`.
    :raises InputError: if it is below 2 or beyond what the model can read.
    """
    longest = most_tokens(model)
    if seqlen is None:
        return min(longest or 2048, 2048)
    if seqlen < 2:
        raise InputError(f"seqlen is {seqlen}: a sequence needs at least 2 tokens, one to predict")
    if longest and seqlen > longest:
        raise InputError(
            f"seqlen is {seqlen}, beyond the model's {longest}: give at most {longest}"
        )
    return seqlen


def longest(loaded: Pretrained, seqlen: int | None) -> int:
    """The same, within what the tokenizer was made for."""
    limit = min(int(loaded.tokenizer.model_max_length), 2048)
    return min(checked_seqlen(seqlen, loaded.model), limit)
