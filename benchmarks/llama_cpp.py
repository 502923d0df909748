"""Measure llama.cpp's tokens per second, dense beside pruned; write results/llama_cpp.json.

    python -m benchmarks.llama_cpp ./gemma-3-270m [--channels 1248] [--quantize F16 Q8_0]

The model is pruned to equally many feed-forward channels in each layer (layout uniform), without
a search, since speed does not depend on which channels are kept. Both models are written as GGUF
files of each type, and llama.cpp times a prefill of 512 tokens and the decoding of 128, alternately
in one process. The bytes are those of the tensors.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.evaluator import cpu_name
from sos_deap import gene_map, load, prune
from sos_deap.cards import versions
from sos_deap.cli import Parser, run_with_exit_status
from sos_deap.errors import InputError
from sos_deap.export.gguf_quantize import write_quantized
from sos_deap.export.llama_cpp import measure_files
from sos_deap.files.atomic import write_json
from sos_deap.models.tokenizer import load_tokenizer

RESULTS = Path(__file__).parent / "results"
_BLOCK = 32  # numbers in the smallest block of llama.cpp's types


def fewer_channels(model: Any, channels: int) -> Any:
    """Return the model with so many feed-forward channels in each layer, a multiple of 32."""
    before = gene_map(model, "channels").feed_forward[0].units
    if channels % _BLOCK or not 0 < channels < before:
        raise InputError(f"--channels {channels}: give a multiple of {_BLOCK} below {before}")
    order = [list(range(before))] * len(gene_map(model, "channels").feed_forward)
    genes = gene_map(model, "channels", before // _BLOCK, order)
    kept = channels // _BLOCK
    chromosome = [int(gene < kept) for part in genes.parts for gene in range(part.size)]
    return prune(model, chromosome, genes, "uniform")


def measured(folder: Path, models: dict[str, Any], tokenizer: Any, flags: Any, kind: str) -> Any:
    """Return the figures of the files of one type."""
    files = {}
    for name, model in models.items():
        path = folder / f"{name}-{kind}.gguf"
        write_quantized(model, tokenizer, path, kind)
        files[name] = str(path)
    (row,) = measure_files(files, [512], 128, flags.rounds, flags.seconds)
    dense, pruned = (row["models"][name] for name in ("dense", "pruned"))
    row["pruned_by_dense"] = {
        "prefill_tokens_per_second": dense["prefill_seconds"] / pruned["prefill_seconds"],
        "decode_tokens_per_second": dense["decode_seconds"] / pruned["decode_seconds"],
        "bytes": pruned["weight_bytes"] / dense["weight_bytes"],
        "bytes_by_parameters": (pruned["weight_bytes"] / dense["weight_bytes"])
        / (models["pruned"].num_parameters() / models["dense"].num_parameters()),
    }
    for path in map(Path, files.values()):
        path.unlink()
    return row


def main() -> None:
    """Measure, print and write the figures."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub name")
    parser.add_argument("--channels", type=int, default=1248, help="per layer; default: 1248")
    parser.add_argument("--quantize", nargs="+", default=["F16", "Q8_0"], help="types of the files")
    parser.add_argument("--rounds", type=int, help="default: until the quartiles settle")
    parser.add_argument("--seconds", type=float, default=240, help="for each type; default: 240")
    flags = parser.parse_args()
    model: Any = load(flags.model)
    models = {"dense": model, "pruned": fewer_channels(model, flags.channels)}
    layers = [sum(p.numel() for p in one.model.layers.parameters()) for one in models.values()]
    found = {
        "machine": {"cpu": cpu_name(), **versions()},
        "model": model.config.model_type,
        "parameters": {name: one.num_parameters() for name, one in models.items()},
        "removed_share_of_layer_parameters": 1 - layers[1] / layers[0],
        "rows": {},
    }
    tokenizer = load_tokenizer(flags.model)
    with tempfile.TemporaryDirectory() as folder:
        for kind in flags.quantize:
            row = measured(Path(folder), models, tokenizer, flags, kind)
            found["rows"][kind] = row
            print(kind, row["pruned_by_dense"], flush=True)
            write_json(RESULTS / "llama_cpp.json", found)


if __name__ == "__main__":
    sys.exit(run_with_exit_status(main))
