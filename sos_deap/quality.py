"""The quality of the dense and the pruned model on the parts of a run's data."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedModel

from sos_deap.errors import InputError
from sos_deap.evaluation.compute import Sums
from sos_deap.evaluation.evaluator import Evaluator
from sos_deap.evaluation.uncertainty import added, changes, groups_of
from sos_deap.report.formats import measurement
from sos_deap.tasks.data.unigrams import unigram_perplexity
from sos_deap.tasks.likelihood import CausalTask
from sos_deap.tasks.task import Task

#: Parts of the data that models are compared on.
PARTS = ("calibration", "heldout", "probe")


@dataclass(frozen=True)
class Quality:
    """The quality of a model.

    :param metrics: for each part of the data the metrics by name, the main one first; ``None`` for
        one that is not finite.
    :param sums: for each part the sums of its task over groups of examples.
    """

    metrics: dict[str, dict[str, float | None]]
    sums: dict[str, Sums]


def quality(
    evaluator: Evaluator, model: PreTrainedModel, parts: Collection[str] = PARTS
) -> Quality:
    """Return the quality of a model on parts of the data.

    :param evaluator: the evaluator of the search.
    :param model: the dense model, or a pruned one.
    :param parts: some of :data:`PARTS`; those that the evaluator has no task on are left out.
    :raises InputError: if the main metric of the task is not finite.
    """
    found = Quality({}, {})
    for part in parts:
        task = task_of(evaluator, part)
        if task is None:
            continue
        found.sums[part] = sums_on(evaluator, model, task)
        metrics = task.metrics(added(found.sums[part]))
        if not math.isfinite(metrics[task.name]):
            raise InputError(
                f"the model's {task.name} ({part}) is {metrics[task.name]}: check the model and "
                "the data, or compute with --dtype float32"
            )
        # The main metric comes first; JSON has no infinity.
        others = {n: value if math.isfinite(value) else None for n, value in metrics.items()}
        found.metrics[part] = {task.name: others.pop(task.name), **others}
    return found


def task_of(evaluator: Evaluator, part: str) -> Task | None:
    """Return the evaluator's task on a part of the data; ``None`` if it has none."""
    task: Task | None = getattr(evaluator, "task" if part == "calibration" else part)
    return task


def changes_of(
    evaluator: Evaluator, dense: Quality, pruned: Quality
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the changes from the dense to the pruned model, for ``result.json``.

    :param evaluator: the evaluator of the search.
    :param dense: quality of the dense model.
    :param pruned: quality of the pruned model.
    :returns: for each part and metric the fields of
        :class:`~sos_deap.evaluation.uncertainty.Change`.
    """
    found = {}
    for part, sums in pruned.sums.items():
        task = task_of(evaluator, part)
        assert task is not None
        changed = changes(task, dense.sums[part], sums)
        found[part] = {name: asdict(change) for name, change in changed.items()}
    return found


def sums_on(evaluator: Evaluator, model: PreTrainedModel, task: Task) -> Sums:
    """Return a task's sums over groups of examples.

    :param evaluator: the evaluator of the search.
    :param model: the dense model, or a pruned one.
    :param task: the task.
    """
    # Some tasks have read the dense model's outputs already.
    reference: Any = getattr(task, "reference_sums", None)
    if reference is None or model is not evaluator.model:
        return evaluator.sums_of(model, task)
    return [reference[group].sum(0).tolist() for group in groups_of(len(task))]


def implausible(evaluator: Evaluator, dense: Quality) -> str | None:
    """Return a warning if token frequencies predict the calibration text better than the model.

    This is the first sign of a wrong tokenizer, dtype or start token, or of another language.

    :param evaluator: the evaluator of the search.
    :param dense: quality of the dense model.
    :returns: the warning; ``None`` for a plausible perplexity and for tasks without one.
    """
    found = dense.metrics["calibration"].get("perplexity")
    if not isinstance(evaluator.task, CausalTask) or found is None:
        return None
    vocabulary = evaluator.model.config.get_text_config().vocab_size
    unigram = unigram_perplexity(evaluator.task.sequences.input_ids, vocabulary)
    if found <= unigram:
        return None
    return (
        f"warning: the perplexity of the dense model, {measurement(found)}, is above that of the "
        f"frequencies of the tokens in the same text, {measurement(unigram)}: check the data, the "
        "tokenizer, --start_token and --dtype"
    )
