"""Quality left after shares of the layers' parameters are removed, by what the genes stand for.

    python -m benchmarks.shares --output benchmarks/results/shares_tiny.json
    python -m benchmarks.shares --model DIR --dataset FILE --algorithm one-shot,prior=taylor \
        --task perplexity --samples 16 --seqlen 512 --heldout_samples 8 --output FILE

A search for each kind of genes and share removes that share of the parameters of the layers,
without embeddings and the language-modelling head. The sub-model is scored on held-out text.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from sos_deap.config import parse
from sos_deap.evaluation.evaluator import Evaluator
from sos_deap.evaluation.forward import ForwardRunner
from sos_deap.files.atomic import write_json
from sos_deap.models.costs import layer_parameters
from sos_deap.plan import evaluator_of, plan_of, search, toolbox_of


def heldout(evaluator: Evaluator, chromosome: list[int]) -> dict[str, float]:
    """Return the metrics of a sub-model on the held-out text."""
    task = evaluator.heldout
    assert task is not None
    runner = ForwardRunner(evaluator.model, evaluator.gene_map, task, reuse_memory=0.0)
    [(_, sums)] = runner.run([bytes(chromosome)])
    return task.metrics(sums[0])


def searched(flags: list[str], genes: str, share: float, seed: int) -> dict[str, Any]:
    """Search for a sub-model without a share of the layers' parameters, and score it."""
    flags = [*flags, f"--genes={genes}", "--sparsity_of=parameters", f"--seed={seed}"]
    plan = plan_of(*parse(flags))
    evaluator = evaluator_of(plan)
    parameters = evaluator.model.num_parameters()
    layers = layer_parameters(evaluator.model, evaluator.gene_map)
    evaluator.max_sparsity = share * layers / parameters
    started = time.perf_counter()
    evolution = search(plan, evaluator, toolbox=toolbox_of(plan, evaluator))
    best = list(evolution.halloffame[0])
    return {
        "genes": genes,
        "share": share,
        "seed": seed,
        "removed": evaluator.sparsity(best) * parameters / layers,
        "genes_removed": best.count(0),
        "tokens": evaluator.spent()["tokens"],
        "seconds": round(time.perf_counter() - started, 1),
        "dense": heldout(evaluator, [1] * len(best)),
        "heldout": heldout(evaluator, best),
    }


def main() -> None:
    """Run the searches, print a line for each, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--genes", nargs="+", default=["heads", "heads+channels"])
    parser.add_argument("--shares", nargs="+", type=float, default=[0.2, 0.3])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True)
    given, flags = parser.parse_known_args()
    rows = []
    for genes in given.genes:
        for share in given.shares:
            for seed in range(given.seeds):
                row = searched(flags, genes, share, seed)
                rows.append(row)
                change = row["heldout"]["perplexity"] / row["dense"]["perplexity"] - 1
                print(f"{genes} {share:.0%} seed {seed}: {change:+.1%} ({row['seconds']} s)")
                write_json(given.output, {"flags": flags, "rows": rows})
    for genes in given.genes:
        for share in given.shares:
            changes = [
                row["heldout"]["perplexity"] / row["dense"]["perplexity"] - 1
                for row in rows
                if (row["genes"], row["share"]) == (genes, share)
            ]
            print(json.dumps([genes, share, round(statistics.median(changes), 4)]))


if __name__ == "__main__":
    main()
