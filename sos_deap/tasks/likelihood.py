"""Negative log-likelihoods of token sequences, for several sub-models at once."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sos_deap.errors import InputError
from sos_deap.tasks.data.sequences import Sequences
from sos_deap.tasks.logits import log_probabilities, run_decoder

#: The target at a position that is not scored; outside every vocabulary.
UNSCORED = -100


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


class CausalTask(SequenceTask):
    """Base class of the tasks of causal language models, which predict the next token.

    :param sequences: the token sequences.
    :param device: device of the model.
    :param every: only every so many positions of a sequence are scored, from the first one on.
    :raises InputError: if no position of a sequence would be scored.
    """

    def __init__(
        self, sequences: Sequences, device: torch.device | str = "cpu", every: int = 1
    ) -> None:
        super().__init__(sequences, device)
        self._every = every
        self._targets = targets(self._input_ids, sequences.context, every)
        #: The scored positions of a sequence, which are those of all sequences.
        self._scored = (self._targets[0] != UNSCORED).nonzero()[:, 0]
        if every > 1 and not len(self._scored):
            raise InputError(
                f"score_every is {every}: no position of {self.seqlen} tokens would be scored, "
                "give a smaller number"
            )

    def describe(self) -> dict[str, Any]:
        """Return the source, size and hash of the sequences, and which positions are scored."""
        return super().describe() | ({"score_every": self._every} if self._every > 1 else {})

    def read(self, model: Any, examples: slice, sub_models: int) -> Tensor:
        """Run the layers without the head; return the hidden states, (rows, tokens, width)."""
        ids = self._input_ids[examples].repeat(sub_models, 1)
        states: Tensor = run_decoder(model, ids).last_hidden_state
        return states

    def loss(self, model: Any, examples: slice) -> Tensor:
        """Return the mean negative log-likelihood per scored token, in nats.

        Importances by gradient use it. The task ``kl`` uses it too, since the gradient of the
        divergence from the dense model is zero at the dense model.

        :returns: a scalar, with its gradient if gradients are enabled.
        """
        return self.nats(model, examples, 1)[0] / self.scored(examples)

    def nats(self, model: Any, examples: slice, sub_models: int) -> Tensor:
        """Return each sub-model's summed negative log-likelihood in nats, (sub_models,), float64.

        The head is computed at scored positions only.

        :param model: a model that computes ``sub_models`` blocks of rows.
        :param examples: the examples.
        :param sub_models: number of sub-models.
        """
        ids = self._input_ids[examples].repeat(sub_models, 1)
        wanted = self._targets[examples][:, self._scored].repeat(sub_models, 1)
        logs = log_probabilities(model, ids, wanted.view(-1, 1), flat_positions(ids, self._scored))
        return -logs.view(sub_models, -1).double().sum(1)

    def scored(self, examples: slice) -> int:
        """Return the number of scored tokens of some examples."""
        return len(self._input_ids[examples]) * len(self._scored)


def targets(ids: Tensor, context: int = 1, every: int = 1) -> Tensor:
    """Return the next token at each position, (rows, tokens), :data:`UNSCORED` if it is not scored.

    :param ids: token ids, (rows, tokens).
    :param context: number of tokens at the head of each sequence that are not scored.
    :param every: only every so many positions are scored, from the first one on.
    """
    targets = ids.roll(-1, dims=1)
    targets[:, : context - 1] = UNSCORED
    targets[:, -1] = UNSCORED  # the last position has no next token
    targets[:, torch.arange(ids.shape[1], device=ids.device) % every > 0] = UNSCORED
    return targets


def flat_positions(ids: Tensor, positions: Tensor) -> Tensor:
    """Return the indices of positions of each row in the flattened ``ids``, (rows * positions,).

    :param ids: token ids, (rows, tokens).
    :param positions: positions in a row.
    """
    rows, tokens = ids.shape
    starts = torch.arange(0, rows * tokens, tokens, device=ids.device)
    return (starts[:, None] + positions).flatten()


def stack_with_count(sums: Tensor, count: int) -> Tensor:
    """Return the sums of the sub-models with a count that all share, (sub_models, 2)."""
    return torch.stack((sums, torch.full_like(sums, count)), dim=1)


def exp(nats: float) -> float:
    """Return ``math.exp``, or infinity where it overflows."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf
