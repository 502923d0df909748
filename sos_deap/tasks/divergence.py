"""The task ``kl``: the divergence of sub-models from the dense model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sos_deap.progress import read_in_turn
from sos_deap.tasks.data.sequences import Sequences
from sos_deap.tasks.likelihood import (
    UNSCORED,
    CausalTask,
    exp,
    flat_positions,
    stack_with_count,
)
from sos_deap.tasks.logits import likeliest, log_probabilities, partition
from sos_deap.tasks.task import checked_metric


class KL(CausalTask):
    """KL divergence of a sub-model's next-token distribution from the dense model's, in nats.

    The dense model's distribution is computed once and stored as its ``top_k`` likeliest tokens and
    one probability for all others together. The divergence over this partition is at most the
    divergence over the vocabulary, and equal to it if ``top_k`` is the size of the vocabulary.

    :param sequences: the token sequences.
    :param model: the dense model; the task uses its device.
    :param top_k: number of tokens stored per position.
    :param metric: ``"kl"``; ``"perplexity"``, which the same forward passes give; or
        ``"distillation"``, the mean of the divergence and the negative log-likelihood, in nats: the
        loss of a student that learns from a teacher and from text in equal parts (Hinton, Vinyals
        and Dean, 2015). The divergence measures with little noise what was lost; the likelihood
        measures how much that matters where the dense model itself is wrong.
    :param every: only every so many positions of a sequence are scored, from the first one on.
    """

    def __init__(
        self,
        sequences: Sequences,
        model: Any,
        top_k: int = 64,
        metric: str | None = None,
        every: int = 1,
    ) -> None:
        super().__init__(sequences, model.device, every)
        self.reference_tokens = self.tokens
        self.name = checked_metric(metric, ("kl", "perplexity", "distillation"))
        self.top_k = min(top_k, model.config.get_text_config().vocab_size)
        with torch.inference_mode():
            # Passes of 4,096 tokens, but of at least one sequence.
            together = max(1, 4096 // self.seqlen)
            batches = list(
                zip(self._input_ids.split(together), self._targets.split(together), strict=True)
            )
            sizes = [ids.numel() for ids, _ in batches]
            rows = [self._teacher(model, *batch) for batch in read_in_turn(batches, sizes)]
        tokens, logs, nats = zip(*rows, strict=True)
        self._tokens = torch.cat(tokens)  # (sequences, positions, top_k)
        self._logs = torch.cat(logs)  # (sequences, positions, top_k + 1), log-probabilities
        # 0, or NaN if the dense model's output is not finite.
        divergence = (self._logs - self._logs).sum((1, 2)).double()
        #: The dense model's sums for each sequence, (sequences, 4), as :meth:`score` returns them.
        self.reference_sums = torch.cat(
            (
                stack_with_count(divergence, self._logs.shape[1]),
                stack_with_count(torch.cat(nats), self.scored(slice(0, 1))),
            ),
            dim=1,
        )

    def describe(self) -> dict[str, Any]:
        """Return the sequences, and the mean probability that the stored tokens cover."""
        kept = self._logs[..., :-1].exp().sum(-1).mean()
        return {
            **super().describe(),
            "top_k": self.top_k,
            "kept_probability": round(float(kept), 6),
        }

    def score(self, model: Any, examples: slice, sub_models: int) -> Tensor:
        """Return sums, (sub_models, 4).

        They are: divergence in nats, positions, negative log-likelihood in nats, scored tokens.
        """
        ids, targets = self._input_ids[examples], self._targets[examples, :: self._every]
        wanted = torch.cat((self._tokens[examples].long(), targets[..., None]), dim=2)
        ids = ids.repeat(sub_models, 1)
        logs = log_probabilities(
            model, ids, wanted.flatten(0, 1).repeat(sub_models, 1), self._positions(ids)
        ).view(sub_models, *wanted.shape)
        dense = self._logs[examples]
        difference = dense.exp() * (dense - partition(logs[..., :-1]))
        divergence = difference.flatten(1).double().sum(1)
        nats = _nats(logs[..., -1], targets).flatten(1).sum(1)
        counted = stack_with_count(divergence, targets.numel())
        return torch.cat((counted, stack_with_count(nats, self.scored(examples))), dim=1)

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """Return the mean divergence per position, the perplexity, and the distillation loss."""
        divergence, positions, nats, tokens = sums
        kl, loss = divergence / positions, nats / tokens
        return {"kl": kl, "perplexity": exp(loss), "distillation": (kl + loss) / 2}

    def _positions(self, ids: Tensor) -> Tensor | None:
        """Return the indices of the scored positions in the flattened ``ids``."""
        if self._every == 1:
            return None
        return flat_positions(ids, torch.arange(0, self.seqlen, self._every, device=ids.device))

    def _teacher(self, model: Any, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the dense model's likeliest tokens, the log-probabilities of the partition, and
        the negative log-likelihood of each sequence.
        """
        targets = targets[:, :: self._every]
        found = likeliest(model, ids, self.top_k, targets.reshape(-1, 1), self._positions(ids))
        tokens, logs, own = (columns.view(*targets.shape, -1) for columns in found)
        return tokens.to(torch.int32), partition(logs), _nats(own[..., 0], targets).sum(1)


def _nats(logs: Tensor, targets: Tensor) -> Tensor:
    """Return negative log-likelihoods of targets in float64, 0 where a target is not scored."""
    return -logs.double().masked_fill(targets == UNSCORED, 0)
