"""Labels that sub-models give in batches, against sliced models that read one text at a time.

    python -m benchmarks.classification --model FOLDER --dataset DATA [--heldout_split test]

Random sub-models of 31 % of the heads, in float32, on every held-out example. Writes
results/classification.json: how many labels differ, and the seconds of both ways.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path
from typing import Any

import torch

from sos_deap import Evaluator, masked, prune
from sos_deap.artifacts import versions
from sos_deap.files.atomic import write_json
from sos_deap.search.chromosome import random_genes

RESULTS = Path(__file__).parent / "results"


def batched(evaluator: Evaluator, several: list[list[int]]) -> torch.Tensor:
    """The labels of every example by every sub-model, (sub-models, examples), in batches."""
    task: Any = evaluator.heldout
    step = max(1, 4096 // task.seqlen // len(several))
    parts = [slice(start, start + step) for start in range(0, len(task), step)]
    with torch.inference_mode(), masked(evaluator.model, several, evaluator.head_map):
        logits = [task.logits(evaluator.model, part, len(several)) for part in parts]
    return torch.cat(logits, dim=1).argmax(-1)


def alone(evaluator: Evaluator, several: list[list[int]]) -> torch.Tensor:
    """The same from sliced models, one example at a time."""
    task: Any = evaluator.heldout
    rows = []
    for genes in several:
        pruned = prune(evaluator.model, genes)
        with torch.inference_mode():
            each = [task.logits(pruned, slice(i, i + 1), 1).argmax(-1) for i in range(len(task))]
        rows.append(torch.cat(each, dim=1))
    return torch.cat(rows)


def main() -> None:
    """Compare, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--heldout_split")
    parser.add_argument("--sub_models", type=int, default=8)
    flags = parser.parse_args()
    evaluator = Evaluator.from_pretrained(
        flags.model, dataset=flags.dataset, task="accuracy", heldout_split=flags.heldout_split
    )
    random.seed(0)
    genes = len(evaluator.head_map)
    several = [random_genes(genes, 0.31) for _ in range(flags.sub_models)]
    started = time.perf_counter()
    together = batched(evaluator, several)
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    reference = alone(evaluator, several)
    seconds_alone = time.perf_counter() - started
    result = {
        "sub_models": len(several),
        "heads_removed": several[0].count(0),
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
        f"{seconds:.1f} s in batches, {seconds_alone:.1f} s alone"
    )
    write_json(RESULTS / "classification.json", result)


if __name__ == "__main__":
    main()
