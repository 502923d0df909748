"""Running text as token sequences of one length."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sos_deap.errors import InputError
from sos_deap.models.length import most_tokens
from sos_deap.models.pretrained import Pretrained
from sos_deap.tasks.columns import only_text, strings
from sos_deap.tasks.data import Part
from sos_deap.tasks.draw import Draw

#: Rows of running text shorter than this (headings, blank lines) may stand in both parts.
_SHORT = 100


@dataclass(frozen=True)
class Sequences:
    """Token sequences of one length, cut from a text without overlap.

    :param split: where they are from, for the report.
    :param input_ids: token numbers, (sequences, seqlen).
    """

    split: str
    input_ids: Tensor

    def describe(self) -> dict[str, Any]:
        """All that makes a perplexity on these tokens comparable."""
        count, seqlen = self.input_ids.shape
        return {
            "split": self.split,
            "sequences": count,
            "seqlen": seqlen,
            "tokens": count * seqlen,
            "token_hash": token_hash([self.input_ids]),
        }


def token_hash(tensors: Iterable[Tensor]) -> str:
    """A short hash of token numbers or labels."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.to("cpu", torch.int32).numpy().tobytes())
    return found.hexdigest()[:16]


def running_text(draw: Draw, text_column: str | None) -> list[str]:
    """The texts of a part, without those that must not be seen."""

    def texts(part: Part) -> list[str]:
        return strings(part, only_text(part, text_column))

    assert draw.part is not None
    own = texts(draw.part)
    unseen = {text for text in texts(draw.unseen) if len(text) >= _SHORT} if draw.unseen else set()
    return [text for text in own if text not in unseen]


def cut_sequences(
    draw: Draw, documents: Sequence[str], tokenizer: Any, seqlen: int, *, whole: bool = False
) -> Sequences:
    """Tokenize a text, cut it into sequences, and draw some of them.

    This is the field's convention for language-model perplexity: concatenate, cut, no overlap.

    :param draw: which sequences, of a part that tells where the text is from and what stands
        between its texts.
    :param documents: the texts, in order.
    :param seqlen: tokens in a sequence.
    :param whole: give every sequence the special tokens that the tokenizer puts around a text, as
        masked language models were trained; else only the text as a whole has them.
    :raises InputError: if the text has fewer tokens than one sequence.
    """
    assert draw.part is not None
    split, separator = draw.part.split, draw.part.separator
    joined = ((tokenizer.eos_token or "\n\n") if separator is None else separator).join(documents)
    before, after = around(tokenizer) if whole else ([], [])
    inner = seqlen - len(before) - len(after)
    encoded = tokenizer(joined, verbose=False, add_special_tokens=not whole)["input_ids"]
    ids = torch.tensor(encoded, dtype=torch.long)
    count = len(ids) // inner if inner > 0 else 0
    if not count:
        raise InputError(
            f"{split} has {len(ids)} tokens, fewer than one sequence of {seqlen}: "
            "give more text or a smaller --seqlen"
        )
    windows = ids[: count * inner].view(count, inner)[draw.numbers(count)]
    ends = (torch.tensor(e, dtype=torch.long).expand(len(windows), -1) for e in (before, after))
    first, last = ends
    return Sequences(split, torch.cat((first, windows, last), dim=1))


def around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer puts before and after a text."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    ids, special = encoded["input_ids"], encoded["special_tokens_mask"]
    start = special.index(0)
    end = len(special) - special[::-1].index(0)
    return ids[:start], ids[end:]


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
