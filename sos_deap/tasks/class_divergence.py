"""The metric ``kl`` of classifiers: the divergence of their predictions from the dense model's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sos_deap.tasks.classification import Accuracy, MultiLabel, nan_if_nonfinite
from sos_deap.tasks.likelihood import stack_with_count

_TOKENS = 4096  # in a pass of the dense model


class ClassDivergence:
    """KL divergence of a sub-model's predicted distribution from the dense model's, in nats.

    It is the mean over examples of the divergence over the classes, or of the sum of those over the
    labels of a multi-label classifier: the loss by which students learn from a teacher (Hinton,
    Vinyals and Dean, 2015). Unlike accuracy it changes with every sub-model, also where no answer
    does. No label is used but in the other metrics.

    :param task: the task on the same examples; its metrics are computed, too.
    :param model: the dense model.
    """

    name = "kl"
    greater_is_better = False
    one_pass = True
    shares_passes = True

    def __init__(self, task: Accuracy | MultiLabel, model: Any) -> None:
        self._task = task
        self.tokens = self.reference_tokens = task.tokens
        self.seqlen = task.seqlen
        step = max(1, _TOKENS // task.seqlen)
        with torch.inference_mode():
            parts = [slice(i, i + step) for i in range(0, len(task), step)]
            logits = torch.cat([task.logits(model, part, 1) for part in parts], dim=1)
        #: Log-probabilities of the dense model, (examples, outcomes).
        self._logs = task.log_probabilities(logits)[0]
        each = range(len(task))
        others = torch.cat([task.sums(logits[:, i : i + 1], slice(i, i + 1)) for i in each])
        # 0, or NaN if the dense model's output is not finite.
        divergence = (self._logs - self._logs).sum(-1).double()
        #: The dense model's sums for each example, as :meth:`score` returns them.
        self.reference_sums = torch.cat((stack_with_count(divergence, 1), others), dim=1)

    def __len__(self) -> int:
        return len(self._task)

    def describe(self) -> dict[str, Any]:
        """Return what the task on the same examples returns."""
        return self._task.describe()

    def score(self, model: Any, examples: slice, sub_models: int) -> Tensor:
        """Return sums (divergence in nats, examples, then those of the other task)."""
        logits = self._task.logits(model, examples, sub_models)
        dense, logs = self._logs[examples], self._task.log_probabilities(logits)
        each = (dense.exp() * (dense - logs)).sum(-1).double()  # (sub_models, examples)
        divergence = nan_if_nonfinite(each, logits).sum(1)
        others = self._task.sums(logits, examples)
        return torch.cat((stack_with_count(divergence, logits.shape[1]), others), dim=1)

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """Return the divergence per example, and the metrics of the other task."""
        divergence, count, *others = sums
        return {self.name: divergence / count, **self._task.metrics(others)}
