"""Running text as token sequences of equal length."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sos_deap.errors import InputError
from sos_deap.models.length import most_tokens
from sos_deap.models.loading import Pretrained
from sos_deap.tasks.data.columns import only_text, strings
from sos_deap.tasks.data.draw import Draw
from sos_deap.tasks.data.reading import Part

#: Rows of running text below this number of characters, such as headings, may be in both parts.
_SHORT = 100

#: The longest sequence of text by default, by type of device, in tokens. A CPU may read a hundred
#: tokens per second of a small language model (docs/numbers.md, large vocabularies).
LONGEST = {"cpu": 512}
LONGEST_ACCELERATOR = 2048


@dataclass(frozen=True)
class Sequences:
    """Token sequences of equal length, cut from a text without overlap.

    :param split: source of the text, for the report.
    :param input_ids: token ids, (sequences, seqlen).
    :param start_token: which start token was added and where, for the report; ``None`` if the
        task has no such choice.
    :param context: number of tokens at the head of each sequence that are read but not scored.
    """

    split: str
    input_ids: Tensor
    start_token: str | None = None
    context: int = 1

    def describe(self) -> dict[str, Any]:
        """Return the source, size and hash of the tokens, which identify a perplexity on them."""
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


def alternating(first: Sequences, second: Sequences) -> Sequences:
    """Return the sequences of two texts, one of each in turn, and then the rest of the longer one.

    :param first: sequences.
    :param second: sequences of the same length.
    """
    ranks = [torch.arange(len(one.input_ids)) for one in (first, second)]
    order = torch.cat(ranks).argsort(stable=True)
    return replace(
        first,
        split=f"{first.split} and {second.split}",
        input_ids=torch.cat((first.input_ids, second.input_ids))[order],
    )


def token_hash(tensors: Iterable[Tensor]) -> str:
    """Return a hash of token ids or labels, 16 hexadecimal digits."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.to("cpu", torch.int32).numpy().tobytes())
    return found.hexdigest()[:16]


class SpecialTokens(NamedTuple):
    """Special tokens before and after each sequence.

    :param before: token ids.
    :param after: token ids.
    :param start_token: description of the start token for the report, if there is a choice.
    """

    before: Sequence[int] = ()
    after: Sequence[int] = ()
    start_token: str | None = None


def running_text(draw: Draw, text_column: str | None) -> list[str]:
    """Return the texts of a part, without the long texts of the excluded parts.

    :param draw: the part, and the parts to exclude.
    :param text_column: name of the column; default: one of the usual names.
    """

    def texts(part: Part) -> list[str]:
        return strings(part, only_text(part, text_column))

    assert draw.part is not None
    own = texts(draw.part)
    excluded = {text for part in draw.excluded for text in texts(part) if len(text) >= _SHORT}
    return [text for text in own if text not in excluded]


def cut_sequences(
    draw: Draw,
    documents: Sequence[str],
    tokenizer: Any,
    seqlen: int,
    special: SpecialTokens | None = None,
) -> Sequences:
    """Tokenize a text, cut it into sequences, and draw some of them.

    The texts are concatenated and cut without overlap, the usual convention for perplexity.

    :param draw: the part that the texts are from, and the sequences to draw.
    :param documents: the texts, in order.
    :param tokenizer: tokenizer of the model.
    :param seqlen: tokens in a sequence, special tokens included.
    :param special: special tokens of each sequence; if none, the concatenated text gets those that
        the tokenizer adds to a text.
    :raises InputError: if the text has fewer tokens than one sequence.
    """
    assert draw.part is not None
    split, separator = draw.part.split, draw.part.separator
    joined = ((tokenizer.eos_token or "\n\n") if separator is None else separator).join(documents)
    special = special or SpecialTokens()
    inner = seqlen - len(special.before) - len(special.after)
    per_text = not (special.before or special.after)
    encoded = tokenizer(joined, verbose=False, add_special_tokens=per_text)["input_ids"]
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
        for tokens in (special.before, special.after)
    )
    context = max(1, len(special.before))
    return Sequences(split, torch.cat((first, windows, last), dim=1), special.start_token, context)


def special_tokens(tokenizer: Any) -> SpecialTokens:
    """Return the special tokens that a tokenizer adds before and after a text.

    :raises InputError: if the tokenizer makes no token of a letter or digit.
    """
    for text in ("a", "A", "1"):
        ids: list[int] = tokenizer(text)["input_ids"]
        # Not by the mask of special tokens, which some tokenizers written in Python leave empty.
        inner = tokenizer(text, add_special_tokens=False)["input_ids"]
        for start in range(len(ids) - len(inner) + 1) if inner else ():
            if ids[start : (end := start + len(inner))] == inner:
                return SpecialTokens(ids[:start], ids[end:])
    raise InputError("the tokenizer makes no token of a letter: give a model of text")


def start_of_sequences(tokenizer: Any, how: str, default: int | None = None) -> SpecialTokens:
    """Return the start tokens of each sequence of a causal language model.

    :param tokenizer: tokenizer of the model.
    :param how: a name in :data:`sos_deap.tasks.settings.START_TOKENS`.
    :param default: id of the start token if the tokenizer adds none to a text.
    :raises InputError: for ``"each"``, if the tokenizer has no start token.
    """
    if how == "each" and default is None:
        default = tokenizer.bos_token_id
    before = special_tokens(tokenizer).before or ([] if default is None else [default])
    if how == "each" and not before:
        raise InputError(
            "start_token is each, and the tokenizer has no start token: give auto or none"
        )
    name = "".join(map(str, tokenizer.convert_ids_to_tokens(before)))
    if how == "none":
        return SpecialTokens(start_token=f"{name} before the text alone" if before else "none")
    return SpecialTokens(before, start_token=f"{name} in each sequence" if before else "none")


def checked_seqlen(seqlen: int | None, model: Any) -> int:
    """Return the sequence length to use, in tokens.

    :param seqlen: length given by the user; ``None`` for the model's longest, at most 512 on a
        CPU and 2,048 elsewhere.
    :param model: the model.
    :raises InputError: if the length is below 2, or above the model's longest.
    """
    longest = most_tokens(model)
    if seqlen is None:
        most = LONGEST.get(model.device.type, LONGEST_ACCELERATOR)
        return min(longest or most, most)
    if seqlen < 2:
        raise InputError(f"seqlen is {seqlen}: a sequence needs at least 2 tokens, one to predict")
    if longest and seqlen > longest:
        raise InputError(
            f"seqlen is {seqlen}, beyond the model's {longest}: give at most {longest}"
        )
    return seqlen


def longest(loaded: Pretrained, seqlen: int | None) -> int:
    """Return the longest example in tokens, within the limits of the model and its tokenizer.

    :param loaded: model and tokenizer.
    :param seqlen: length given by the user; ``None`` for the longest, at most 2,048.
    :raises InputError: if the length is below 2, or above the model's longest.
    """
    limit = min(int(loaded.tokenizer.model_max_length), LONGEST_ACCELERATOR)
    if seqlen is None:
        return min(limit, most_tokens(loaded.model) or limit)
    return min(checked_seqlen(seqlen, loaded.model), limit)
