"""Negative log-likelihoods of token sequences, for several sub-models at once."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sos_deap.tasks.data.sequences import Sequences
from sos_deap.tasks.logits import logits_in_slices

_UNSCORED = -100  # cross_entropy's default for a target to ignore

#: Logits at a time on a CPU, 1 MiB in float32. The allocator requests larger blocks from the system
#: each time, and a page fault for every 4 KiB takes longer than the loss itself.
_MOST_ON_CPU = 2**18


class SequenceTask:
    """Base class of the tasks on token sequences.

    :param sequences: the token sequences.
    :param device: device of the model.
    """

    greater_is_better = False
    one_pass = True
    reference_tokens = 0
    shares_passes = True

    def __init__(self, sequences: Sequences, device: torch.device | str = "cpu") -> None:
        self.sequences = sequences
        self._input_ids = sequences.input_ids.to(device)
        self._targets = targets(self._input_ids, sequences.context)

    @property
    def seqlen(self) -> int:
        """Number of tokens in a sequence."""
        return self._input_ids.shape[1]

    @property
    def tokens(self) -> int:
        """Number of tokens that a sub-model reads in all examples."""
        return len(self) * self.seqlen

    def __len__(self) -> int:
        return len(self._input_ids)

    def describe(self) -> dict[str, Any]:
        """Return the source, size and hash of the sequences."""
        return self.sequences.describe()

    def loss(self, model: Any, examples: slice) -> Tensor:
        """Return the mean negative log-likelihood per scored token, in nats.

        Importances by gradient use it. The task ``kl`` uses it too, since the gradient of the
        divergence from the dense model is zero at the dense model.

        :returns: a scalar, with its gradient if gradients are enabled.
        """
        nats = nats_of_sequences(model, self._input_ids[examples], self._targets[examples], 1)
        return nats[0] / self.scored(examples)

    def scored(self, examples: slice) -> int:
        """Return the number of scored tokens of some examples."""
        return len(self._input_ids[examples]) * (self.seqlen - self.sequences.context)


def targets(ids: Tensor, context: int = 1) -> Tensor:
    """Return the next token at each position, (rows, tokens), -100 if it is not scored.

    :param ids: token ids, (rows, tokens).
    :param context: number of tokens at the head of each sequence that are not scored.
    """
    targets = ids.roll(-1, dims=1)
    targets[:, : context - 1] = _UNSCORED
    targets[:, -1] = _UNSCORED  # the last position has no next token
    return targets


def nats_of(logits: Tensor, targets: Tensor, sub_models: int) -> Tensor:
    """Return each sub-model's summed negative log-likelihood in nats, (sub_models,), float64.

    :param logits: (sub_models * examples, positions, vocabulary), or without positions.
    :param targets: next tokens, of the same shape without vocabulary.
    :param sub_models: number of sub-models.
    """
    flat = logits.flatten(0, -2)
    step = max(1, _MOST_ON_CPU // flat.shape[-1]) if flat.device.type == "cpu" else len(flat)
    parts = zip(flat.split(step), targets.flatten().split(step), strict=True)
    # In float32 for any dtype of the model.
    losses = torch.cat(
        [cross_entropy(x.float(), y, ignore_index=_UNSCORED, reduction="none") for x, y in parts]
    )
    return losses.view(sub_models, -1).double().sum(1)


def nats_of_sequences(model: Any, ids: Tensor, targets: Tensor, sub_models: int) -> Tensor:
    """Return each sub-model's summed negative log-likelihood on sequences, in nats.

    :param model: a causal language model that computes ``sub_models`` blocks of rows.
    :param ids: token ids, (examples, tokens).
    :param targets: next tokens, (examples, tokens).
    :param sub_models: number of sub-models.
    :returns: (sub_models,), float64.
    """
    ids, targets = ids.repeat(sub_models, 1), targets.repeat(sub_models, 1)
    nats = torch.zeros(sub_models, dtype=torch.float64, device=ids.device)
    for positions, logits in logits_in_slices(model, ids):
        nats = nats + nats_of(logits, targets[:, positions], sub_models)
    return nats


def stack_with_count(sums: Tensor, count: int) -> Tensor:
    """Return the sums of the sub-models with a count that all share, (sub_models, 2)."""
    return torch.stack((sums, torch.full_like(sums, count)), dim=1)


def exp(nats: float) -> float:
    """Return ``math.exp``, or infinity where it overflows."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf
