"""The table of tasks, and how a task is made from a model and a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from sos_deap.errors import InputError, unknown
from sos_deap.models.loading import Pretrained
from sos_deap.models.purposes import kind_of
from sos_deap.tasks.custom import make_custom
from sos_deap.tasks.data.draw import Draw, NoneLeftError, TaskMaker
from sos_deap.tasks.data.reading import SELF, Part, read_parts
from sos_deap.tasks.labelled import make_accuracy, make_multilabel
from sos_deap.tasks.language import make_kl, make_perplexity, make_reading
from sos_deap.tasks.multiple_choice import make_multiple_choice
from sos_deap.tasks.settings import TaskSettings
from sos_deap.tasks.summaries import make_summarization
from sos_deap.tasks.task import Task, Tasks, checked_metric
from sos_deap.user_function import user_function

#: Default number of examples of the probe data.
PROBE_SAMPLES = 256

#: The tasks whose models read running text.
_READING = ("kl", "perplexity")


@dataclass(frozen=True)
class TaskKind:
    """A row of :data:`TASKS`.

    :param purpose: kind of model that the task needs, a key of
        :data:`sos_deap.models.purposes.PURPOSES`.
    :param make: takes a model and settings; returns a function from draws of examples to tasks.
    :param samples: default number of calibration examples; ``None`` for all.
    :param self_text: whether the model can generate the data itself (``builtin:self``).
    """

    purpose: str
    make: Callable[[Pretrained, TaskSettings], TaskMaker]
    samples: int | None
    self_text: bool = False


#: Tasks by name, the values of ``--task``.
TASKS: dict[str, TaskKind] = {
    "accuracy": TaskKind("classification", make_accuracy, samples=256),
    "kl": TaskKind("language modelling", make_kl, samples=8, self_text=True),
    "multilabel": TaskKind("classification", make_multilabel, samples=256),
    "multiple-choice": TaskKind("language modelling", make_multiple_choice, samples=256),
    "perplexity": TaskKind("language modelling", make_perplexity, samples=8, self_text=True),
    "summarization": TaskKind("generation", make_summarization, samples=16),
}


def resolved_task(task: str, model: str, causal: str = "perplexity") -> str:
    """Return the name of a task; for ``"auto"``, that of the task that fits the saved model.

    :param task: name of a task, a user's ``module:function``, or ``"auto"``.
    :param model: a Hub name, a folder or a built-in name; only its config.json is read.
    :param causal: task to return for causal language models.
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
    """Load a model, and make its task on the parts of a data set.

    Calibration, validation and refit examples are disjoint draws from the calibration part.

    :param task: a key of :data:`TASKS`, a user's ``module:function``, or a function of a model, its
        tokenizer and the rows of a part.
    :param dataset: a data set for :func:`read_parts`, or ``builtin:self``.
    :param settings: settings of the task.
    :param seed: seed of the draw of examples.
    :param load: loads the model for a purpose; called after the data has been found.
    :returns: the model with its tokenizer, and the tasks.
    :raises InputError: if the data, the model and the settings are missing or do not fit.
    """
    kind = task_kind(task)
    if dataset == SELF and not kind.self_text:
        able = ", ".join(name for name, row in TASKS.items() if row.self_text)
        raise InputError(f"{SELF} is only for {able}: give this task a data set with --dataset")
    samples, more = settings.samples, settings.validation_samples
    samples = kind.samples if samples is None else samples
    for count, purpose in ((more, "validation"), (settings.refit_samples, "the refit")):
        if count is not None and samples is None:
            raise InputError(
                "this task uses all examples for calibration: also give --samples, so that "
                f"{count} are left for {purpose}"
            )
    part, heldout = (None, None) if dataset == SELF else read_parts(dataset, settings)
    probe = _another("probe_dataset", settings)
    mixed = _another("refit_dataset", settings)
    if mixed is not None:
        _check_mixed(task, dataset, settings)
    loaded = load(kind.purpose)
    settings = replace(settings, samples=samples)
    make = kind.make(loaded, settings)
    excluded = () if heldout is None else (heldout,)
    calibration = Draw("calibration", part, samples, seed, excluded=excluded)
    used, shown = samples or 0, settings.heldout_samples
    validation = replace(calibration, purpose="validation", samples=more, skip=used)
    refit = replace(
        calibration, purpose="refit", samples=settings.refit_samples, skip=used + (more or 0)
    )
    # A refit of a language model needs no metric.
    reads = make_reading(loaded, settings) if task in _READING else make
    tasks = Tasks(
        make(calibration),
        make(Draw("held-out", heldout, shown, seed)),
        None if more is None else make(validation),
        None if probe is None else make(Draw("probe", probe[1], shown or PROBE_SAMPLES, seed)),
        _refit_task(reads, refit, mixed),
    )
    checked_metric(settings.metric, (tasks.calibration.name,))  # tasks with one metric do not check
    return loaded, tasks


def _another(name: str, settings: TaskSettings) -> tuple[Part, Part] | None:
    """Return the calibration and the held-out part of a further data set, if there is one.

    :param name: name of the setting.
    """
    dataset = getattr(settings, name)
    if dataset is None:
        return None
    if dataset == SELF:
        raise InputError(f"{name} is {SELF}: give a data set to read")
    # The names of splits are those of the other data set.
    return read_parts(dataset, replace(settings, calibration_split=None, heldout_split=None))


def _check_mixed(task: str | Callable[..., Any], dataset: str, settings: TaskSettings) -> None:
    """Check that half of the refit examples can be from another data set."""
    if task not in _READING:
        raise InputError(f"refit_dataset is only for {', '.join(_READING)}: leave it out")
    if settings.refit_dataset == dataset:
        raise InputError(f"refit_dataset is {dataset}, the data set of the search: give another")
    if settings.refit_samples is None:
        raise InputError("refit_dataset is given without refit_samples: give their number, too")


def _refit_task(
    reads: Callable[..., Task], refit: Draw, mixed: tuple[Part, Part] | None
) -> Task | None:
    """Return the refit examples, of which half may be from another data set.

    :returns: the examples; ``None`` if there are none, or none is left: the calibration examples
        then serve for the refit, too.
    :raises NoneLeftError: if none is left for the half that is not from another data set.
    """
    if refit.samples is None:
        return None
    if mixed is not None:
        half, (part, heldout) = refit.samples // 2, mixed
        excluded = (*refit.excluded, heldout)  # also this one's, whose rows the other may have
        other = Draw(refit.purpose, part, half, refit.seed, excluded=excluded)
        return reads(replace(refit, samples=refit.samples - half), other)
    try:
        return reads(refit)
    except NoneLeftError:
        return None


def task_kind(task: str | Callable[..., Any]) -> TaskKind:
    """Return the row of a task, or a new one for a function of the user.

    :param task: a key of :data:`TASKS`, ``module:function``, or a function.
    :raises InputError: for an unknown name.
    """
    if isinstance(task, str) and ":" not in task:
        if task not in TASKS:
            raise unknown("task", task, ["auto", *TASKS, "module:function"])
        return TASKS[task]
    function = user_function(task) if isinstance(task, str) else task
    return TaskKind("any", partial(make_custom, function), samples=None)
