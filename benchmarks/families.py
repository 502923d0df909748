"""Check each row of the table of architectures; write results/families.json and a table in docs/.

    python -m benchmarks.families [--rows llama bert ...] [--checks exact refit ...]

For each architecture a tiny random model is built, and sub-models of it are compared. Without
--checks, every check but onnx runs, which takes seconds to a minute for a row. Results of checks
and rows that are not run again are kept from the earlier file.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from sos_deap import InputError, gene_map, masked, prune, refit
from sos_deap.cards import versions
from sos_deap.cli import Parser, run_with_exit_status
from sos_deap.errors import first_line
from sos_deap.export.gguf import write_gguf
from sos_deap.export.gguf_architectures import ARCHITECTURES
from sos_deap.export.onnx import write_onnx
from sos_deap.files.atomic import write_json, write_text
from sos_deap.models.families import FAMILIES
from sos_deap.models.find_genes import head_map
from sos_deap.models.hidden_states import States
from sos_deap.models.sharing import shared, shares
from sos_deap.models.tokenizer import load_tokenizer
from sos_deap.models.uniform import uniform_counts
from tests.rows import (
    Batches,
    corners,
    difference,
    differences,
    gene_map_of,
    generates,
    generates_alike,
    kinds_of,
    kv_heads_of,
    mixed,
)
from tests.tiny import build, inputs, output, repeated

RESULTS = Path(__file__).parent / "results" / "families.json"
PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
#: The most that outputs may differ by, relative to the largest one.
TOLERANCE = 1e-5


def exact(name: str, model: Any) -> str:
    """Masked in a batch = alone = narrowed = sliced = reloaded, for all genes of the row."""
    row = FAMILIES[name]
    kinds = "channels" if row.unsliceable and row.feed_forward else kinds_of(name)
    genes = gene_map_of(model, kinds)
    several = [*corners(genes), mixed(genes, 1), [1] * len(genes)]
    with tempfile.TemporaryDirectory() as folder:
        found = dict[str, float]()
        for what, value in differences(model, genes, several, Path(folder)):
            found[what] = max(value, found.get(what, 0.0))
    if wrong := [what for what, value in found.items() if not value <= TOLERANCE]:
        return f"no: {', '.join(wrong)}"
    if not row.unsliceable:
        return kinds.replace("heads", "heads, groups" if kv_of(model) else "heads").replace(
            "+", ", "
        )
    return f"{kinds} (heads masked)" if row.feed_forward else "no (heads masked)"


def kv_of(model: Any) -> int | None:
    """The number of key/value heads if they are shared."""
    site = head_map(model).attention[0]
    return site.groups if site.groups < site.units and site.groups > 1 else None


def generation(name: str, model: Any) -> str:
    """Whether a sliced model generates with its cache what it does without, and as if masked."""
    if not generates(model):
        return "-"
    genes = gene_map_of(model, kinds_of(name))
    return "yes" if all(generates_alike(model, genes, one) for one in tries(genes)) else "no"


def tries(genes: Any) -> list[list[int]]:
    """Two chromosomes that remove something in several layers."""
    return [corners(genes)[0], mixed(genes, 1)]


def uniform(name: str, model: Any) -> str:
    """The kinds of genes that a stock model with fewer units represents exactly."""
    found, batch = [], inputs(model)
    for kind in kinds_of(name).replace("heads", "groups" if kv_of(model) else "heads").split("+"):
        genes = gene_map(model, kind, 4)
        try:
            keep = uniform_counts(model, genes)[kind][-2]
        except InputError:
            continue
        chromosome = [int(gene < keep) for part in genes.parts for gene in range(part.size)]
        with masked(model, [chromosome], genes):
            expected = output(model, batch)
        with tempfile.TemporaryDirectory() as folder:
            prune(model, chromosome, genes, "uniform").save_pretrained(folder)
            stock = type(model).from_pretrained(folder).eval()
            if difference(output(stock, batch), expected) <= TOLERANCE:
                found.append(kind)
    return ", ".join(found) or "no"


def sharing(name: str, model: Any) -> str:
    """Whether layers are computed once for equal prefixes of chromosomes."""
    genes, batch = gene_map_of(model, kinds_of(name)), inputs(model)
    if not shares(model, genes, lambda: output(model, repeated(batch, 2))):
        return "no"
    several = [*tries(genes), [1] * len(genes)]
    with masked(model, several, genes):
        expected = output(model, repeated(batch, len(several)))
    with shared(model, several, genes, States(0), None):
        found = output(model, repeated(batch, len(several)))
    return "yes" if difference(found, expected) <= TOLERANCE else "no: differs"


def refitting(name: str, model: Any) -> str:
    """Whether the refit of a sliced model brings its outputs closer to the dense model's."""
    genes = gene_map_of(model, kinds_of(name))
    pruned, text = prune(model, mixed(genes, 1), genes), Batches(model, 10)
    before = squared_error(model, pruned, text)
    fits = refit(model, pruned, text)
    better = squared_error(model, pruned, text) < before
    return "yes" if fits and better else "no: the error did not fall"


