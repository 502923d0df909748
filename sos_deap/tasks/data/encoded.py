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
    """Tokenized examples, the longest first, so that a batch too large for memory fails early.

    :param split: source of the examples, for the report.
    :param inputs: model inputs by name, (examples, longest) each, padded.
    :param order: for each row, the index of its example in the original order.
    :param left: whether the padding is on the left of the tokens.
    """

    split: str
    inputs: dict[str, Tensor]
    order: list[int]
    left: bool

    @property
    def lengths(self) -> Tensor:
        """Number of tokens of each example without padding, (examples,)."""
        return self.inputs["attention_mask"].sum(1)

    def describe(self) -> dict[str, Any]:
        """Return the source, size and hash of the examples, which identify a metric on them."""
        return {
            "split": self.split,
            "examples": len(self.order),
            "tokens": int(self.lengths.sum()),
            "longest": int(self.lengths[0]),
            "token_hash": token_hash(self.inputs.values()),
        }

    def to(self, device: torch.device | str) -> Encoded:
        """Return the examples on a device."""
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        return Encoded(self.split, inputs, self.order, self.left)

    def reordered(self, rows: Sequence[int]) -> Encoded:
        """Return the examples in another order.

        :param rows: for each new row the present one.
        """
        inputs = {name: tensor[list(rows)] for name, tensor in self.inputs.items()}
        return Encoded(self.split, inputs, [self.order[row] for row in rows], self.left)

    def batch(self, examples: slice, sub_models: int) -> dict[str, Tensor]:
        """Return the inputs of some examples, repeated for each sub-model.

        :returns: inputs by name, (sub_models * examples, longest of these examples).
        """
        longest = int(self.lengths[examples].max())
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
    """Tokenize texts, or pairs of texts, truncated and padded.

    :param split: source of the texts, for the report.
    :param texts: tuples of one text or two.
    :param tokenizer: tokenizer of the model.
    :param longest: most tokens of an example, special tokens included.
    :param pad_token: id of the padding token; ``None`` for 0, which suits most models, since the
        padding is masked.
    :param left: whether to pad on the left, as for generation.
    :raises InputError: for a text without tokens, which no model reads.
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
