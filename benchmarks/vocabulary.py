"""Time evaluations of models with large vocabularies; write results/vocabulary_DTYPE.json.

    python -m benchmarks.vocabulary [--dtype float32] [--sequences 2] [--rounds 3]

For random models with the shapes of Gemma 3 270M (262,144 tokens), Qwen 2.5 0.5B (151,936) and the
first with 32,000 tokens, on a CPU, in turn: an evaluation of a chromosome that shares no layers
with an earlier one, a forward pass of transformers with its loss for each sequence, and the matrix
products of all linear layers alone. Also the most bytes that an evaluation takes beyond the model.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, Gemma3TextConfig, Qwen2Config

from sos_deap import Evaluator
from sos_deap.cards import versions
from sos_deap.cli import Parser, run_with_exit_status
from sos_deap.files.atomic import write_json
from sos_deap.models.devices import device_name
from sos_deap.models.measure import peak_bytes
from sos_deap.tasks.data.sequences import Sequences
from sos_deap.tasks.divergence import KL

RESULTS = Path(__file__).parent / "results"
SEQLEN = 512


def gemma_3_270m_config(vocabulary: int = 262_144) -> Gemma3TextConfig:
    """Return a config with the shape of Gemma 3 270M."""
    return Gemma3TextConfig(
        vocab_size=vocabulary,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        sliding_window=512,
        max_position_embeddings=32_768,
    )


SHAPES: dict[str, Callable[[], Any]] = {
    "gemma-3-270m": gemma_3_270m_config,
    "gemma-3-270m, 32,000 tokens": lambda: gemma_3_270m_config(32_000),
    "qwen-2.5-0.5b": lambda: Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
}


def products(model: Any, sequences: int) -> Callable[[], None]:
    """Return what runs the matrix products of all linear layers on a sequence at a time."""
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    widths = {weight.shape[1] for weight in weights}
    states = {width: torch.randn(SEQLEN, width).to(model.dtype) for width in widths}

    def run() -> None:
        for weight in weights:
            for _ in range(sequences):
                for tile in weight.split(8192):
                    states[weight.shape[1]] @ tile.T

    return run


def plain(model: Any, ids: torch.Tensor) -> None:
    """Compute the loss of each sequence as transformers does."""
    for sequence in ids.split(1):
        model(sequence, labels=sequence, use_cache=False).loss.item()


def measured(config: Any, dtype: torch.dtype, sequences: int, rounds: int) -> dict[str, Any]:
    """Time the three ways in turn.

    :param config: config of the model.
    :param dtype: dtype of its weights.
    :param sequences: number of sequences of :data:`SEQLEN` tokens.
    :param rounds: how often each way is timed.
    """
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    ids = torch.randint(config.vocab_size, (sequences, SEQLEN))
    evaluator = Evaluator(model, KL(Sequences("random", ids), model), reuse_memory=0)
    count = len(evaluator.gene_map)

    def ours() -> None:
        evaluator.metrics([[0, *(int(random.random() < 0.7) for _ in range(count - 1))]])

    ways: dict[str, Callable[[], None]] = {
        "evaluation": ours,
        "transformers": lambda: plain(model, ids),
        "products": products(model, sequences),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode():
        ours()  # with its one-time work
        for _ in range(rounds):
            for name, way in ways.items():
                started = time.perf_counter()
                way()
                seconds[name].append(time.perf_counter() - started)
        peak = peak_bytes(model, ours)

    def ratio(other: str) -> dict[str, float]:
        pairs = zip(seconds[other], seconds["evaluation"], strict=True)
        found = sorted(theirs / own for theirs, own in pairs)
        return {"median": statistics.median(found), "least": found[0], "most": found[-1]}

    return {
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "tokens_per_second": ids.numel() / statistics.median(seconds["evaluation"]),
        "share_of_the_products_rate": ratio("products"),
        "times_as_fast_as_transformers": ratio("transformers"),
        "peak_bytes_beyond_the_model": peak,
    }


def main() -> None:
    """Measure, print the result and write the JSON file."""
    parser = Parser(description=__doc__)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--sequences", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES)
    flags = parser.parse_args()
    random.seed(0)
    dtype = getattr(torch, flags.dtype)
    found: dict[str, Any] = {"device": device_name(torch.device("cpu")), "versions": versions()}
    found["threads"] = torch.get_num_threads()
    for name in flags.shapes:
        found[name] = measured(SHAPES[name](), dtype, flags.sequences, flags.rounds)
        print(name, found[name], flush=True)
    write_json(RESULTS / f"vocabulary_{flags.dtype}.json", found)


if __name__ == "__main__":
    sys.exit(run_with_exit_status(main))
