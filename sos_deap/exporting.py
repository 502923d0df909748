"""The command that writes a model in a format of other runtimes."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sos_deap.cli import Parser, check_free, quiet, run_with_exit_status
from sos_deap.errors import InputError, print_lines, unknown

_FORMATS = ("deci", "gguf", "onnx")


def export(arguments: list[str]) -> int:
    """``python -m sos_deap export``; returns the exit status."""
    parser = Parser(
        prog="python -m sos_deap export",
        description="Write a model, pruned or not, in a format that other runtimes read.",
        allow_abbrev=False,
    )
    parser.add_argument("model", help="folder, Hub name or builtin:tiny")
    parser.add_argument("--format", required=True, help="onnx or deci (a folder), or gguf (a file)")
    parser.add_argument(
        "--dtype",
        help="dtype of the weights in ONNX: float32 (default) or float16 (half the bytes)",
    )
    parser.add_argument(
        "--quantize",
        metavar="TYPE",
        help="quantise the weights: int8 for onnx; a type of llama.cpp for gguf, such as Q8_0",
    )
    parser.add_argument("--output", type=Path, required=True, help="file or folder to write")
    return run_with_exit_status(lambda: _export(parser.parse_args(arguments)))


def _export(flags: Namespace) -> None:
    from sos_deap.models.loading import load
    from sos_deap.models.quantised import check_floating

    if flags.format not in _FORMATS:
        raise unknown("format", flags.format, _FORMATS)
    if flags.dtype is not None and flags.format != "onnx":
        raise InputError("--dtype is for onnx, other files have the model's: leave it out")
    check_free(flags.output)
    if flags.quantize is not None:
        _check_quantization(flags.format, flags.quantize)
    quiet()
    model = load(flags.model)
    check_floating(flags.model, model)
    stored = str(model.dtype).removeprefix("torch.")
    if flags.format == "onnx":
        written, checked = _write_onnx(model, flags)
    elif flags.format == "gguf":
        written, checked = _write_gguf(model, flags)
    else:
        from sos_deap.export.deci import write_deci

        padding = write_deci(model, flags.output, flags.model)
        written, checked = stored, f", {padding:,} of them zeros for padding" if padding else ""
    files = [flags.output] if flags.output.is_file() else flags.output.rglob("*")
    size = sum(path.stat().st_size for path in files if path.is_file())
    print_lines(f"{flags.output}: {size:,} bytes, weights in {written}{checked}")
    if written != stored:
        weights = sum(parameter.nbytes for parameter in model.parameters())
        print_lines(f"({flags.model} has {weights:,} bytes of weights in {stored})")


def _check_quantization(kind: str, quantization: str) -> None:
    """Check the type of a quantised file before the model is loaded."""
    if kind == "gguf":
        from sos_deap.export.gguf_quantize import QUANTIZATIONS, llama_library

        if quantization not in QUANTIZATIONS:
            raise unknown("type of GGUF", quantization, QUANTIZATIONS)
        llama_library()
    elif kind == "deci":
        raise InputError("--quantize is for gguf and onnx: leave it out")
    elif quantization != "int8":
        raise unknown("quantisation of ONNX", quantization, ("int8",))


def _write_onnx(model: Any, flags: Namespace) -> tuple[str, str]:
    """Write the model; returns the dtype of its weights, and what to print after it."""
    from sos_deap.export.onnx import write_onnx

    if flags.quantize is not None and flags.dtype is not None:
        raise InputError("--dtype and --quantize exclude each other: leave one out")
    written = flags.quantize or ("float32" if flags.dtype is None else flags.dtype)
    difference = write_onnx(model, flags.output, flags.model, written)
    if not any(flags.output.glob("*tokenizer*")) and not any(flags.output.glob("*processor*")):
        print_lines(
            f"({flags.model} has no tokenizer to copy: use the one that it was trained with)"
        )
    return written, f", outputs differ from torch's by {difference:.1e} of the largest"


def _write_gguf(model: Any, flags: Namespace) -> tuple[str, str]:
    """Write the model; returns the type of its weights, and what to print after it."""
    from sos_deap.export.gguf import write_gguf
    from sos_deap.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(flags.model)
    if flags.quantize is None:
        written = str(model.dtype).removeprefix("torch.")
        return written, _of_zeros(write_gguf(model, tokenizer, flags.output))
    from sos_deap.export.gguf_quantize import write_quantized

    zeros, types = write_quantized(model, tokenizer, flags.output, flags.quantize)
    counts = ", ".join(f"{count} {name}" for name, count in types.items())
    return flags.quantize, f" (matrices: {counts}){_of_zeros(zeros)}"


def _of_zeros(layers: Iterable[int]) -> str:
    numbers = ", ".join(map(str, layers))
    return f", empty feed-forwards as 32 channels of zeros (layer {numbers})" if numbers else ""
