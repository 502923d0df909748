"""The commands that need no search and no chromosome: report, measure, export."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from sos_deap.cli import Parser, quiet, run_with_exit_status
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
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the figures as JSON")
    return run_with_exit_status(lambda: _measure(parser.parse_args(arguments)))


def export(arguments: list[str]) -> int:
    """``python -m sos_deap export``; returns the exit status."""
    parser = Parser(
        prog="python -m sos_deap export",
        description="Write a model, pruned or not, in a format that other runtimes read.",
        allow_abbrev=False,
    )
    parser.add_argument("model", help="folder, Hub name or builtin:tiny")
    parser.add_argument("--format", required=True, help="onnx (a folder) or gguf (a file)")
    parser.add_argument(
        "--dtype",
        help="dtype of the weights in ONNX: float32 (default) or float16 (half the bytes)",
    )
    parser.add_argument("--output", type=Path, required=True, help="file or folder to write")
    return run_with_exit_status(lambda: _export(parser.parse_args(arguments)))


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


def check_free(path: Path) -> None:
    """Raise :class:`InputError` for an output that exists or whose folder does not exist."""
    try:
        exists = path.exists() or path.is_symlink()
    except (OSError, ValueError) as error:  # a name that is too long or invalid
        why = getattr(error, "strerror", None) or error
        raise InputError(f"cannot write --output {str(path)[:40]}...: {why}") from error
    if exists:
        raise InputError(f"output {path} exists: give another --output")
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}")


def _measure(flags: Namespace) -> None:
    from sos_deap.files.atomic import write_json
    from sos_deap.models.devices import checked_device, checked_dtype
    from sos_deap.models.loading import load
    from sos_deap.models.measure import measure
    from sos_deap.report.timings import measured_table

    quiet()
    if flags.output is not None:
        check_free(flags.output)
    place, dtype = checked_device(flags.device), checked_dtype(flags.dtype)
    if dtype is None and place.type == "cpu":
        dtype = checked_dtype("float32")
    both = {"dense": flags.against, "pruned": flags.model}
    names = {"model": flags.model} if flags.against is None else both
    models: dict[str, Any] = {
        column: load(name, dtype=dtype or "auto").to(place)  # type: ignore[arg-type]
        for column, name in names.items()
    }
    rows = measure(
        models,
        batch_sizes=flags.batch_sizes,
        lengths=flags.lengths,
        new_tokens=flags.new_tokens,
        rounds=flags.rounds,
        seconds=flags.seconds,
    )
    print_lines(measured_table(rows))
    if flags.output is not None:
        write_json(flags.output, rows)


def _export(flags: Namespace) -> None:
    from sos_deap.models.loading import load
    from sos_deap.models.quantised import check_floating
    from sos_deap.models.tokenizer import load_tokenizer

    if flags.format not in ("onnx", "gguf"):
        raise unknown("format", flags.format, ("onnx", "gguf"))
    if flags.dtype is not None and flags.format != "onnx":
        raise InputError("--dtype is for onnx, a GGUF file has the model's: leave it out")
    check_free(flags.output)
    quiet()
    model = load(flags.model)
    check_floating(flags.model, model)
    stored = written = str(model.dtype).removeprefix("torch.")
    if flags.format == "onnx":
        from sos_deap.export.onnx import write_onnx

        written = "float32" if flags.dtype is None else flags.dtype
        difference = write_onnx(model, flags.output, flags.model, written)
        files = [path for path in flags.output.rglob("*") if path.is_file()]
        if not any(flags.output.glob("*tokenizer*")) and not any(flags.output.glob("*processor*")):
            print_lines(
                f"({flags.model} has no tokenizer to copy: use the one that it was trained with)"
            )
        checked = f", outputs differ from torch's by {difference:.1e} of the largest"
    else:
        from sos_deap.export.gguf import write_gguf

        zeros = write_gguf(model, load_tokenizer(flags.model), flags.output)
        files = [flags.output]
        layers = ", ".join(map(str, zeros))
        checked = f", empty feed-forwards as 32 channels of zeros (layer {layers})" if zeros else ""
    size = sum(path.stat().st_size for path in files)
    print_lines(f"{flags.output}: {size:,} bytes, weights in {written}{checked}")
    if written != stored:
        weights = sum(parameter.nbytes for parameter in model.parameters())
        print_lines(f"({flags.model} has {weights:,} bytes of weights in {stored})")
