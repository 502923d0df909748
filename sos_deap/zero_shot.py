"""The command ``eval``: accuracies of one model, or of two, on tasks of lm-eval."""

from __future__ import annotations

import math
import statistics
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sos_deap.cli import Parser, check_free, quiet, run_with_exit_status
from sos_deap.errors import InputError, print_lines


def evaluate(arguments: list[str]) -> int:
    """``python -m sos_deap eval``; returns the exit status."""
    parser = Parser(
        prog="python -m sos_deap eval",
        description="Evaluate one model, or two, pruned or not, on tasks of lm-eval.",
        allow_abbrev=False,
    )
    parser.add_argument("model", help="folder, Hub name or builtin:tiny; pruned or not")
    parser.add_argument("--against", metavar="MODEL", help="the model it was pruned from")
    parser.add_argument(
        "--tasks",
        metavar="NAMES",
        help="names of tasks with commas between them, as arc_easy,piqa: of lm-eval, or of the "
        "files in --data (default: all of these)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="read the questions from NAME.jsonl in this folder, without network",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N examples of each")
    parser.add_argument(
        "--batch_size", type=int, default=1, help="sequences in a forward pass; default: 1"
    )
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda")
    parser.add_argument(
        "--dtype",
        default="auto",
        help="auto (float32 on a CPU, else as stored), float32, bfloat16, float16",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the results as JSON")
    return run_with_exit_status(lambda: _evaluate(parser.parse_args(arguments)))


def _evaluate(flags: Namespace) -> None:
    from sos_deap.cards import versions
    from sos_deap.files.atomic import write_json
    from sos_deap.harness import checked_harness, evaluated, local_tasks, own_tasks
    from sos_deap.models.devices import checked_device, checked_dtype
    from sos_deap.models.loading import load
    from sos_deap.models.tokenizer import load_tokenizer

    quiet()
    _check(flags)
    names = _names(flags)
    place, dtype = checked_device(flags.device), checked_dtype(flags.dtype)
    if dtype is None and place.type == "cpu":
        dtype = checked_dtype("float32")
    given = {"model": flags.model}
    if flags.against is not None:
        given = {"dense": flags.against, "pruned": flags.model}
    for name in given.values():
        _check_writes_text(name)
    checked_harness()
    tasks = own_tasks(names) if flags.data is None else local_tasks(flags.data, names or None)
    # Both before the first is evaluated, which may take hours.
    tokenizers = {column: load_tokenizer(name) for column, name in given.items()}
    models: dict[str, Any] = {
        column: load(name, dtype=dtype or "auto").to(place)  # type: ignore[arg-type]
        for column, name in given.items()
    }
    found = {}
    for column, model in models.items():
        print_lines(f"{column}: {given[column]}")
        found[column] = evaluated(model, tokenizers[column], tasks, flags.limit, flags.batch_size)
    rows = side_by_side(found)
    if flags.output is not None:
        about = {
            "models": given,
            "limit": flags.limit,
            "dtype": str(model.dtype),
            "versions": versions() | {"lm_eval": version("lm_eval")},
        }
        write_json(flags.output, {**about, "tasks": rows})
    print_lines(_table(rows, list(models)))


def _names(flags: Namespace) -> list[str]:
    """Return the names of the tasks, each once.

    :raises InputError: if there are none, and no folder of which all files are meant.
    """
    names = [name.strip() for name in (flags.tasks or "").split(",") if name.strip()]
    if not names and (flags.tasks is not None or flags.data is None):
        raise InputError("--tasks names no task: give names with commas, as arc_easy,piqa")
    return list(dict.fromkeys(names))


def _check(flags: Namespace) -> None:
    for name in ("limit", "batch_size"):
        value = getattr(flags, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} is {value}: give at least 1")
    if flags.data is not None and not flags.data.is_dir():
        raise InputError(f"data {flags.data} is not a folder: give one with .jsonl files")
    if flags.output is not None:
        check_free(flags.output)


def _check_writes_text(name: str) -> None:
    from sos_deap.models.purposes import kind_of

    kind = kind_of(name)
    if kind not in ("causal", "encoder-decoder"):
        raise InputError(f"{name} is a {kind}, and lm-eval's tasks need a model that writes text")


def side_by_side(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the results of one model or two by task and metric.

    :param found: for each model what :func:`sos_deap.harness.evaluated` returns.
    :returns: by task ``chance``, ``examples`` and ``metrics``: for each metric by model ``value``
        and ``stderr``, and for two models ``change``. The standard error of a change is that of
        the mean of the differences on the same examples.
    """
    first, *others = found.values()
    rows = {}
    for task, about in first.items():
        metrics = {}
        for name, values in about["metrics"].items():
            columns = [values, *(other[task]["metrics"][name] for other in others)]
            metrics[name] = {
                model: {key: column[key] for key in ("value", "stderr")}
                for model, column in zip(found, columns, strict=True)
            }
            if others:
                metrics[name]["change"] = _change(*columns)
        rows[task] = {**about, "metrics": metrics}
    return rows


def _change(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, float | None]:
    stderr = None
    if before["value"] is None or after["value"] is None:
        return {"value": None, "stderr": None}
    if before["each"] and after["each"] and len(before["each"]) > 1:
        each = [b - a for a, b in zip(before["each"], after["each"], strict=True)]
        # Not of metrics that are other functions of the examples' values, such as perplexity.
        if math.isclose(statistics.fmean(each), after["value"] - before["value"], abs_tol=1e-9):
            stderr = statistics.stdev(each) / math.sqrt(len(each))
    return {"value": after["value"] - before["value"], "stderr": stderr}


def _table(rows: Mapping[str, Any], models: Sequence[str]) -> str:
    several = len(models) > 1
    names = [*models, "change"] if several else models
    lines = [["task", "metric", "examples", "chance", *names]]
    for task, about in rows.items():
        for metric, values in about["metrics"].items():
            share = metric.startswith(("acc", "exact_match", "f1"))
            known = about["chance"] is not None and share
            chance = f"{100 * about['chance']:.1f} %" if known else ""
            cells = [_cell(values[name], share, name == "change") for name in names]
            lines.append([task, metric, str(about["examples"] or ""), chance, *cells])
    return _aligned(lines)


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    """Return lines of text with columns, of which the first two are aligned on the left."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            f"{cell:<{width}}" if number < 2 else f"{cell:>{width}}"
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _cell(value: Mapping[str, Any], share: bool, signed: bool) -> str:
    """Return a value with its standard error; shares in percent, changes of them in points."""
    from sos_deap.report.formats import measurement, plus_minus

    factor, unit = (100, " points" if signed else " %") if share else (1, "")
    number, error = value["value"], value["stderr"]
    if number is None:
        return "not finite"
    number *= factor
    shown = "{:.1f}".format if share else measurement
    spread = "" if error is None else f" {plus_minus(sys.stdout)} {shown(factor * error)}"
    return f"{'+' if signed and number >= 0 else ''}{shown(number)}{spread}{unit}"
