"""Sequence classification: one label per text (or pair of texts), or several."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from sos_deap.tasks.data.encoded import Encoded
from sos_deap.tasks.data.sequences import token_hash
from sos_deap.tasks.task import checked_metric


class LabelledTask(ABC):
    """Base class of the tasks on labelled examples.

    :param examples: the tokenized texts.
    :param labels: labels, (examples, ...), in the original order of the texts.
    :param device: device of the model.
    """

    greater_is_better = True
    one_pass = True
    reference_tokens = 0
    shares_passes = True

    def __init__(
        self, examples: Encoded, labels: Tensor, device: torch.device | str = "cpu"
    ) -> None:
        self.examples = examples.to(device)
        self.labels = labels[examples.order].to(device)
        self.tokens = int(examples.lengths.sum())  # without padding
        self.seqlen = int(examples.lengths[0])

    def __len__(self) -> int:
        return len(self.labels)

    def describe(self) -> dict[str, Any]:
        """Return the source, size and hash of the examples, and a hash of their labels."""
        return {**self.examples.describe(), "label_hash": token_hash([self.labels])}

    def logits(self, model: Any, examples: slice, sub_models: int) -> Tensor:
        """Return the logits of some examples, (sub_models, examples, labels), in float32."""
        logits: Tensor = model(**self.examples.batch(examples, sub_models)).logits
        return logits.float().view(sub_models, -1, logits.shape[-1])

    def score(self, model: Any, examples: slice, sub_models: int) -> Tensor:
        """Return the sums of sub-models over some examples; see :meth:`sums`."""
        return self.sums(self.logits(model, examples, sub_models), examples)

    @abstractmethod
    def sums(self, logits: Tensor, examples: slice) -> Tensor:
        """Return the sums over examples with these logits, (sub_models, examples, labels)."""

    @abstractmethod
    def metrics(self, sums: list[float]) -> dict[str, float]:
        """Return the metrics by name."""

    @abstractmethod
    def log_probabilities(self, logits: Tensor) -> Tensor:
        """Return the log-probabilities of the predicted outcomes, (..., outcomes)."""


class Accuracy(LabelledTask):
    """Accuracy: the share of examples whose likeliest class is the label.

    :param examples: the tokenized texts.
    :param labels: class indices, (examples,), in the original order of the texts.
    :param device: device of the model.
    """

    name = "accuracy"

    def sums(self, logits: Tensor, examples: slice) -> Tensor:
        """Return sums (correct, all), (sub_models, 2); NaN if a logit is not finite."""
        correct = (logits.argmax(-1) == self.labels[examples]).double()
        correct = nan_if_nonfinite(correct, logits).sum(1)
        return torch.stack((correct, torch.full_like(correct, logits.shape[1])), dim=1)

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """Return the accuracy, from 0 to 1."""
        return {self.name: sums[0] / sums[1]}

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """Return the log-probabilities of the classes, of the shape of the logits."""
        return logits.log_softmax(-1)


class MultiLabel(LabelledTask):
    """Multi-label classification: micro and macro F1, subset accuracy and Jaccard index.

    :param examples: the tokenized texts.
    :param labels: (examples, labels) of 0 and 1, in the original order of the texts.
    :param device: device of the model.
    :param threshold: a label is predicted if its probability, the sigmoid of its logit, is above
        this; from 0 to 1.
    :param metric: the metric for the fitness, a name in :attr:`METRICS`; default: the first.
    """

    #: ``micro_f1`` pools all decisions; ``macro_f1`` is the mean over the labels (0 for a label
    #: without true positives); ``subset_accuracy`` is the share of examples with all labels
    #: correct; ``jaccard`` is the mean over examples of intersection / union of predicted and true
    #: labels (1 if both are empty).
    METRICS = ("micro_f1", "macro_f1", "subset_accuracy", "jaccard")

    def __init__(
        self,
        examples: Encoded,
        labels: Tensor,
        device: torch.device | str = "cpu",
        threshold: float = 0.5,
        metric: str | None = None,
    ) -> None:
        super().__init__(examples, labels, device)
        self.name = checked_metric(metric, self.METRICS)
        self.threshold = threshold

    def describe(self) -> dict[str, Any]:
        """Return the source, size and hashes of the examples, and the threshold."""
        return {**super().describe(), "label_threshold": self.threshold}

    def sums(self, logits: Tensor, examples: slice) -> Tensor:
        """Return sums, (sub_models, 3 * labels + 3); NaN if a logit is not finite.

        They are: true positives, false positives and false negatives per label; examples with all
        labels correct; Jaccard indices; examples.
        """
        predicted, true = logits.sigmoid() > self.threshold, self.labels[examples] > 0
        shared, either = (predicted & true).sum(-1), (predicted | true).sum(-1)
        exact = nan_if_nonfinite((shared == either).double(), logits).sum(1)
        jaccard = torch.where(either > 0, shared / either.clamp(min=1), 1.0).double().sum(1)
        decisions = (predicted & true, predicted & ~true, ~predicted & true)
        per_label = [x.double().sum(1) for x in decisions]
        rest = torch.stack((exact, jaccard, torch.full_like(exact, logits.shape[1])), dim=1)
        # Adds NaN to all sums if a logit is not finite.
        return torch.cat((*per_label, rest), dim=1) + 0 * exact[:, None]

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """Return all of :attr:`METRICS`, each from 0 to 1."""
        *per_label, exact, jaccard, count = sums
        labels = len(per_label) // 3
        positives, wrong, missed = (per_label[i * labels : (i + 1) * labels] for i in range(3))
        return {
            "micro_f1": _f1(sum(positives), sum(wrong), sum(missed)),
            "macro_f1": sum(map(_f1, positives, wrong, missed)) / labels,
            "subset_accuracy": exact / count,
            "jaccard": jaccard / count,
        }

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """Return log-probabilities of each label and of its absence, (..., 2 * labels)."""
        return torch.cat((logsigmoid(logits), logsigmoid(-logits)), dim=-1)


def _f1(positives: float, wrong: float, missed: float) -> float:
    """Return F1 from true positives, false positives and false negatives; 0 without positives."""
    return 2 * positives / (2 * positives + wrong + missed) if positives else 0.0 * positives


def nan_if_nonfinite(values: Tensor, logits: Tensor) -> Tensor:
    """Replace values by NaN if logits are not finite, where an argmax would be arbitrary.

    :param values: (sub_models, examples), float64.
    :param logits: (sub_models, examples, labels).
    """
    return torch.where(logits.isfinite().all(-1), values, torch.nan)
