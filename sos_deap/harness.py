"""Tasks of lm-eval, its own or on local files, and their results on models in memory.

lm-eval is the Language Model Evaluation Harness (Gao et al.), the usual program for zero-shot
accuracies. This is the only file that imports it.
"""

from __future__ import annotations

import logging
import math
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from sos_deap.errors import InputError, first_line, unknown
from sos_deap.tasks.data.choices import Question, questions
from sos_deap.tasks.data.local import local_tables
from sos_deap.tasks.data.reading import Part

#: Draws of lm-eval's bootstrap of the standard error of a perplexity.
_DRAWS = 1000


def checked_harness() -> None:
    """Import lm-eval, without its log.

    :raises InputError: if it is not installed.
    """
    try:
        import_module("lm_eval")
    except ImportError as error:
        raise InputError("eval needs lm_eval: pip install 'sos_deap[eval]'") from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    # Its bootstrap would start a process for each core, beside the threads of torch.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")


def own_tasks(names: Sequence[str]) -> list[Any]:
    """Return tasks and groups of tasks of lm-eval, with their data.

    :param names: their names in lm-eval; a tag stands for all its tasks.
    :raises InputError: for a name that lm-eval does not know, and for data that cannot be loaded.
    """
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    for name in names:
        if name not in manager.all_tasks:
            raise unknown("task", name, manager.all_tasks, where="lm-eval ls tasks lists all")
    try:
        with redirect_stdout(sys.stderr):
            loaded = manager.load(list(names))
    except Exception as error:  # of datasets, of the Hub client or of a task's own code
        why = first_line(error.__cause__ or error)
        raise InputError(
            f"cannot load the data of {', '.join(names)}: {why}; --data reads local files"
        ) from error
    found = {**loaded["tasks"], **loaded.get("groups", {})}
    inner = {name for names in loaded.get("group_map", {}).values() for name in names}
    return [task for name, task in found.items() if name not in inner]


def local_tasks(folder: Path, names: Sequence[str] | None) -> list[Any]:
    """Return a task of lm-eval for each of some files with questions.

    :param folder: the folder of the files.
    :param names: names of the files without ``.jsonl``; ``None`` for all.
    :raises InputError: for a file that does not exist or has rows of another format.
    """
    files = {path.stem: path for path in sorted(folder.glob("*.jsonl"))}
    if not files:
        raise InputError(f"data {folder} has no .jsonl file: give a folder with such files")
    for name in names or ():
        if name not in files:
            raise unknown("task", name, files)
    return [_local_task(name, files[name]) for name in names or files]


def _local_task(name: str, path: Path) -> Any:
    from lm_eval.api.task import ConfigurableTask

    (table,) = local_tables(path).values()
    asked = questions(Part(path.name, table.columns, table.label_names))
    if not asked:
        raise InputError(f"data set file {path} has no row: give one with questions")
    kinds = {(len(one.contexts) > 1, len(one.choices) > 1) for one in asked}
    if len(kinds) > 1:
        raise InputError(f"{path} has rows of several formats: give a file for each")
    return ConfigurableTask(config=task_config(name, asked))


def task_config(name: str, asked: Sequence[Question]) -> dict[str, Any]:
    """Return lm-eval's configuration of a task on questions of one format.

    :param name: name of the task.
    :param asked: the questions.
    """
    metrics = ["acc", "acc_norm"]
    config: dict[str, Any] = {"output_type": "multiple_choice", "doc_to_target": "gold"}
    first = asked[0]
    if len(first.choices) == 1:
        metrics = ["acc", "perplexity"]
        config = {"output_type": "loglikelihood", "doc_to_target": _continuation}
    if len(first.contexts) > 1:  # lm-eval takes the choices as contexts, and the text as index
        metrics = ["acc"]
        config |= {"doc_to_text": "gold", "doc_to_target": _answer, "doc_to_choice": "contexts"}
    else:
        config |= {"doc_to_text": _context, "doc_to_choice": "answers"}
    rows = [
        {"contexts": list(one.contexts), "answers": list(one.answers), "gold": one.gold}
        for one in asked
    ]
    return {
        "task": name,
        "custom_dataset": partial(_splits, rows),
        "test_split": "test",
        **config,
        "metric_list": [
            {
                "metric": metric,
                "aggregation": "perplexity" if metric == "perplexity" else "mean",
                "higher_is_better": metric != "perplexity",
            }
            for metric in metrics
        ],
    }


def _splits(rows: list[dict[str, Any]], **_: Any) -> dict[str, Any]:
    from datasets import Dataset

    return {"test": Dataset.from_list(rows)}


def _context(row: Mapping[str, Any]) -> str:
    return str(row["contexts"][0])


def _answer(row: Mapping[str, Any]) -> str:
    return str(row["answers"][0])


def _continuation(row: Mapping[str, Any]) -> str:
    return f" {_answer(row)}"


def evaluated(
    model: Any, tokenizer: Any, tasks: Sequence[Any], limit: int | None, batch_size: int
) -> dict[str, Any]:
    """Return lm-eval's results of a model in memory.

    :param model: a causal or encoder-decoder model, pruned or not.
    :param tokenizer: its tokenizer.
    :param tasks: tasks of :func:`own_tasks` or :func:`local_tasks`.
    :param limit: most examples of each task, the first ones; ``None`` for all.
    :param batch_size: sequences in a forward pass.
    :returns: by name of a task or group ``chance`` (the accuracy of random choices; ``None``
        without choices), ``examples`` (``None`` for a group), and ``metrics``: for each its
        ``value``, its ``stderr`` (both ``None`` where they are not finite) and ``each``, its values
        for the examples (``None`` where they are no numbers).
    :raises InputError: if lm-eval refuses the tasks.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    try:
        with redirect_stdout(sys.stderr):
            harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
            found = simple_evaluate(
                harness,
                tasks=list(tasks),
                limit=limit,
                bootstrap_iters=_DRAWS,
                task_manager=TaskManager(include_defaults=False),  # the tasks are loaded already
            )
    except ValueError as error:  # such as tasks that execute code or need images
        raise InputError(f"lm-eval: {first_line(error)}") from error
    samples: Mapping[str, Any] = found["samples"]
    kinds = {name: config["output_type"] for name, config in found["configs"].items()}
    return {
        name: _result(values, samples.get(name), kinds.get(name))
        for name, values in found["results"].items()
    }


def _result(
    values: Mapping[str, Any], samples: Sequence[Mapping[str, Any]] | None, kind: str | None
) -> dict[str, Any]:
    metrics = {}
    for key, value in values.items():
        name, comma, filtered = key.partition(",")
        if not comma or name.endswith("_stderr") or not isinstance(value, int | float):
            continue
        stderr = values.get(f"{name}_stderr,{filtered}")
        metrics[name if filtered == "none" else f"{name} ({filtered})"] = {
            "value": _finite(value),
            "stderr": _finite(stderr),
            "each": _each(samples, name, filtered),
        }
    chance = None
    if samples and kind == "multiple_choice":
        chance = statistics.fmean(1 / len(sample["arguments"]) for sample in samples)
    examples = None if samples is None else len({sample["doc_id"] for sample in samples})
    return {"chance": chance, "examples": examples, "metrics": metrics}


def _finite(value: Any) -> float | None:
    """Return a number, or ``None`` for text such as "N/A", and for what JSON lacks."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _each(
    samples: Sequence[Mapping[str, Any]] | None, metric: str, filtered: str
) -> list[float] | None:
    values = [sample.get(metric) for sample in samples or () if sample["filter"] == filtered]
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    return numbers if numbers and len(numbers) == len(values) else None
