"""The commands that need no search and no chromosome: report, measure."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sos_deap.cli import Parser, check_free, quiet, run_with_exit_status
from sos_deap.errors import InputError, print_lines, unknown


def report(arguments: list[str]) -> int:
    """``python -m sos_deap report``; returns the exit status."""
    parser = Parser(
        prog="python -m sos_deap report",
        description="Compare complete runs, one per line, and write the page of each again.",
        allow_abbrev=False,
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="run folders")
    return run_with_exit_status(lambda: _report(parser.parse_args(arguments).folders))


def measure(arguments: list[str]) -> int:
    """``python -m sos_deap measure``; returns the exit status."""
    parser = Parser(
        prog="python -m sos_deap measure",
        description="Measure latency, throughput, memory and bytes of one model, or of two.",
        allow_abbrev=False,
    )
    parser.add_argument("model", help="folder, Hub name or builtin:tiny; pruned or not")
    parser.add_argument("--against", metavar="MODEL", help="the model it was pruned from")
    parser.add_argument(
        "--batch_sizes", type=int, nargs="+", default=[1], help="sequences in a batch; default: 1"
    )
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[96], help="prompt lengths in tokens; default: 96"
    )
    parser.add_argument("--new_tokens", type=int, default=32, help="tokens to decode; default: 32")
    parser.add_argument(
        "--rounds", type=int, help="timings of each; default: until their quartiles settle"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=30,
        help="time limit for each batch size and length, after 3 rounds; default: 30",
    )
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda")
    parser.add_argument(
        "--dtype",
        default="auto",
        help="auto (float32 on a CPU, else as stored), float32, bfloat16, float16",
    )
    parser.add_argument(
        "--runtime", default="torch", help="torch (default), or llama.cpp for two GGUF files"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures as JSON")
    return run_with_exit_status(lambda: _measure(parser.parse_args(arguments)))


def _report(folders: list[Path]) -> None:
    from sos_deap.report.comparison import comparison
    from sos_deap.report.page import write_page

    for folder in folders:
        if not os.path.isdir(folder):
            raise InputError(f"{str(folder)[:200]} is not a folder: give the folders of runs")
    pages = [write_page(folder) for folder in folders]
    print_lines(f"{comparison(folders)}\n")
    for page in pages:
        print_lines(f"report: {page}")


def _measure(flags: Namespace) -> None:
    from sos_deap.files.atomic import write_json
    from sos_deap.report.timings import measured_table

    quiet()
    if flags.output is not None:
        check_free(flags.output)
    both = {"dense": flags.against, "pruned": flags.model}
    names = {"model": flags.model} if flags.against is None else both
    rows = _runtime(flags.runtime)(names, flags)
    print_lines(measured_table(rows))
    if flags.output is not None:
        write_json(flags.output, rows)


def _runtime(name: str) -> Callable[[dict[str, str], Namespace], list[dict[str, Any]]]:
    runtimes = {"torch": _in_torch, "llama.cpp": _in_llama_cpp}
    if name not in runtimes:
        raise unknown("runtime", name, runtimes)
    return runtimes[name]


def _in_torch(names: dict[str, str], flags: Namespace) -> list[dict[str, Any]]:
    from sos_deap.models.devices import checked_device, checked_dtype
    from sos_deap.models.loading import load
    from sos_deap.models.measure import measure

    place, dtype = checked_device(flags.device), checked_dtype(flags.dtype)
    if dtype is None and place.type == "cpu":
        dtype = checked_dtype("float32")
    models: dict[str, Any] = {
        column: load(name, dtype=dtype or "auto").to(place)  # type: ignore[arg-type]
        for column, name in names.items()
    }
    return measure(
        models,
        batch_sizes=flags.batch_sizes,
        lengths=flags.lengths,
        new_tokens=flags.new_tokens,
        rounds=flags.rounds,
        seconds=flags.seconds,
    )


def _in_llama_cpp(names: dict[str, str], flags: Namespace) -> list[dict[str, Any]]:
    from sos_deap.export.llama_cpp import measure_files

    if flags.batch_sizes != [1]:
        raise InputError("--runtime llama.cpp measures one sequence: leave --batch_sizes out")
    for name in ("device", "dtype"):
        if getattr(flags, name) != "auto":
            raise InputError(f"--{name} is for the runtime torch: leave it out")
    return measure_files(names, flags.lengths, flags.new_tokens, flags.rounds, flags.seconds)
