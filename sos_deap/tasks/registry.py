"""The tasks by name, and how each is made from a model and a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from sos_deap.errors import InputError, unknown
from sos_deap.models.loading import Pretrained
from sos_deap.models.purposes import kind_of
from sos_deap.tasks.classification import make_accuracy, make_multilabel
from sos_deap.tasks.custom import make_custom
from sos_deap.tasks.data.draw import Draw, Make
from sos_deap.tasks.data.reading import SELF, read_parts
from sos_deap.tasks.generation import make_summarization
from sos_deap.tasks.language import make_kl, make_perplexity
from sos_deap.tasks.settings import TaskSettings
from sos_deap.tasks.task import Tasks, checked_metric
from sos_deap.user_function import user_function


@dataclass(frozen=True)
class TaskKind:
    """A row of :data:`TASKS`.

    :param purpose: what the model must be for, a key of
        :data:`sos_deap.models.purposes.PURPOSES`.
    :param make: from a model and settings to what makes the task of examples.
    :param samples: calibration examples unless the user says otherwise; ``None`` for all.
    :param own_text: whether the model can write the data itself.
    """

    purpose: str
    make: Callable[[Pretrained, TaskSettings], Make]
    samples: int | None
    own_text: bool = False


#: Tasks by the name the user gives.
TASKS: dict[str, TaskKind] = {
    "accuracy": TaskKind("classification", make_accuracy, samples=256),
    "kl": TaskKind("language modelling", make_kl, samples=8, own_text=True),
    "multilabel": TaskKind("classification", make_multilabel, samples=256),
    "perplexity": TaskKind("language modelling", make_perplexity, samples=8, own_text=True),
    "summarization": TaskKind("generation", make_summarization, samples=16),
}


def resolved_task(task: str, model: str, causal: str = "perplexity") -> str:
    """The task of that name; for ``"auto"`` the one that fits what the model was saved as.

    :param model: a Hub name, a folder or a built-in name; its config.json alone is read.
    :param causal: the task of causal language models.
    :raises InputError: if the config.json is missing or damaged.
    """
    if task != "auto":
        return task
    fitting = {
        "classifier": "accuracy",
        "multi-label classifier": "multilabel",
        "encoder-decoder": "summarization",
        "encoder": "perplexity",
        "causal": causal,
    }
    return fitting[kind_of(model)]


def make_tasks(
    task: str | Callable[..., Any],
    dataset: str,
    settings: TaskSettings,
    seed: int,
    load: Callable[[str], Pretrained],
) -> tuple[Pretrained, Tasks]:
    """A model, and a task on the calibration and on the held-out part of a data set.

    The examples for validation are of the calibration part too, others than those for calibration.

    :param task: a key of :data:`TASKS`, a user's ``module:function``, or a function of a model, its
        tokenizer and the rows of a part.
    :param dataset: for :func:`read_parts`, or ``builtin:self``.
    :param settings: what else the task is told.
    :param seed: for the draw of the calibration examples.
    :param load: loads the model for a purpose, once the data has been found.
    :raises InputError: for anything that is not there or does not fit.
    """
    kind = task_kind(task)
    if dataset == SELF and not kind.own_text:
        able = ", ".join(name for name, row in TASKS.items() if row.own_text)
        raise InputError(f"{SELF} is text for {able}: give this task a data set with --dataset")
    samples, more = settings.samples, settings.validation_samples
    samples = kind.samples if samples is None else samples
    if more is not None and samples is None:
        raise InputError(
            "this task takes all examples for calibration: give --samples too, so that "
            f"{more} are left for validation"
        )
    seen, unseen = (None, None) if dataset == SELF else read_parts(dataset, settings)
    loaded = load(kind.purpose)
    make = kind.make(loaded, replace(settings, samples=samples))
    calibration = Draw("calibration", seen, samples, seed, unseen=unseen)
    tasks = Tasks(
        make(calibration),
        make(Draw("held-out", unseen, settings.heldout_samples, seed)),
        make(replace(calibration, purpose="validation", samples=more, skip=samples or 0))
        if more is not None
        else None,
    )
    checked_metric(settings.metric, (tasks.calibration.name,))  # one of one metric has no other
    return loaded, tasks


def task_kind(task: str | Callable[..., Any]) -> TaskKind:
    """The row of a task, or one for a function of the user's.

    :raises InputError: for a name that is none.
    """
    if isinstance(task, str) and ":" not in task:
        if task not in TASKS:
            raise unknown("task", task, ["auto", *TASKS, "module:function"])
        return TASKS[task]
    function = user_function(task) if isinstance(task, str) else task
    return TaskKind("any", partial(make_custom, function), samples=None)
