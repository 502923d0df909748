"""Sequence classification: one label a text (or pair of texts), or several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sos_deap.models.loading import Pretrained
from sos_deap.tasks.data.columns import strings, texts_to_classify
from sos_deap.tasks.data.draw import Draw, Make
from sos_deap.tasks.data.encoded import Encoded, encode
from sos_deap.tasks.data.labels import multiple_labels, single_labels
from sos_deap.tasks.data.reading import Part
from sos_deap.tasks.data.sequences import longest, token_hash
from sos_deap.tasks.settings import TaskSettings
from sos_deap.tasks.task import Task, checked_metric


class LabelledTask:
    """What the tasks on labelled examples share.

    :param examples: the texts.
    :param labels: in the order in which the texts were given to be encoded.
    :param device: where they go.
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
        self.tokens = int(examples.lengths.sum())  # not padding
        self.seqlen = int(examples.lengths[0])

    def __len__(self) -> int:
        return len(self.labels)

    def describe(self) -> dict[str, Any]:
        """The examples, and a hash of their labels."""
        return {**self.examples.describe(), "label_hash": token_hash([self.labels])}

    def logits(self, model: Any, examples: slice, sub_models: int) -> Tensor:
        """(sub-models, examples, labels), in float32."""
        logits: Tensor = model(**self.examples.batch(examples, sub_models)).logits
        return logits.float().view(sub_models, -1, logits.shape[-1])


class Accuracy(LabelledTask):
    """The share of examples whose likeliest class is the label; ``labels`` is (examples,)."""

    name = "accuracy"

    def score(self, model: Any, examples: slice, sub_models: int) -> Tensor:
        """Sums (right, all), (sub-models, 2); not a number where a logit is none."""
        logits = self.logits(model, examples, sub_models)
        right = (logits.argmax(-1) == self.labels[examples]).double()
        right = nan_if_nonfinite(right, logits).sum(1)
        return torch.stack((right, torch.full_like(right, logits.shape[1])), dim=1)

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """The accuracy."""
        return {self.name: sums[0] / sums[1]}


class MultiLabel(LabelledTask):
    """F1 over all decisions and per label, exact match, and Jaccard index per example.

    :param labels: (examples, labels) of 0 and 1.
    :param threshold: a label is given where its probability, the logit's sigmoid, is above this.
    :param metric: the one that counts, a name in :attr:`METRICS`.
    """

    #: ``micro_f1`` pools all decisions, ``macro_f1`` is the mean over the labels (0 for a label
    #: that is neither given nor right), ``subset_accuracy`` counts examples with no label wrong,
    #: ``jaccard`` is the mean over examples of labels shared / labels in either (1 if in neither).
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
        """The examples, and the threshold."""
        return {**super().describe(), "label_threshold": self.threshold}

    def score(self, model: Any, examples: slice, sub_models: int) -> Tensor:
        """Per label the right ones, the wrong ones and the missed ones; then exact, Jaccard, all.

        (sub-models, 3 * labels + 3); not a number where a logit is none.
        """
        logits = self.logits(model, examples, sub_models)
        given, right = logits.sigmoid() > self.threshold, self.labels[examples] > 0
        shared, either = (given & right).sum(-1), (given | right).sum(-1)
        exact = nan_if_nonfinite((shared == either).double(), logits).sum(1)
        jaccard = torch.where(either > 0, shared / either.clamp(min=1), 1.0).double().sum(1)
        per_label = [x.double().sum(1) for x in (given & right, given & ~right, ~given & right)]
        rest = torch.stack((exact, jaccard, torch.full_like(exact, logits.shape[1])), dim=1)
        # A sub-model that broke down has no metric at all.
        return torch.cat((*per_label, rest), dim=1) + 0 * exact[:, None]

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """All of :attr:`METRICS`."""
        *per_label, exact, jaccard, count = sums
        labels = len(per_label) // 3
        right, wrong, missed = (per_label[i * labels : (i + 1) * labels] for i in range(3))
        return {
            "micro_f1": _f1(sum(right), sum(wrong), sum(missed)),
            "macro_f1": sum(map(_f1, right, wrong, missed)) / labels,
            "subset_accuracy": exact / count,
            "jaccard": jaccard / count,
        }


def _f1(right: float, wrong: float, missed: float) -> float:
    return 2 * right / (2 * right + wrong + missed) if right else 0.0 * right


def nan_if_nonfinite(values: Tensor, logits: Tensor) -> Tensor:
    """The values, but not a number where logits are none: an argmax would make up an answer."""
    return torch.where(logits.isfinite().all(-1), values, torch.nan)


def make_accuracy(loaded: Pretrained, settings: TaskSettings) -> Make:
    """The task on data with one label a row."""
    return _make(Accuracy, single_labels, loaded, settings)


def make_multilabel(loaded: Pretrained, settings: TaskSettings) -> Make:
    """The task on data with several labels a row."""

    def make(examples: Encoded, labels: Tensor, device: torch.device) -> Task:
        return MultiLabel(examples, labels, device, settings.label_threshold, settings.metric)

    return _make(make, multiple_labels, loaded, settings)


def _make(
    make: Callable[[Encoded, Tensor, torch.device], Task],
    read_labels: Callable[[Part, str | None, Any], Tensor],
    loaded: Pretrained,
    settings: TaskSettings,
) -> Make:
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
