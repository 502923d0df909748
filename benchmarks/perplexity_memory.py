"""Measure the peak memory of a perplexity evaluation; write results/perplexity_memory.json.

    python -m benchmarks.perplexity_memory

The vocabulary has 256 k and the text 16 k tokens. The model is random and narrow, since only tokens
x vocabulary matters: all logits at once would take 17 GB in float32. The file contains the bytes of
the weights, the peak of allocated bytes beyond them, and the seconds.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sos_deap.cards import versions
from sos_deap.files.atomic import write_json
from sos_deap.models.measure import peak_bytes
from sos_deap.tasks.data.sequences import Sequences
from sos_deap.tasks.language import Perplexity

VOCABULARY, SEQUENCES, SEQLEN = 2**18, 8, 2048
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Measure, print a summary and write the JSON file."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    model = LlamaForCausalLM(config).eval()
    task = Perplexity(Sequences("random", torch.randint(VOCABULARY, (SEQUENCES, SEQLEN))))

    def evaluate() -> None:
        with torch.inference_mode():
            task.score(model, slice(0, SEQUENCES), 1)

    started = time.perf_counter()
    peak = peak_bytes(model, evaluate)
    result = {
        "vocabulary": VOCABULARY,
        "tokens": SEQUENCES * SEQLEN,
        "weight_bytes": sum(parameter.nbytes for parameter in model.parameters()),
        "peak_bytes_beyond_the_model": peak,
        "bytes_of_all_logits": 4 * VOCABULARY * SEQUENCES * SEQLEN,
        "seconds": time.perf_counter() - started,
        "versions": versions(),
    }
    print(f"{peak / 1e6:,.0f} MB beyond the model in {result['seconds']:.0f} s")
    write_json(RESULTS / "perplexity_memory.json", result)


if __name__ == "__main__":
    main()
