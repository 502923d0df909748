"""Compare promised with measured speed-ups on the shape of GPT-2; write results/speedup.json.

    python -m benchmarks.speedup [--seeds 5] [--seconds 15]

The model is the 12 x 768 GPT-2 with random weights, since only times matter. For each kind of genes
one time table is measured. For each seed, random genes are removed as long as the speed-up that the
table promises is at most 1.28. The sub-model is pruned, and its prefill is timed against the dense
model's in alternating rounds.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.evaluator import cpu_name
from benchmarks.main_job import spread
from sos_deap import prune
from sos_deap.cards import versions
from sos_deap.cli import Parser, run_with_exit_status
from sos_deap.files.atomic import write_json
from sos_deap.models.costs import Sparsity, sparsity_measure
from sos_deap.models.find_genes import gene_map
from sos_deap.models.site_times import measured_speedup
from sos_deap.models.time_options import time_conditions, time_table_of

RESULTS = Path(__file__).parent / "results"
SPEEDUP = 1.28
GENES = ("heads+channels", "attention+ffn")


def filled(genes: int, sparsity: Sparsity, bound: float, seed: int) -> list[int]:
    """Remove genes in random order, each if the sparsity stays within a bound."""
    chromosome = [1] * genes
    for gene in random.Random(seed).sample(range(genes), genes):
        chromosome[gene] = 0
        if sparsity(chromosome) > bound:
            chromosome[gene] = 1
    return chromosome


def measured(model: Any, kinds: str, seeds: int, seconds: float) -> dict[str, Any]:
    """Measure a time table, and the speed-ups of random sub-models at its bound."""
    genes, conditions = gene_map(model, kinds), time_conditions(model, "prefill", None)
    started = time.perf_counter()
    table = time_table_of(model, genes)
    found: dict[str, Any] = {"genes": kinds, "table_seconds": time.perf_counter() - started}
    sparsity = sparsity_measure(model, genes, "time", times=table)
    rows = []
    for seed in range(seeds):
        chromosome = filled(len(genes), sparsity, 1 - 1 / SPEEDUP, seed)
        promised = 1 / (1 - sparsity(chromosome))
        pruned = prune(model, chromosome, genes)
        gained = measured_speedup(model, pruned, conditions, seconds)
        rows.append({"seed": seed, "promised": promised, "measured": gained})
        print(f"{kinds}, seed {seed}: promised {promised:.3f}, measured {gained:.3f}", flush=True)
    found |= {name: spread([row[name] for row in rows]) for name in ("promised", "measured")}
    return {**found, "sub_models": rows, "table": table.content()}


def main() -> None:
    """Measure, write the JSON file and print a summary."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="sub-models for each kind (5)")
    parser.add_argument(
        "--seconds", type=float, default=15, help="time of the measurement of a sub-model (15)"
    )
    flags = parser.parse_args()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2")).eval()
    rows = [measured(model, kinds, flags.seeds, flags.seconds) for kinds in GENES]
    found = {"model": "gpt2, 12 layers of width 768, random weights", "speedup": SPEEDUP}
    about = {"threads": torch.get_num_threads(), "cpu": cpu_name(), "versions": versions()}
    write_json(RESULTS / "speedup.json", {**found, "kinds": rows, **about})
    for row in rows:
        print(row["genes"], row["promised"], row["measured"])


if __name__ == "__main__":
    sys.exit(run_with_exit_status(main))
