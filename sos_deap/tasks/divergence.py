"""The task ``kl``: the divergence of sub-models from the dense model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sos_deap.tasks.data.sequences import Sequences
from sos_deap.tasks.likelihood import SequenceTask, exp, nats_of, stack_with_count
from sos_deap.tasks.logits import logits_in_slices
from sos_deap.tasks.task import checked_metric


class KL(SequenceTask):
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
    """

    def __init__(
        self, sequences: Sequences, model: Any, top_k: int = 64, metric: str | None = None
    ) -> None:
        super().__init__(sequences, model.device)
        self.reference_tokens = self.tokens
        self.name = checked_metric(metric, ("kl", "perplexity", "distillation"))
        self.top_k = min(top_k, model.config.get_text_config().vocab_size)
        with torch.inference_mode():
            # Passes of 4,096 tokens, but of at least one sequence.
            together = max(1, 4096 // self.seqlen)
            rows = [
                self._teacher(model, ids, targets)
                for ids, targets in zip(
                    self._input_ids.split(together), self._targets.split(together), strict=True
                )
            ]
        tokens, logs, nats = zip(*rows, strict=True)
        self._tokens = torch.cat(tokens)  # (sequences, seqlen, top_k)
        self._logs = torch.cat(logs)  # (sequences, seqlen, top_k + 1), log-probabilities
        # 0, or NaN if the dense model's output is not finite.
        divergence = (self._logs - self._logs).sum((1, 2)).double()
        #: The dense model's sums for each sequence, (sequences, 4), as :meth:`score` returns them.
        self.reference_sums = torch.cat(
            (
                stack_with_count(divergence, self.seqlen),
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
        ids = self._input_ids[examples].repeat(sub_models, 1)
        next_tokens = self._targets[examples].repeat(sub_models, 1)
        teacher_tokens, teacher_logs = self._tokens[examples], self._logs[examples]
        divergence = torch.zeros(sub_models, dtype=torch.float64, device=ids.device)
        nats = torch.zeros_like(divergence)
        for positions, logits in logits_in_slices(model, ids):
            nats += nats_of(logits, next_tokens[:, positions], sub_models)
            tokens = teacher_tokens[:, positions].long().repeat(sub_models, 1, 1)
            dense = teacher_logs[:, positions].repeat(sub_models, 1, 1)
            difference = dense.exp() * (dense - _log_partition(logits, tokens))
            divergence += difference.double().view(sub_models, -1).sum(1)
        positions_each = ids.numel() // sub_models
        counted = stack_with_count(divergence, positions_each)
        return torch.cat((counted, stack_with_count(nats, self.scored(examples))), dim=1)

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """Return the mean divergence per position, the perplexity, and the distillation loss."""
        divergence, positions, nats, tokens = sums
        kl, loss = divergence / positions, nats / tokens
        return {"kl": kl, "perplexity": exp(loss), "distillation": (kl + loss) / 2}

    def _teacher(self, model: Any, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the dense model's likeliest tokens, the log-probabilities of the partition, and
        the negative log-likelihood of each sequence.
        """
        parts = list(self._teacher_slices(model, ids, targets))
        tokens, logs, nats = zip(*parts, strict=True)
        return torch.cat(tokens, dim=1), torch.cat(logs, dim=1), torch.stack(nats).sum(0)

    def _teacher_slices(
        self, model: Any, ids: Tensor, targets: Tensor
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for positions, logits in logits_in_slices(model, ids):
            tokens = logits.topk(self.top_k, dim=-1).indices
            nats = nats_of(logits, targets[:, positions], len(ids))
            yield tokens.to(torch.int32), _log_partition(logits, tokens), nats


def _log_partition(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return log-probabilities of some tokens and of all others together, in float32.

    :param logits: (rows, positions, vocabulary).
    :param tokens: token ids, (rows, positions, top_k).
    :returns: (rows, positions, top_k + 1); the last is that of the others.
    """
    logs = logits.float().log_softmax(-1).gather(-1, tokens)
    # Below 1e-6 the difference 1 - sum has no exact digits, so 1e-6 is the least.
    rest = (1 - logs.exp().sum(-1, keepdim=True)).clamp(min=1e-6)
    return torch.cat((logs, rest.log()), dim=-1)
