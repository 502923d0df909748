"""The evaluator on a GPU: a Llama-2-7B-shaped model, and what batches give to small ones.

    python -m benchmarks.gpu [--evaluations 40]     # without a GPU it says so and exits with 0

The models are random, in bfloat16; the chromosomes are those that a run of the paper's algorithm
asks for, on a fitness of its own that needs no model. Writes results/gpu.json: seconds of 1,000
evaluations of 8 x 2,048 tokens (the paper: 2 hours for 8 x 4,096 on an RTX 3090), the share of the
matrix rate that was measured beside it, and the gain of batches over one sub-model at a time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from benchmarks.evaluator import field_loop, lookup_generations
from sos_deap import Evaluator, head_map
from sos_deap.artifacts import versions
from sos_deap.files.atomic import write_json
from sos_deap.models.loading import load_pretrained
from sos_deap.tasks.data.sequences import Sequences
from sos_deap.tasks.language import Perplexity

RESULTS = Path(__file__).parent / "results"


def llama_2_7b() -> Any:
    """A random model of LLaMA-2 7B's shape."""
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=4096,
        intermediate_size=11_008,
        num_hidden_layers=32,
        num_attention_heads=32,
        max_position_embeddings=4096,
    )
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        try:
            return LlamaForCausalLM(config).eval()
        finally:
            torch.set_default_dtype(torch.float32)


def gpt2_small() -> Any:
    """A random model of GPT-2's shape."""
    return GPT2LMHeadModel(GPT2Config()).eval().to("cuda", torch.bfloat16)


def random_task(model: Any, rows: int, tokens: int) -> Perplexity:
    """Perplexity of random tokens."""
    ids = torch.randint(model.config.vocab_size, (rows, tokens))
    return Perplexity(Sequences("random", ids), "cuda")


def seconds_of(work: Callable[[], Any]) -> float:
    """Seconds until the GPU is done."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def matrix_rate(size: int = 8192, times: int = 20) -> float:
    """Operations a second of a large product in bfloat16."""
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    torch.matmul(left, right)
    seconds = seconds_of(lambda: [torch.matmul(left, right) for _ in range(times)])
    return 2 * size**3 * times / seconds


def large(evaluations: int) -> dict[str, Any]:
    """A part of a run on the large model, generation by generation."""
    model = llama_2_7b()
    task = random_task(model, 8, 2048)
    generations = lookup_generations(len(head_map(model)))[: -(-evaluations // 10)]
    asked = sum(map(len, generations))
    evaluator = Evaluator(model, task)
    evaluator.many(generations[0])  # what is done once is done
    before = evaluator.accounting.flops or 0.0
    seconds = seconds_of(lambda: [evaluator.many(each) for each in generations[1:]])
    done = asked - len(generations[0])
    rate = ((evaluator.accounting.flops or 0.0) - before) / seconds
    one = generations[1][:1]
    return {
        "evaluations": done,
        "batching": evaluator.batching,
        "seconds_of_1000": seconds / done * 1000,
        "field_loop_seconds_of_1000": seconds_of(lambda: field_loop(model, task, [one])) * 1000,
        "share_of_the_matrix_rate": rate / matrix_rate(),
        "peak_bytes": torch.cuda.max_memory_allocated(),
    }


def small(model: Any, rows: int, tokens: int) -> dict[str, float]:
    """How many times as fast batches are as one sub-model at a time."""
    task = random_task(model, rows, tokens)
    several: Sequence[list[int]] = [
        genes for each in lookup_generations(len(head_map(model)))[1:7] for genes in each
    ]
    found = {}
    for batch_tokens in (rows * tokens, 32_768, 131_072):
        evaluator = Evaluator(model, task, batch_tokens=batch_tokens, batching="masked")
        evaluator.metrics(several[:1])
        found[f"{batch_tokens} tokens a pass"] = seconds_of(lambda e=evaluator: e.metrics(several))  # type: ignore[misc]
    alone, *batches = found.values()
    return {**found, "gain": alone / min(batches)}


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--evaluations", type=int, default=40)
    flags = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU: nothing was measured")
        return
    found = {
        "gpu": torch.cuda.get_device_name(),
        "llama-2-7b, 8 x 2048 tokens": large(flags.evaluations),
        "builtin:tiny, 16 x 128 tokens": small(
            load_pretrained("builtin:tiny", device="cuda", dtype="bfloat16").model, 16, 128
        ),
        "gpt2-small, 2 x 1024 tokens": small(gpt2_small(), 2, 1024),
        "versions": versions(),
    }
    print(found)
    write_json(RESULTS / "gpu.json", found)


if __name__ == "__main__":
    main()
