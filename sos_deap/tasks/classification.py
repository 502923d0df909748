"""Sequence classification: one label per text (or pair of texts), or several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sos_deap.models.loading import Pretrained
from sos_deap.tasks.data.columns import strings, texts_to_classify
from sos_deap.tasks.data.draw import Draw, TaskMaker
from sos_deap.tasks.data.encoded import Encoded, encode
from sos_deap.tasks.data.labels import multiple_labels, single_labels
from sos_deap.tasks.data.reading import Part
from sos_deap.tasks.data.sequences import longest, token_hash
from sos_deap.tasks.settings import TaskSettings
from sos_deap.tasks.task import Task, checked_metric


class LabelledTask:
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


class Accuracy(LabelledTask):
    """Accuracy: the share of examples whose likeliest class is the label.

    :param examples: the tokenized texts.
    :param labels: class indices, (examples,), in the original order of the texts.
    :param device: device of the model.
    """

    name = "accuracy"

    def score(self, model: Any, examples: slice, sub_models: int) -> Tensor:
        """Return sums (correct, all), (sub_models, 2); NaN if a logit is not finite."""
        logits = self.logits(model, examples, sub_models)
        correct = (logits.argmax(-1) == self.labels[examples]).double()
        correct = nan_if_nonfinite(correct, logits).sum(1)
        return torch.stack((correct, torch.full_like(correct, logits.shape[1])), dim=1)

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """Return the accuracy, from 0 to 1."""
        return {self.name: sums[0] / sums[1]}


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

    def score(self, model: Any, examples: slice, sub_models: int) -> Tensor:
        """Return sums, (sub_models, 3 * labels + 3); NaN if a logit is not finite.

        They are: true positives, false positives and false negatives per label; examples with all
        labels correct; Jaccard indices; examples.
        """
        logits = self.logits(model, examples, sub_models)
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


def _f1(positives: float, wrong: float, missed: float) -> float:
    """Return F1 from true positives, false positives and false negatives; 0 without positives."""
    return 2 * positives / (2 * positives + wrong + missed) if positives else 0.0 * positives


def nan_if_nonfinite(values: Tensor, logits: Tensor) -> Tensor:
    """Replace values by NaN if logits are not finite, where an argmax would be arbitrary.

    :param values: (sub_models, examples), float64.
    :param logits: (sub_models, examples, labels).
    """
    return torch.where(logits.isfinite().all(-1), values, torch.nan)


def make_accuracy(loaded: Pretrained, settings: TaskSettings) -> TaskMaker:
    """Return what makes the task ``accuracy``, on data with one label per row."""
    return _make(Accuracy, single_labels, loaded, settings)


def make_multilabel(loaded: Pretrained, settings: TaskSettings) -> TaskMaker:
    """Return what makes the task ``multilabel``, on data with several labels per row."""

    def make(examples: Encoded, labels: Tensor, device: torch.device) -> Task:
        return MultiLabel(examples, labels, device, settings.label_threshold, settings.metric)

    return _make(make, multiple_labels, loaded, settings)


def _make(
    make: Callable[[Encoded, Tensor, torch.device], Task],
    read_labels: Callable[[Part, str | None, Any], Tensor],
    loaded: Pretrained,
    settings: TaskSettings,
) -> TaskMaker:
    """Return what makes a task on labelled examples.

    :param make: takes tokenized texts, labels and a device.
    :param read_labels: takes a part, the name of the label column and the model's configuration.
    :param loaded: model and tokenizer.
    :param settings: settings of the task.
    """
    model, tokenizer = loaded.model, loaded.tokenizer
    most = longest(loaded, settings.seqlen)

    def texts(part: Part) -> list[tuple[str, ...]]:
        columns = [strings(part, name) for name in texts_to_classify(part, settings.text_column)]
        return list(zip(*columns, strict=True))

    def task(draw: Draw) -> Task:
        part = draw.part
        assert part is not None
        rows, labels = texts(part), read_labels(part, settings.label_column, model.config)
        chosen = draw.rows(texts)
        pad = model.config.pad_token_id
        examples = encode(part.split, [rows[i] for i in chosen], tokenizer, most, pad)
        return make(examples, labels[chosen], model.device)

    return task
