"""Quality left after shares of the layers' parameters are removed, by what the genes stand for.

    python -m benchmarks.shares --output benchmarks/results/shares_tiny.json
    python -m benchmarks.shares best --genes heads+channels --refit after --probe_dataset DIR \
        --output benchmarks/results/shares_tiny_refit.json
    python -m benchmarks.shares --model DIR --dataset FILE --rank taylor --shares 0.1 0.2 0.3 \
        --task perplexity --samples 16 --seqlen 512 --heldout_samples 8 --output FILE
    python -m benchmarks.shares best --genes heads+channels --shares 0.27 --dtype float32 \
        --model runs/models/sst2 --dataset DATA/sst2 --calibration_split train \
        --heldout_split test --samples 1024 --refit_samples 2048 --output FILE
    python -m benchmarks.shares best --genes heads+channels --shares 0.27 --dtype float32 \
        --model runs/models/tweets --dataset runs/models/tweets/data --calibration_split train \
        --heldout_split test --samples 128 --refit_samples 256 --output FILE

A search for each kind of genes and share removes that share of the parameters of the layers,
without embeddings and the language-modelling head; or, with ``--rank``, one ranking of the genes
for all shares, which suits models that are too large to search on a CPU. The sub-model is scored
on held-out text; with ``--refit`` also after the refit, and on the probe data.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sos_deap import prune
from sos_deap.cli import Parser, run_with_exit_status
from sos_deap.config import parse
from sos_deap.evaluation.evaluator import Evaluator
from sos_deap.files.atomic import write_json
from sos_deap.models.costs import layer_parameters
from sos_deap.plan import Plan, evaluator_of, plan_of, search, toolbox_of
from sos_deap.quality import quality
from sos_deap.refitting import refit_of
from sos_deap.tasks.task import SHARES, judged_by


def heldout(evaluator: Evaluator, chromosome: list[int]) -> dict[str, float]:
    """Return the metrics of a sub-model on the held-out text."""
    assert evaluator.heldout is not None
    return evaluator.metrics_on(evaluator.heldout, [chromosome])[0]


def rows_of(
    flags: list[str], genes: str, shares: list[float], seed: int, rank: str | None
) -> Iterator[dict[str, Any]]:
    """Find a sub-model for each share of the layers' parameters, and score it.

    :param flags: flags of a run.
    :param genes: what the genes stand for.
    :param shares: shares of the layers' parameters to remove.
    :param seed: seed of the search and of the calibration examples.
    :param rank: name of an importance; default: a search.
    """
    flags = [*flags, f"--genes={genes}", "--sparsity_of=parameters", f"--seed={seed}"]
    plan = plan_of(*parse(flags))
    evaluator = evaluator_of(plan)
    parameters = evaluator.model.num_parameters()
    layers = layer_parameters(evaluator.model, evaluator.gene_map)
    dense = heldout(evaluator, [1] * len(evaluator.gene_map))
    for share in shares:
        evaluator.max_sparsity = share * layers / parameters
        started, toolbox = time.perf_counter(), toolbox_of(plan, evaluator)
        if rank is None:
            evaluator = evaluator_of(plan)  # a new one, whose budget is unspent
            evaluator.max_sparsity = share * layers / parameters
            toolbox = toolbox_of(plan, evaluator)
            best = list(search(plan, evaluator, toolbox=toolbox).halloffame[0])
        else:
            space = toolbox.search.space
            best = list(space.keeping_best(space.importance(rank)))
        yield {
            "genes": genes,
            "share": share,
            "seed": seed,
            "removed": evaluator.sparsity(best) * parameters / layers,
            "genes_removed": best.count(0),
            "seconds": round(time.perf_counter() - started, 1),
            "dense": dense,
            "heldout": heldout(evaluator, best),
            **refitted(plan, evaluator, best),
        }


def refitted(plan: Plan, evaluator: Evaluator, chromosome: list[int]) -> dict[str, Any]:
    """Return what a refit changes: the metrics of the dense, the pruned and the refitted model."""
    refit = refit_of(evaluator, plan.config)
    if refit is None:
        return {}
    pruned = prune(evaluator.model, chromosome, evaluator.gene_map)
    refit(pruned)
    parts = ("heldout", "probe")
    dense, after = (quality(evaluator, one, parts).metrics for one in (evaluator.model, pruned))
    return {"refit": {**refit.result, "dense": dense, "after": after}}


def main() -> None:
    """Run the searches, print a line for each, and write the results."""
    parser = Parser(description=__doc__)
    parser.add_argument("--genes", nargs="+", default=["heads", "heads+channels"])
    parser.add_argument("--shares", nargs="+", type=float, default=[0.2, 0.3])
    parser.add_argument("--rank", help="an importance to rank by, in place of a search")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True)
    given, flags = parser.parse_known_args()
    rows = []
    for genes in given.genes:
        for seed in range(given.seeds):
            for row in rows_of(flags, genes, given.shares, seed, given.rank):
                rows.append(row)
                print(f"{genes} {row['share']:.0%} seed {seed}: {change(row):+.1%}", flush=True)
                for part, before in row.get("refit", {}).get("without", {}).items():
                    print(f"  {part}: {_changes(row['refit'], part, before)}", flush=True)
                write_json(given.output, {"flags": flags, "rank": given.rank, "rows": rows})
            gc.collect()  # evaluators are in cycles, and hold a model and what it computed
    for genes in given.genes:
        for share in given.shares:
            found = [row for row in rows if (row["genes"], row["share"]) == (genes, share)]
            print(f"{genes} {share:.0%}: median {statistics.median(map(change, found)):+.1%}")


def _changes(refit: dict[str, Any], part: str, before: dict[str, float]) -> str:
    """Return the change of the metric before and after a refit, and their ratio."""
    dense = refit["dense"][part]
    raw, after = (_change(dense, found) for found in (before, refit["after"][part]))
    ratio = f", ratio {after / raw:.2f}" if raw else ""
    return f"{raw:+.1%} before and {after:+.1%} after the refit{ratio}"


def change(row: dict[str, Any]) -> float:
    """Return the change of the held-out metric: relative, or of a share the difference."""
    return _change(row["dense"], row["heldout"])


def _change(dense: dict[str, float], pruned: dict[str, float]) -> float:
    name = judged_by(dense)
    return pruned[name] - dense[name] if name in SHARES else pruned[name] / dense[name] - 1


if __name__ == "__main__":
    sys.exit(run_with_exit_status(main))
