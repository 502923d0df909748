"""Compare `builtin:tiny` with a 3-gram model and random pruning; write results/builtin_tiny.json.

    python -m benchmarks.builtin_tiny    # from the repository root

It measures held-out perplexity. The 3-gram model is estimated on the training tokens of the model
and predicts the same held-out tokens; its two tokens of context may belong to the previous
sequence.
"""

from __future__ import annotations

import random
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.ngram import KneserNey
from benchmarks.standins.train_tiny import LOG, token_stream, training_documents
from sos_deap import Evaluator, masked
from sos_deap.files.atomic import write_json

RESULT = Path(__file__).parent / "results" / "builtin_tiny.json"
REMOVED, DRAWS = 0.30, 20


def ngram_perplexity(tokenizer: Any, windows: torch.Tensor) -> tuple[float, int]:
    """Return the 3-gram model's held-out perplexity and its number of training tokens."""
    train = token_stream(tokenizer, training_documents()).numpy().astype(np.int64)
    model = KneserNey(train, len(tokenizer))
    stream = windows.flatten().numpy().astype(np.int64)
    end = tokenizer.eos_token_id
    before = np.concatenate([[end, end], stream[:-2]])[: len(stream)]
    last = np.concatenate([[end], stream[:-1]])
    logs = np.log(model.probability(before, last, stream)).reshape(len(windows), -1)
    return float(np.exp(-logs[:, 1:].mean())), len(train)


def main() -> None:
    """Measure, write the JSON file and print it."""
    evaluator = Evaluator.from_pretrained("builtin:tiny", dataset="builtin:pydoc", device="cpu")
    heldout: Any = evaluator.heldout
    windows = heldout.sequences.input_ids
    dense = evaluator.metric_of(evaluator.model, heldout)
    ngram, trained_on = ngram_perplexity(evaluator.tokenizer, windows)
    generator, heads = random.Random(0), len(evaluator.gene_map)
    pruned = []
    for _ in range(DRAWS):
        removed = set(generator.sample(range(heads), round(REMOVED * heads)))
        with masked(evaluator.model, [[int(i not in removed) for i in range(heads)]]):
            pruned.append(evaluator.metric_of(evaluator.model, heldout))
    increases = [perplexity / dense - 1 for perplexity in pruned]
    write_json(
        RESULT,
        {
            "heldout": heldout.describe(),
            "training_tokens_in_corpus": trained_on,
            "training_tokens_read": int(LOG.read_text().splitlines()[-1].split(",")[1]),
            "perplexity": {"builtin:tiny": dense, "interpolated Kneser-Ney 3-gram": ngram},
            "random_removal": {
                "share_of_heads": REMOVED,
                "draws": DRAWS,
                "increase_mean": statistics.mean(increases),
                "increase_min": min(increases),
                "increase_max": max(increases),
            },
        },
    )
    print(RESULT.read_text())


if __name__ == "__main__":
    main()