def squared_error(model: Any, pruned: Any, text: Batches) -> float:
    """The squared error of a pruned model's outputs on a text."""
    pairs = ((output(pruned, one), output(model, one)) for one in text.batches)
    return sum(float((found - expected).square().sum()) for found, expected in pairs)


def onnx(name: str, model: Any) -> str:
    """Whether a sliced model is written as ONNX, whose outputs in onnxruntime are compared."""
    genes = gene_map_of(model, kinds_of(name))
    with tempfile.TemporaryDirectory() as folder:
        write_onnx(prune(model, corners(genes)[0], genes), Path(folder) / "onnx")
    return "yes"


def gguf(name: str, model: Any) -> str:
    """Whether a pruned model is written as GGUF; tests of GGUF compare what llama.cpp computes."""
    tokenizer = load_tokenizer("builtin:tiny")
    if name in ARCHITECTURES:
        # What llama.cpp computes for all models of the architecture.
        own: dict[str, Any] = {"query_pre_attn_scalar": 8} if ARCHITECTURES[name].period else {}
        own |= {} if own or name == "llama" else {"sliding_window": None}
        model = build(name, kv_of(model), vocab_size=len(tokenizer), **own)
    genes = gene_map_of(model, kinds_of(name))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        try:
            write_gguf(prune(model, mixed(genes, 1), genes), tokenizer, path)
        except InputError:
            genes = gene_map(model, "channels", 4)  # llama.cpp has one size for all layers
            chromosome = [int(gene < 2) for part in genes.parts for gene in range(part.size)]
            write_gguf(prune(model, chromosome, genes, "uniform"), tokenizer, path)
            return "uniform"
    return "yes"


#: Checks by name, with the title of their column.
CHECKS: dict[str, tuple[str, Callable[[str, Any], str]]] = {
    "exact": ("sliced exactly", exact),
    "generate": ("generates", generation),
    "uniform": ("uniform", uniform),
    "share": ("shared layers", sharing),
    "refit": ("refit", refitting),
    "onnx": ("ONNX", onnx),
    "gguf": ("GGUF", gguf),
}


def checked(name: str, check: str, model: Any) -> str:
    """Run a check; an error is its result."""
    row = FAMILIES[name]
    if check != "exact" and row.unsliceable:
        return "-"
    try:
        return CHECKS[check][1](name, model)
    except InputError as error:
        return f"no: {first_line(error)}"
    except Exception as error:  # classes of transformers raise errors of many types
        return f"no: {type(error).__name__}"


def table(found: dict[str, dict[str, str]]) -> str:
    """Return the table of the documentation: a column per check, and the reason of what fails."""
    titles = ["`model_type`", *(title for title, _ in CHECKS.values())]
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    for name in sorted(found):
        cells = [found[name].get(check, "") for check in CHECKS]
        short = [re.sub(r"^no:.*", "no", cell) for cell in cells]
        lines.append(f"| {' | '.join([f'`{name}`', *short])} |")
    return "\n".join(lines)


def reasons() -> str:
    """Return a list of what each row states about what cannot be sliced."""
    lines = [
        f"- `{name}`: {row.unsliceable}."
        for name, row in sorted(FAMILIES.items())
        if row.unsliceable
    ] + [
        f"- `{name}` with {setting}: {value} is required for slicing."
        for name, row in sorted(FAMILIES.items())
        if row.requires
        for setting, value in [
            (
                " or ".join(f"another `{key}`" for key, _ in row.requires),
                " and ".join(f"`{key}={value}`" for key, value in row.requires),
            )
        ]
    ]
    return "\n".join(lines)


def write_page(found: dict[str, dict[str, str]]) -> None:
    """Write the table and the reasons into the documentation, between their markers."""
    text = PAGE.read_text(encoding="utf-8")
    for marker, content in (("table", table(found)), ("reasons", reasons())):
        begin, end = f"<!-- {marker} of architectures -->", "<!-- end -->"
        before, rest = text.split(begin)
        _, after = rest.split(end, 1)
        text = f"{before}{begin}\n{content}\n{end}{after}"
    write_text(PAGE, text)


def main() -> None:
    """Check rows, print and write the results."""
    parser = Parser(description=__doc__)
    parser.add_argument("--rows", nargs="+", default=sorted(FAMILIES), choices=sorted(FAMILIES))
    some = [check for check in CHECKS if check != "onnx"]
    parser.add_argument("--checks", nargs="+", default=some, choices=list(CHECKS))
    flags = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    old = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    found = {name: old.get("rows", {}).get(name, {}) for name in FAMILIES}
    for name in flags.rows:
        torch.manual_seed(0)
        model = build(name, kv_heads_of(name))
        for check in flags.checks:
            found[name][check] = checked(name, check, model)
        print(name, found[name], flush=True)
        write_json(RESULTS, {"versions": versions(), "tolerance": TOLERANCE, "rows": found})
    done = [one.get("exact", "") for one in found.values()]
    whole = sum(bool(one) and "masked" not in one and not one.startswith("no") for one in done)
    print(f"{whole} of {len(FAMILIES)} rows are sliced exactly")
    write_page(found)


if __name__ == "__main__":
    sys.exit(run_with_exit_status(main))
