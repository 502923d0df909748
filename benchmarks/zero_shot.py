"""Zero-shot accuracies of models, pruned or not, on folders of questions; one JSON file for all.

    python -m benchmarks.zero_shot dense=gemma-3-270m pruned=runs/x/pruned --data FOLDER \
        --limit 300 --output runs/real/zero_shot.json

FOLDER has a file of questions for each task, such as arc_easy.jsonl (docs/zero_shot.md); the first
``--limit`` of each are read. For each model and task the file has the accuracy by log-likelihood
and by log-likelihood per character, their standard errors, the accuracy of random choices, and
which answers were right, in the order of the questions. It is written after each task; what it has
is skipped, so that a stopped evaluation continues, and more models can be added.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from sos_deap.cards import versions
from sos_deap.cli import Parser, quiet, run_with_exit_status
from sos_deap.errors import InputError
from sos_deap.files.atomic import write_json
from sos_deap.models.devices import checked_device, checked_dtype, device_name
from sos_deap.models.loading import Pretrained, load
from sos_deap.models.tokenizer import load_tokenizer
from sos_deap.report.formats import duration
from sos_deap.tasks.data.draw import Draw
from sos_deap.tasks.data.local import local_tables
from sos_deap.tasks.data.reading import Part
from sos_deap.tasks.multiple_choice import MultipleChoice, make_multiple_choice
from sos_deap.tasks.settings import TaskSettings

TASKS = ("arc_easy", "piqa", "winogrande", "boolq", "openbook_qa", "lambada_openai")


def evaluated(loaded: Pretrained, path: Path, limit: int, batch_tokens: int) -> dict[str, Any]:
    """Return the results of a model on the first questions of a file.

    :param loaded: the model and its tokenizer.
    :param path: the file.
    :param limit: most questions.
    :param batch_tokens: most tokens in a forward pass.
    """
    (table,) = local_tables(path, limit).values()
    part = Part(path.name, table.columns, table.label_names)
    task = make_multiple_choice(loaded, TaskSettings())(Draw("held-out", part, None, seed=0))
    assert isinstance(task, MultipleChoice)
    values: list[list[float]] = [[]] * len(task)
    started, start, read, shown = time.perf_counter(), 0, 0, 0.0
    while start < len(task):
        examples = slice(start, start + max(1, batch_tokens // task.examples[start].padded))
        with torch.inference_mode():
            found = task.each(loaded.model, examples)[0].tolist()
        for number, row in zip(task.order[examples], found, strict=True):
            values[number] = row
        read += sum(len(row) for one in task.examples[examples] for row in one.rows)
        start, seconds = start + len(found), time.perf_counter() - started
        if seconds - shown > 20 and start < len(task):
            shown, left = seconds, seconds * (task.tokens / read - 1)
            print(f"  {read:,} of {task.tokens:,} tokens, ETA {duration(left)}", flush=True)
    sums = [sum(column) for column in zip(*values, strict=True)]
    if not all(map(math.isfinite, sums)):
        raise InputError(f"the model computes values that are not finite on {path}: check --dtype")
    metrics = task.metrics(sums)
    right = {"accuracy_norm": [row[0] for row in values], "accuracy": [row[1] for row in values]}
    for name, each in right.items():
        metrics[f"{name}_stderr"] = _stderr(each)
    return {
        **task.describe(),
        **{name: value if math.isfinite(value) else None for name, value in metrics.items()},
        "seconds": time.perf_counter() - started,
        "right": {name: list(map(int, each)) for name, each in right.items()},
    }


def _stderr(values: list[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _kept(path: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Return what a file has already.

    :raises InputError: if it was made with other settings.
    """
    if not path.exists():
        return {**about, "models": {}}
    found: dict[str, Any] = json.loads(path.read_text())
    if other := [name for name in about if found.get(name) != about[name]]:
        raise InputError(f"{path} was made with another {other[0]}: give another --output")
    return found


def _models(given: list[str]) -> dict[str, str]:
    """Return the folders of the models by name; a folder without one is named as it is."""
    pairs = [one.partition("=") for one in given]
    found = {name if equals else Path(name).name: folder or name for name, equals, folder in pairs}
    if len(found) < len(given):
        raise InputError("two models have the same name: give NAME=FOLDER")
    return found


def main() -> None:
    """Evaluate, print the results and write the JSON file."""
    parser = Parser(description=__doc__)
    parser.add_argument("models", nargs="+", metavar="NAME=FOLDER", help="models, pruned or not")
    parser.add_argument("--data", type=Path, required=True, help="folder of .jsonl files")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), help="names of the files")
    parser.add_argument("--limit", type=int, default=300, help="questions of each task")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch_tokens", type=int, default=2048)
    parser.add_argument("--output", type=Path, required=True, help="the JSON file")
    flags = parser.parse_args()
    quiet()
    files = {name: flags.data / f"{name}.jsonl" for name in flags.tasks}
    for path in files.values():
        if not path.is_file():
            raise InputError(f"there is no {path}: give the files of the tasks")
    place, dtype = checked_device(flags.device), checked_dtype(flags.dtype)
    about = {"limit": flags.limit, "dtype": flags.dtype, "device": device_name(place)}
    found = _kept(flags.output, {**about, "versions": versions()})
    for name, folder in _models(flags.models).items():
        done = found["models"].setdefault(name, {})
        left = [task for task in files if task not in done]
        if not left:
            continue
        print(f"{name}: {', '.join(left)}", flush=True)
        model: Any = load(folder, dtype=dtype or "auto").to(place)  # type: ignore[arg-type]
        loaded = Pretrained(model, load_tokenizer(folder), model.dtype)
        for task in left:
            row = done[task] = evaluated(loaded, files[task], flags.limit, flags.batch_tokens)
            write_json(flags.output, found)
            print(
                f"{name} {task}: accuracy {row['accuracy']:.3f} ± {row['accuracy_stderr']:.3f}, "
                f"per character {row['accuracy_norm']:.3f} ± {row['accuracy_norm_stderr']:.3f}, "
                f"by chance {row['chance']:.3f}, {row['tokens']:,} tokens, "
                f"{duration(row['seconds'])}",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(run_with_exit_status(main))
