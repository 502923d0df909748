"""Examples of different lengths as padded batches, for several sub-models at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sos_deap.errors import InputError
from sos_deap.tasks.data.sequences import token_hash


@dataclass(frozen=True)
class Encoded:
    """Tokenized examples, the longest first, so that what does not fit in memory is seen at once.

    :param split: where they are from, for the report.
    :param inputs: what the model takes, each (examples, longest), padded.
    :param order: which example of those given stands in each row.
    :param left: whether padding stands before the tokens.
    """

    split: str
    inputs: dict[str, Tensor]
    order: list[int]
    left: bool

    @property
    def lengths(self) -> Tensor:
        """Tokens of each example, (examples,)."""
        return self.inputs["attention_mask"].sum(1)

    def describe(self) -> dict[str, Any]:
        """All that makes a metric on these examples comparable."""
        return {
            "split": self.split,
            "examples": len(self.order),
            "tokens": int(self.lengths.sum()),
            "longest": int(self.lengths[0]),
            "token_hash": token_hash(self.inputs.values()),
        }

    def to(self, device: torch.device | str) -> Encoded:
        """The same on a device."""
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        return Encoded(self.split, inputs, self.order, self.left)

    def batch(self, examples: slice, sub_models: int) -> dict[str, Tensor]:
        """The inputs of some examples, as narrow as they are, a block of rows per sub-model."""
        longest = int(self.lengths[examples][0])
        columns = slice(-longest, None) if self.left else slice(longest)
        return {
            name: tensor[examples, columns].repeat(sub_models, 1)
            for name, tensor in self.inputs.items()
        }


def encode(
    split: str,
    texts: Sequence[Sequence[str]],
    tokenizer: Any,
    longest: int,
    pad_token: int | None,
    *,
    left: bool = False,
) -> Encoded:
    """Tokenize texts, or pairs of texts, cut to a length and padded.

    :param split: where they are from, for the report.
    :param texts: each a text, or a pair, in a tuple.
    :param longest: most tokens of an example, special ones included.
    :param pad_token: the number of the padding token; masked, so that any will do for most models.
    :param left: pad before the tokens, for text to be continued.
    :raises InputError: for a text without a token, which no model reads.
    """
    columns = [list(column) for column in zip(*texts, strict=True)]
    encoded = tokenizer(
        *columns,
        truncation=True,
        max_length=longest,
        padding=False,
        return_attention_mask=True,
        verbose=False,
    )
    rows = encoded["input_ids"]
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    if order and not rows[order[-1]]:
        raise InputError(
            f"{split} has {texts[order[-1]][0]!r} as a text, of which the tokenizer makes no "
            "token: leave such rows out"
        )
    fill = {"input_ids": 0 if pad_token is None else pad_token}
    inputs = {
        name: _padded([values[row] for row in order], fill.get(name, 0), left)
        for name, values in encoded.items()
        if name in ("input_ids", "attention_mask", "token_type_ids")
    }
    return Encoded(split, inputs, order, left)


def _padded(rows: list[list[int]], fill: int, left: bool) -> Tensor:
    side = "left" if left else "right"
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    padded: Tensor = torch.nn.utils.rnn.pad_sequence(
        tensors, batch_first=True, padding_value=fill, padding_side=side
    )
    return padded
