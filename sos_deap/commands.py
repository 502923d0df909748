"""The commands that need no search: report, prune with a known chromosome, measure, export."""

from __future__ import annotations

import os
import re
import shlex
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


def prune(arguments: list[str]) -> int:
    """``python -m sos_deap prune``; returns the exit status."""
    parser = Parser(
        prog="python -m sos_deap prune",
        description="Remove given heads and channels from a model, without a search.",
        allow_abbrev=False,
    )
    parser.add_argument("model", help="Hub name or folder of a model, or builtin:tiny")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--chromosome",
        type=Path,
        metavar="FILE",
        help="chromosome.json of a run, a JSON list of one 0 (remove) or 1 (keep) per gene, or "
        "pareto.csv of a run with --row or --sparsity",
    )
    which.add_argument(
        "--heads", metavar="LIST", help='heads to remove by layer, both counted from 0: "3:1,4;7:0"'
    )
    parser.add_argument(
        "--row", type=int, metavar="K", help="row of pareto.csv, from 0; the last is the sparsest"
    )
    parser.add_argument(
        "--sparsity",
        type=float,
        metavar="S",
        help="the row of pareto.csv that removes most, among those up to this sparsity",
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the result")
    parser.add_argument(
        "--genes",
        help="what the genes of a plain JSON list stand for: heads (default), groups, attention, "
        "ffn or layers, joined by +",
    )
    parser.add_argument("--layout", default="sliced", help="sliced (default), uniform or zeroed")
    return run_with_exit_status(lambda: _prune(parser.parse_args(arguments), shlex.join(arguments)))


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


def _prune(flags: Namespace, given: str) -> None:
    from sos_deap.artifacts import prune_to, size
    from sos_deap.cards import write_card
    from sos_deap.files.atomic import free_folder, whole_folder
    from sos_deap.models.find_genes import gene_map
    from sos_deap.models.loading import check_prunable, load
    from sos_deap.models.prune import check_layout
    from sos_deap.models.sources import read_config
    from sos_deap.models.tokenizer import save_companions
    from sos_deap.report.tables import cells, columns

    quiet()
    folder = free_folder(flags.output_dir)
    saved = _saved(flags)
    removed = {} if flags.heads is None else _removed(flags.heads)
    check_prunable(flags.model, read_config(flags.model))
    model = load(flags.model)
    mapping = gene_map(model, *_genes(flags, saved))
    check_layout(model, mapping, flags.layout)
    _check_fingerprint(flags, saved, model)
    genes = saved["chromosome"] if saved else mapping.without(removed)
    with whole_folder(folder) as temporary:
        pruned = prune_to(temporary, model, genes, mapping, flags.layout, model.dtype)
        save_companions(flags.model, temporary)
        facts = {"command": f"python -m sos_deap prune {given}"}
        write_card(temporary, flags.model, model, genes, mapping, flags.layout, facts)
    before, after = size(model, model.dtype, mapping), size(pruned, model.dtype, mapping, genes)
    print_lines(columns(cells({"dense": before, "best": after})))
    print_lines(f"pruned model: {folder}  (its README.md shows how to load it)")


def _saved(flags: Namespace) -> dict[str, Any]:
    """Return the content of the chromosome file; empty without one."""
    from sos_deap.files.chromosome_file import read_chromosome, read_front

    path: Path | None = flags.chromosome
    if path is not None and path.suffix == ".csv":
        if flags.genes is not None:
            raise InputError("--genes is for a plain JSON list: leave it out with a pareto.csv")
        return read_front(path, flags.row, flags.sparsity)
    for name in ("row", "sparsity"):
        if getattr(flags, name) is not None:
            raise InputError(f"--{name} is for a pareto.csv: give one as --chromosome")
    return {} if path is None else read_chromosome(path)


def _genes(flags: Namespace, saved: dict[str, Any]) -> tuple[str, int, Any]:
    """Return the arguments of the gene map: kinds of genes, channel blocks and their order."""
    from sos_deap.models.find_genes import checked_kinds
    from sos_deap.models.genes import CHANNEL_BLOCKS

    genes = saved.get("genes", "heads") if flags.genes is None else flags.genes
    order = saved.get("channel_order")
    if "channels" in checked_kinds(genes) and order is None:
        raise InputError(
            "genes of kind channels need the order of the channels that they were found with: give "
            "the chromosome.json of a run"
        )
    return genes, saved.get("channel_blocks", CHANNEL_BLOCKS), order


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


def _removed(text: str) -> dict[int, list[int]]:
    """Parse ``"3:1,4;7:0"`` to ``{3: [1, 4], 7: [0]}``."""
    removed: dict[int, list[int]] = {}
    for part in filter(None, re.sub(r"\s", "", text).split(";")):
        if not re.fullmatch(r"\d{1,9}:\d{1,9}(,\d{1,9})*", part):
            given = part if len(part) <= 40 else f"{part[:40]}..."
            raise InputError(f'--heads has {given!r}: write layer:head,head;layer:head, as "3:1,4"')
        layer, _, numbers = part.partition(":")
        removed.setdefault(int(layer), []).extend(map(int, numbers.split(",")))
    if not removed:
        raise InputError('--heads names no head: write layer:head,head;layer:head, as "3:1,4"')
    return removed


def _check_fingerprint(flags: Namespace, saved: dict[str, Any], model: Any) -> None:
    from sos_deap.models.identity import fingerprint

    expected = saved.get("fingerprint")
    if expected is not None and re.fullmatch("[0-9a-f]{16}", expected):
        print_lines(f"{flags.chromosome} is of an earlier version: its fingerprint is not compared")
    elif expected is not None and expected != (found := fingerprint(model)):
        raise InputError(
            f"{flags.chromosome} is for another model, {saved.get('model')} ({expected}), and "
            f"{flags.model} is {found}: give the model it was found for"
        )


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
    from sos_deap.models.tokenizer import load_tokenizer

    if flags.format not in ("onnx", "gguf"):
        raise unknown("format", flags.format, ("onnx", "gguf"))
    if flags.dtype is not None and flags.format != "onnx":
        raise InputError("--dtype is for onnx, a GGUF file has the model's: leave it out")
    check_free(flags.output)
    quiet()
    model = load(flags.model)
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
