"""The command ``prune``: remove what is given or what a run found, without a search."""

from __future__ import annotations

import re
import shlex
from argparse import Namespace
from pathlib import Path
from typing import Any

from sos_deap.cli import Parser, quiet, run_with_exit_status
from sos_deap.errors import InputError, print_lines


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
    parser.add_argument(
        "--quantize",
        metavar="HOW",
        help="weights of the linear layers of the result: none (as stored) or int8; default: those "
        "with which the chromosome was found",
    )
    return run_with_exit_status(lambda: _prune(parser.parse_args(arguments), shlex.join(arguments)))


def _prune(flags: Namespace, given: str) -> None:
    from sos_deap.artifacts import prune_to, size
    from sos_deap.cards import weights_fact, write_card
    from sos_deap.files.atomic import replaceable_folder, whole_folder
    from sos_deap.models.find_genes import gene_map
    from sos_deap.models.loading import check_prunable, load
    from sos_deap.models.prune import check_layout
    from sos_deap.models.quantised import check_quantisation, quantisation
    from sos_deap.models.sources import read_config
    from sos_deap.models.tokenizer import save_companions
    from sos_deap.report.tables import cells, columns

    quiet()
    folder = replaceable_folder(flags.output_dir)
    saved = _saved(flags)
    removed = {} if flags.heads is None else _removed(flags.heads)
    found_with = saved.get("quantize", "none")
    written = found_with if flags.quantize is None else flags.quantize
    check_quantisation(written)
    check_prunable(flags.model, read_config(flags.model))
    model = load(flags.model, quantize=found_with if "fingerprint" in saved else written)
    mapping = gene_map(model, *_genes(flags, saved))
    check_layout(model, mapping, flags.layout)
    _check_fingerprint(flags, saved, model)
    if quantisation(model) != written:
        del model  # to hold one model in memory, not two
        model = load(flags.model, quantize=written)
    genes = saved["chromosome"] if saved else mapping.without(removed)
    with whole_folder(folder) as temporary:
        pruned = prune_to(temporary, model, genes, mapping, flags.layout, model.dtype)
        save_companions(flags.model, temporary)
        facts = {"command": f"python -m sos_deap prune {given}", **weights_fact(written)}
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
