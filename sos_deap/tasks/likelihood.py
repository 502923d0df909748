"""Negative log-likelihoods on token sequences, for several sub-models at once."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sos_deap.tasks.data.sequences import Sequences
from sos_deap.tasks.logits import logits_in_slices

_UNSCORED = -100  # PyTorch's number for a target to leave out

#: Logits at a time on a CPU, 1 MiB of them in float32: of larger blocks the allocator asks the
#: system again and again, and a page fault for every 4 KiB takes longer than the loss itself.
_MOST_ON_CPU = 2**18


class SequenceTask:
    """What the tasks on token sequences share."""

    greater_is_better = False
    one_pass = True
    reference_tokens = 0
    shares_passes = True

    def __init__(self, sequences: Sequences, device: torch.device | str) -> None:
        self.sequences = sequences
        self._input_ids = sequences.input_ids.to(device)
        self._targets = targets(self._input_ids, sequences.context)

    @property
    def seqlen(self) -> int:
        """Tokens in a sequence."""
        return self._input_ids.shape[1]

    @property
    def tokens(self) -> int:
        """Tokens that a sub-model reads."""
        return len(self) * self.seqlen

    def __len__(self) -> int:
        return len(self._input_ids)

    def describe(self) -> dict[str, Any]:
        """See :meth:`Sequences.describe`."""
        return self.sequences.describe()

    def loss(self, model: Any, examples: slice) -> Tensor:
        """The mean negative log-likelihood of a token that has others before it, in nats.

        A scalar, with its gradient where gradients are on; also of the task ``kl``, since a
        divergence from the dense model has no gradient at the dense model.
        """
        nats = nats_on(model, self._input_ids[examples], self._targets[examples], 1)
        return nats[0] / self.scored(examples)

    def scored(self, examples: slice) -> int:
        """How many tokens of some examples are scored."""
        return len(self._input_ids[examples]) * (self.seqlen - self.sequences.context)


def targets(ids: Tensor, context: int = 1) -> Tensor:
    """The next token at each position, or none.

    :param context: tokens at the head of each sequence that are not scored.
    """
    targets = ids.roll(-1, dims=1)
    targets[:, : context - 1] = _UNSCORED
    targets[:, -1] = _UNSCORED  # the last position predicts nothing that is there
    return targets


def nats_of(logits: Tensor, targets: Tensor, sub_models: int) -> Tensor:
    """Each sub-model's negative log-likelihood in nats, (sub-models,)."""
    flat = logits.flatten(0, -2)
    step = max(1, _MOST_ON_CPU // flat.shape[-1]) if flat.device.type == "cpu" else len(flat)
    parts = zip(flat.split(step), targets.flatten().split(step), strict=True)
    # In fp32, whatever the model computes in.
    losses = torch.cat(
        [cross_entropy(x.float(), y, ignore_index=_UNSCORED, reduction="none") for x, y in parts]
    )
    return losses.view(sub_models, -1).double().sum(1)


def nats_on(model: Any, ids: Tensor, targets: Tensor, sub_models: int) -> Tensor:
    """The same of a causal model on whole sequences, which each sub-model reads."""
    ids, targets = ids.repeat(sub_models, 1), targets.repeat(sub_models, 1)
    nats = torch.zeros(sub_models, dtype=torch.float64, device=ids.device)
    for positions, logits in logits_in_slices(model, ids):
        nats = nats + nats_of(logits, targets[:, positions], sub_models)
    return nats


def stack_with_count(sums: Tensor, count: int) -> Tensor:
    """Sums of the sub-models, each with a number that is the same for all, (sub-models, 2)."""
    return torch.stack((sums, torch.full_like(sums, count)), dim=1)


def exp(nats: float) -> float:
    """``math.exp``, but infinite where that exceeds what a float holds."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf
