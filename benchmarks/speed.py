"""Compare the time saved by pruning with its bound; write results/speed_SHAPE_DEVICE_DTYPE.json.

    python benchmarks/speed.py gpt2    # 12 layers x 768, float32
    python benchmarks/speed.py llama_grouped --genes groups    # ..._groups.json
    python benchmarks/speed.py llama-2-7b --device cuda --dtype bfloat16

It times prefill and decoding of a dense and a pruned model alternately. The bound is the saving
predicted from operations (prefill) or bytes read (decoding). The weights are random, since times do
not depend on them, and 31 % of the heads, or of the key/value groups, are
removed at random.
"""

from __future__ import annotations

import platform
import random
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from sos_deap import gene_map, prune
from sos_deap.cards import versions
from sos_deap.cli import Parser, run_with_exit_status
from sos_deap.files.atomic import write_json
from sos_deap.models.measure import measure
from sos_deap.report.timings import measured_table

SHAPES: dict[str, Any] = {
    "gpt2": GPT2Config,  # 12 layers, width 768, 12 heads, 124 million parameters
    "llama-2-7b": LlamaConfig,  # defaults: 32 layers, width 4096, 32 heads
    "llama_grouped": partial(  # the size of gpt2, with 12 query heads on 4 key/value heads
        LlamaConfig,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
    ),
}
SPARSITY = 0.31
RESULTS = Path(__file__).parent / "results"


def _shares(rows: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    """Return time saved / bound at one batch size and length: median and range of the repeats."""
    shares: dict[str, Any] = {key: rows[0][key] for key in ("batch_size", "length")}
    for phase in ("prefill", "decode"):
        gains = [row["gains"]["pruned"] for row in rows]
        values = [gain[phase] / gain[f"{phase}_bound"] for gain in gains]
        shares[phase] = {
            "median": statistics.median(values),
            "min": min(values),
            "max": max(values),
        }
    return shares


def main() -> None:
    """Measure, print tables and write the JSON file."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES, help="shape of the model")
    parser.add_argument("--genes", default="heads", help="what is removed: heads, groups (heads)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument("--dtype", default="float32", help="dtype of torch (float32)")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1], help="sequences (1)")
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[128, 512], help="tokens of the prompt (128 512)"
    )
    parser.add_argument("--new_tokens", type=int, default=16, help="tokens to decode (16)")
    parser.add_argument("--rounds", type=int, default=20, help="rounds per measurement (20)")
    parser.add_argument("--repeats", type=int, default=3, help="repeats of all measurements (3)")
    flags = parser.parse_args()
    dtype = getattr(torch, flags.dtype)
    with torch.device(flags.device):
        dense = AutoModelForCausalLM.from_config(SHAPES[flags.shape](), dtype=dtype).eval()
    mapping = gene_map(dense, flags.genes)
    genes = [1] * len(mapping)
    for gene in random.Random(0).sample(range(len(genes)), int(SPARSITY * len(genes))):
        genes[gene] = 0
    models = {"dense": dense, "pruned": prune(dense, genes, mapping)}
    repeats = []
    for _ in range(flags.repeats):
        rows = measure(
            models,
            batch_sizes=flags.batch_sizes,
            lengths=flags.lengths,
            new_tokens=flags.new_tokens,
            rounds=flags.rounds,
            seconds=600,
        )
        print(measured_table(rows), flush=True)
        repeats.append(rows)
    gpu = torch.cuda.get_device_name(flags.device) if flags.device.startswith("cuda") else None
    result = {
        "shape": flags.shape,
        "dtype": flags.dtype,
        "device": gpu or f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        flags.genes: [sum(genes), len(genes)],
        "share_of_bound": [_shares(rows) for rows in zip(*repeats, strict=True)],
        "repeats": repeats,
        "versions": versions(),
    }
    kind = "" if flags.genes == "heads" else f"_{flags.genes}"
    name = f"speed_{flags.shape}_{flags.device.split(':')[0]}_{flags.dtype}{kind}.json"
    write_json(RESULTS / name, result)


if __name__ == "__main__":
    sys.exit(run_with_exit_status(main))
