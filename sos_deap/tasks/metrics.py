"""What a sub-model is good for: metrics that many sub-models compute in one forward pass."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sos_deap.errors import InputError
from sos_deap.tasks.data import Sequences
from sos_deap.tasks.logits import logits_in_slices

_UNSCORED = -100  # PyTorch's number for a target to leave out


class Task(Protocol):
    """A metric over examples, as the evaluator needs it.

    A task scores some of its examples for several sub-models at once, as sums that add up over
    examples, and turns the sums of all examples into the metric.
    """

    @property
    def name(self) -> str:
        """The name in reports."""

    @property
    def greater_is_better(self) -> bool:
        """Whether a larger metric is a better one."""

    @property
    def seqlen(self) -> int:
        """Tokens in an example."""

    def __len__(self) -> int:
        """Number of examples."""

    def describe(self) -> dict[str, Any]:
        """Where the examples are from and how many, for the report."""

    def score(self, model: Any, examples: slice, sub_models: int) -> Tensor:
        """Sums for the given examples, (sub-models, k), float64.

        The model reads a batch of ``sub_models`` times the examples, block after block.
        """

    def metric(self, sums: list[float]) -> float:
        """The metric from one sub-model's sums over all examples."""


class Perplexity:
    """Perplexity of a causal language model: exp of the mean negative log-likelihood per token.

    The first token of a sequence has no context and is not scored, as in the field's convention.
    """

    name = "perplexity"
    greater_is_better = False

    def __init__(self, sequences: Sequences, device: torch.device | str = "cpu") -> None:
        self.sequences = sequences
        self._input_ids = sequences.input_ids.to(device)

    @property
    def seqlen(self) -> int:
        """Tokens in a sequence."""
        return self._input_ids.shape[1]

    def __len__(self) -> int:
        return len(self._input_ids)

    def describe(self) -> dict[str, Any]:
        """Split, sequence length, token count and token hash."""
        return self.sequences.describe()

    def score(self, model: Any, examples: slice, sub_models: int) -> Tensor:
        """Sums (negative log-likelihood in nats, scored tokens), (sub-models, 2)."""
        ids = self._input_ids[examples].repeat(sub_models, 1)
        targets = ids.roll(-1, dims=1)
        targets[:, -1] = _UNSCORED  # the last position predicts nothing that is there
        nats = torch.zeros(sub_models, dtype=torch.float64, device=ids.device)
        for positions, logits in logits_in_slices(model, ids):
            # In fp32, whatever the model computes in.
            losses = cross_entropy(
                logits.flatten(0, 1).float(),
                targets[:, positions].flatten(),
                ignore_index=_UNSCORED,
                reduction="none",
            )
            nats += losses.view(sub_models, -1).double().sum(1)
        tokens = torch.full_like(nats, ids[:, 1:].numel() // sub_models)
        return torch.stack((nats, tokens), dim=1)

    def metric(self, sums: list[float]) -> float:
        """Perplexity; infinite where it exceeds what a float holds."""
        nats, tokens = sums
        try:
            return math.exp(nats / tokens)
        except OverflowError:
            return math.inf


#: Tasks by the name the user gives.
TASKS = {"perplexity": Perplexity}


def checked_seqlen(seqlen: int | None, config: Any) -> int:
    """The sequence length to use.

    :param seqlen: the user's, or ``None`` for the model's longest, at most 2,048.
    :raises InputError: if it is below 2 or beyond what the model was made for.
    """
    longest = getattr(config, "max_position_embeddings", None)
    if seqlen is None:
        return min(longest or 2048, 2048)
    if seqlen < 2:
        raise InputError(f"seqlen is {seqlen}: a sequence needs at least 2 tokens, one to predict")
    if longest and seqlen > longest:
        raise InputError(
            f"seqlen is {seqlen}, beyond the model's {longest}: give at most {longest}"
        )
    return seqlen
