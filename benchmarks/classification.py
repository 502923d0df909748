"""Compare labels of sub-models in masked batches with those of sliced models, one text at a time.

    python -m benchmarks.classification --model FOLDER --dataset DATA [--heldout_split test]

It writes results/classification.json: the number of labels that differ, and the seconds of both.
The sub-models are random, with 31 % of the heads removed, in float32, on every held-out example.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from typing import Any

import torch

from sos_deap import Evaluator, masked, prune
from sos_deap.cards import versions
from sos_deap.cli import Parser, run_with_exit_status
from sos_deap.files.atomic import write_json
from sos_deap.search.chromosome import random_genes

RESULTS = Path(__file__).parent / "results"


def batched(evaluator: Evaluator, chromosomes: list[list[int]]) -> torch.Tensor:
    """Predict all labels in masked batches, as (sub-models, examples)."""
    task: Any = evaluator.heldout
    step = max(1, 4096 // task.seqlen // len(chromosomes))
    parts = [slice(start, start + step) for start in range(0, len(task), step)]
    with torch.inference_mode(), masked(evaluator.model, chromosomes, evaluator.gene_map):
        logits = [task.logits(evaluator.model, part, len(chromosomes)) for part in parts]
    return torch.cat(logits, dim=1).argmax(-1)


def one_at_a_time(evaluator: Evaluator, chromosomes: list[list[int]]) -> torch.Tensor:
    """Predict every example's label with sliced models, one example at a time."""
    task: Any = evaluator.heldout
    rows = []
    for genes in chromosomes:
        pruned = prune(evaluator.model, genes)
        with torch.inference_mode():
            each = [task.logits(pruned, slice(i, i + 1), 1).argmax(-1) for i in range(len(task))]
        rows.append(torch.cat(each, dim=1))
    return torch.cat(rows)


def main() -> None:
    """Compare both, print a summary and write the JSON file."""
    parser = Parser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder of a sequence classifier")
    parser.add_argument("--dataset", required=True, help="data set, as for sos_deap.run")
    parser.add_argument("--heldout_split", help="default: test, else validation")
    parser.add_argument("--sub_models", type=int, default=8, help="number of sub-models")
    flags = parser.parse_args()
    evaluator = Evaluator.from_pretrained(
        flags.model, dataset=flags.dataset, task="accuracy", heldout_split=flags.heldout_split
    )
    random.seed(0)
    genes = len(evaluator.gene_map)
    chromosomes = [random_genes(genes, 0.31) for _ in range(flags.sub_models)]
    started = time.perf_counter()
    together = batched(evaluator, chromosomes)
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    reference = one_at_a_time(evaluator, chromosomes)
    seconds_alone = time.perf_counter() - started
    result = {
        "sub_models": len(chromosomes),
        "heads_removed": chromosomes[0].count(0),
        "heads": genes,
        "labels_compared": together.numel(),
        "labels_that_differ": int((together != reference).sum()),
        "labels_that_differ_from_the_dense_model": int(
            (together != batched(evaluator, [[1] * genes])).sum()
        ),
        "seconds_in_batches": seconds,
        "seconds_alone": seconds_alone,
        "data": evaluator.heldout.describe() if evaluator.heldout else None,
        "versions": versions(),
    }
    print(
        f"{result['labels_that_differ']} of {together.numel()} labels differ; "
        f"{seconds:.1f} s in batches, {seconds_alone:.1f} s one at a time"
    )
    write_json(RESULTS / "classification.json", result)


if __name__ == "__main__":
    sys.exit(run_with_exit_status(main))
