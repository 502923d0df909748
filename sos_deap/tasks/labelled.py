"""The tasks of classifiers, from a model and labelled data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sos_deap.models.loading import Pretrained
from sos_deap.tasks.class_divergence import ClassDivergence
from sos_deap.tasks.classification import Accuracy, MultiLabel
from sos_deap.tasks.data.columns import strings, texts_to_classify
from sos_deap.tasks.data.draw import Draw, TaskMaker
from sos_deap.tasks.data.encoded import Encoded, encode
from sos_deap.tasks.data.labels import multiple_labels, single_labels
from sos_deap.tasks.data.reading import Part
from sos_deap.tasks.data.sequences import longest
from sos_deap.tasks.settings import TaskSettings
from sos_deap.tasks.task import Task, checked_metric


def make_accuracy(loaded: Pretrained, settings: TaskSettings) -> TaskMaker:
    """Return what makes the task ``accuracy``, on data with one label per row."""
    checked_metric(settings.metric, (Accuracy.name, ClassDivergence.name))
    return _make(Accuracy, single_labels, loaded, settings)


def make_multilabel(loaded: Pretrained, settings: TaskSettings) -> TaskMaker:
    """Return what makes the task ``multilabel``, on data with several labels per row."""
    checked_metric(settings.metric, (*MultiLabel.METRICS, ClassDivergence.name))
    metric = None if settings.metric == ClassDivergence.name else settings.metric

    def make(examples: Encoded, labels: Tensor, device: torch.device) -> MultiLabel:
        return MultiLabel(examples, labels, device, settings.label_threshold, metric)

    return _make(make, multiple_labels, loaded, settings)


def _make(
    make: Callable[[Encoded, Tensor, torch.device], Accuracy | MultiLabel],
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
        found = make(examples, labels[chosen], model.device)
        diverges = settings.metric == ClassDivergence.name
        return ClassDivergence(found, model) if diverges else found

    return task
