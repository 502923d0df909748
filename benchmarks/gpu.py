"""Measure the evaluator on a GPU, with a large model and small ones; write results/gpu.json.

    python -m benchmarks.gpu [--evaluations 40]    # exits with 0 and writes nothing without a GPU

The file contains the seconds of 1,000 evaluations of 8 x 2,048 tokens (the paper: 2 hours for 8 x
4,096 on an RTX 3090), the achieved proportion of the GPU's measured rate of matrix products, and
the gain of batches over one sub-model at a time. The large models have the shapes of Llama-2-7B
and of Gemma 3 270M, whose vocabulary takes most of the operations. The models are random, in
bfloat16; the chromosomes are those that the paper's algorithm requests with a fitness that needs
no model. It has not been run yet.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    Gemma3ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from benchmarks.loops import plain_loop
from benchmarks.vocabulary import gemma_3_270m_config
from benchmarks.workloads import lookup_generations
from sos_deap import Evaluator, head_map
from sos_deap.cards import versions
from sos_deap.cli import Parser, run_with_exit_status
from sos_deap.files.atomic import write_json
from sos_deap.models.loading import load_pretrained
from sos_deap.tasks.data.sequences import Sequences
from sos_deap.tasks.language import Perplexity

RESULTS = Path(__file__).parent / "results"


def llama_2_7b_config() -> LlamaConfig:
    """Return a config with the shape of LLaMA-2 7B."""
    return LlamaConfig(
        vocab_size=32_000,
        hidden_size=4096,
        intermediate_size=11_008,
        num_hidden_layers=32,
        num_attention_heads=32,
        max_position_embeddings=4096,
    )


def llama_2_7b() -> Any:
    """Return a random model with the shape of LLaMA-2 7B."""
    return _random(LlamaForCausalLM, llama_2_7b_config())


def gemma_3_270m() -> Any:
    """Return a random model with the shape of Gemma 3 270M."""
    return _random(Gemma3ForCausalLM, gemma_3_270m_config())


def _random(stock: Any, config: Any) -> Any:
    """Return a random model in bfloat16, made on the GPU."""
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        try:
            return stock(config).eval()
        finally:
            torch.set_default_dtype(torch.float32)


def gpt2_small() -> Any:
    """Return a random model with the shape of GPT-2."""
    return GPT2LMHeadModel(GPT2Config()).eval().to("cuda", torch.bfloat16)


def random_task(model: Any, rows: int, tokens: int) -> Perplexity:
    """Return the task of perplexity on random tokens."""
    ids = torch.randint(model.config.vocab_size, (rows, tokens))
    return Perplexity(Sequences("random", ids), "cuda")


def seconds_of(work: Callable[[], Any]) -> float:
    """Return the seconds until the GPU has finished."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def matrix_rate(size: int = 8192, times: int = 20) -> float:
    """Return the operations per second of a large matrix product in bfloat16."""
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    torch.matmul(left, right)
    seconds = seconds_of(lambda: [torch.matmul(left, right) for _ in range(times)])
    return 2 * size**3 * times / seconds


def large(model: Any, evaluations: int) -> dict[str, Any]:
    """Measure a part of a run on a large model, one generation at a time."""
    torch.cuda.reset_peak_memory_stats()
    task = random_task(model, 8, 2048)
    generations = lookup_generations(len(head_map(model)))[: -(-evaluations // 10)]
    asked = sum(map(len, generations))
    evaluator = Evaluator(model, task)
    evaluator.many(generations[0])  # one-time work
    before = evaluator.accounting.flops or 0.0
    seconds = seconds_of(lambda: [evaluator.many(each) for each in generations[1:]])
    done = asked - len(generations[0])
    rate = ((evaluator.accounting.flops or 0.0) - before) / seconds
    one = generations[1][:1]
    return {
        "evaluations": done,
        "batching": evaluator.batching,
        "seconds_of_1000": seconds / done * 1000,
        "field_loop_seconds_of_1000": seconds_of(lambda: plain_loop(model, task, [one])) * 1000,
        "share_of_the_matrix_rate": rate / matrix_rate(),
        "peak_bytes": torch.cuda.max_memory_allocated(),
    }


def small(model: Any, rows: int, tokens: int) -> dict[str, float]:
    """Measure the speed-up of masked batches over one sub-model at a time."""
    task = random_task(model, rows, tokens)
    chromosomes: Sequence[list[int]] = [
        genes for each in lookup_generations(len(head_map(model)))[1:7] for genes in each
    ]
    found = {}
    for batch_tokens in (rows * tokens, 32_768, 131_072):
        evaluator = Evaluator(model, task, batch_tokens=batch_tokens, batching="masked")
        evaluator.metrics(chromosomes[:1])
        found[f"{batch_tokens} tokens a pass"] = seconds_of(
            lambda e=evaluator: e.metrics(chromosomes)  # type: ignore[misc]
        )
    alone, *batches = found.values()
    return {**found, "gain": alone / min(batches)}


def main() -> None:
    """Measure, print the result and write the JSON file."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--evaluations", type=int, default=40, help="evaluations on the large model (40)"
    )
    flags = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU: nothing was measured")
        return
    found = {
        "gpu": torch.cuda.get_device_name(),
        "llama-2-7b, 8 x 2048 tokens": large(llama_2_7b(), flags.evaluations),
        "gemma-3-270m, 8 x 2048 tokens": large(gemma_3_270m(), flags.evaluations),
        "builtin:tiny, 16 x 128 tokens": small(
            load_pretrained("builtin:tiny", device="cuda", dtype="bfloat16").model, 16, 128
        ),
        "gpt2-small, 2 x 1024 tokens": small(gpt2_small(), 2, 1024),
        "versions": versions(),
    }
    print(found)
    write_json(RESULTS / "gpu.json", found)


if __name__ == "__main__":
    sys.exit(run_with_exit_status(main))
