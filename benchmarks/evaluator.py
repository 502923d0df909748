"""Compare the evaluator with a plain loop and matrix products; write results/evaluator_NAME.json.

    python -m benchmarks.evaluator run          # runs of the paper's algorithm, 3 seeds
    python -m benchmarks.evaluator distinct     # chromosomes that share no layers
    python -m benchmarks.evaluator elementwise  # rotations on copies, losses in blocks
    python -m benchmarks.evaluator memory       # peak memory with 8 times the tokens
    python -m benchmarks.evaluator ranking      # rank correlation of bfloat16 and float32

The plain loop evaluates one candidate at a time. All alternatives are timed in
one process, in turn, on the same tokens and the same lists of chromosomes. `run` takes the lists
from real runs of the paper's algorithm (100 generations of 10), including duplicates, one
generation at a time.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.loops import (
    bare_products,
    dense_passes,
    ours,
    plain_loop,
    ratio,
    sliced_loop,
    timed,
)
from benchmarks.main_job import spread
from benchmarks.workloads import first_asked, generations_of, tiny, wide
from sos_deap import Evaluator, head_map
from sos_deap.cards import versions
from sos_deap.cli import Parser, run_with_exit_status
from sos_deap.files.atomic import write_json
from sos_deap.models.measure import peak_bytes
from sos_deap.search.chromosome import random_genes
from sos_deap.tasks import logits
from sos_deap.tasks.language import Perplexity

RESULTS = Path(__file__).parent / "results"


def whole_runs(seeds: int, every: int) -> dict[str, Any]:
    """Time whole runs of the default evaluator, and parts of runs without cached hidden states.

    Alternatives whose time per generation does not depend on earlier ones are timed on every
    `every`-th generation and scaled up. Cached hidden states in float32 are timed for seed 0 only.
    """
    models = tiny()
    rows: list[dict[str, Any]] = []
    for seed in range(seeds):
        rows.append(whole_run(*models, seed, every))
        print(rows[-1], flush=True)
    first, second, last = "1 field's loop, float32", "2 field's loop, bfloat16", "4d bfloat16"
    return {
        "loops_1_to_3_and_4a_4b": f"every {every}th generation, scaled up",
        "runs": rows,
        "loop_1_over_ours": spread([r["seconds"][first] / r["seconds"][last] for r in rows]),
        "loop_2_over_ours": spread([r["seconds"][second] / r["seconds"][last] for r in rows]),
    }


def whole_run(model: Any, low: Any, task: Perplexity, seed: int, every: int) -> dict[str, Any]:
    """Time one run of the search.

    :param model: the model in float32.
    :param low: the model in bfloat16.
    """
    generations = generations_of(low, task, seed)
    new = first_asked(generations)
    part, new_part = generations[::every], new[::every]
    asked, asked_part, new_asked, new_asked_part = (
        sum(map(len, g)) for g in (generations, part, new, new_part)
    )
    evaluators: dict[str, Evaluator] = {}

    def default() -> None:
        evaluators["default"] = ours(low, task, generations)

    ways: dict[str, Callable[[], Any]] = {
        "1 field's loop, float32": partial(plain_loop, model, task, part),
        "2 field's loop, bfloat16": partial(plain_loop, low, task, part),
        "3 copy and slice, float32": partial(sliced_loop, model, task, part),
        "4a cache and batches": partial(ours, model, task, new_part, batching="masked"),
        "4b shared layers, heads left out": partial(ours, model, task, new_part, reuse_memory=0),
        "4d bfloat16": default,
    }
    if seed == 0:
        ways["4c states kept"] = partial(ours, model, task, generations)
    scales = dict.fromkeys("123", asked / asked_part)
    scales |= dict.fromkeys(("4a", "4b"), new_asked / new_asked_part)
    scaled = {name: s[0] * scales.get(name.split()[0], 1) for name, s in timed(ways, 1).items()}
    best = evaluators["default"].accounting
    return {
        "seed": seed,
        "asked": asked,
        "computed": best.forward_evaluations,
        "layers_computed": best.layers_computed / best.layers,
        "outside_forward": best.seconds_outside / (best.seconds_outside + best.seconds_forward),
        "seconds": scaled,
    }


def distinct(rounds: int) -> dict[str, Any]:
    """Time new random chromosomes in every round, without cached hidden states."""
    found: dict[str, Any] = {}
    for name, (model, low, task), count in (("builtin:tiny", tiny(), 10), ("12 x 768", wide(), 4)):
        random.seed(0)
        genes, tokens = len(head_map(model)), len(task) * task.seqlen
        evaluators = {share: Evaluator(low, task, reuse_memory=0) for share in (0.0, 0.25, 0.5)}
        for evaluator in evaluators.values():
            evaluator.metrics([random_genes(genes, 0.9)])  # one-time work
        seconds: dict[str, list[float]] = {}
        for _ in range(rounds):
            chromosomes = {
                share: [random_genes(genes, share) for _ in range(count)] for share in (0.25, 0.5)
            }
            ways: dict[str, Callable[[], Any]] = {
                "bare products, dense": partial(bare_products, low, tokens, count),
                "eager bfloat16": partial(plain_loop, low, task, [chromosomes[0.25]]),
                "ours, dense": partial(dense_passes, evaluators[0.0], count),
                "ours, 25 % removed": partial(evaluators[0.25].metrics, chromosomes[0.25]),
                "ours, 50 % removed": partial(evaluators[0.5].metrics, chromosomes[0.5]),
            }
            for way, values in timed(ways, 1).items():
                seconds.setdefault(way, []).extend(values)
        found[name] = {
            "sub_models": count,
            "tokens": tokens,
            "seconds": seconds,
            "eager_over_ours": ratio(seconds, "eager bfloat16", "ours, 25 % removed"),
            "half_over_dense": ratio(seconds, "ours, 50 % removed", "ours, dense"),
            "fraction_of_the_limit": ratio(seconds, "bare products, dense", "ours, dense"),
        }
    return found


def elementwise(rounds: int) -> dict[str, Any]:
    """Time evaluations of `builtin:tiny` with and without rotations on copies and losses in blocks.

    Both wall-clock and CPU time are measured. CPU time excludes other programs and, with
    `OMP_WAIT_POLICY=passive`, waiting threads.
    """
    _, low, task = tiny()
    found: dict[str, Any] = {}
    for threads in (1, torch.get_num_threads()):
        torch.set_num_threads(threads)
        evaluator = Evaluator(low, task, reuse_memory=0)
        genes = len(evaluator.gene_map)
        evaluator.metrics([random_genes(genes, 0.9)])
        copies, block = evaluator.runner._rotations, logits._REDUCED_ON_CPU
        ways = {"neither": ([], 2**62), "rotations": (copies, 2**62), "losses": ([], block)}
        ways["both"] = (copies, block)
        wall: dict[str, list[float]] = {way: [] for way in ways}
        processor: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            one, metrics = random_genes(genes, 0.25), set[float]()
            for way, (evaluator.runner._rotations, logits._REDUCED_ON_CPU) in ways.items():
                evaluator.clear()
                started = time.perf_counter(), time.process_time()
                metrics.add(evaluator.metric(one))
                wall[way].append(time.perf_counter() - started[0])
                processor[way].append(time.process_time() - started[1])
            assert len(metrics) == 1  # to the last bit
        found[f"{threads} threads"] = {
            kind: {
                "seconds": {way: spread(values) for way, values in seconds.items()},
                "share_of_neither": {way: ratio(seconds, way, "neither") for way in ways},
            }
            for kind, seconds in (("wall", wall), ("processor", processor))
        }
    return found


def memory() -> dict[str, Any]:
    """Measure the peak of allocated bytes in a generation with 4,096 and 32,768 tokens."""
    found: dict[str, Any] = {}
    for samples in (32, 256):
        evaluator = Evaluator.from_pretrained(
            device="cpu", samples=samples, heldout_samples=1, reuse_memory=0.1
        )
        genes = len(evaluator.gene_map)
        evaluator.metrics([random_genes(genes, 0.9)])
        chromosomes = [random_genes(genes, 0.25) for _ in range(10)]
        peak = peak_bytes(evaluator.model, lambda: evaluator.metrics(chromosomes))  # noqa: B023
        found[f"{samples * 128} tokens"] = peak
    few, many = found.values()
    return {"peak_bytes_beyond_the_model": found, "ratio": many / few}


def ranking(count: int = 200) -> dict[str, Any]:
    """Compute Kendall's tau between perplexities of random sub-models in float32 and bfloat16."""
    model, low, task = tiny()
    random.seed(0)
    genes = len(head_map(model))
    chromosomes = [random_genes(genes, random.uniform(0.02, 0.31)) for _ in range(count)]
    exact, rounded = (Evaluator(m, task).metrics(chromosomes) for m in (model, low))
    pairs = [
        (exact[i] - exact[j]) * (rounded[i] - rounded[j]) for i in range(count) for j in range(i)
    ]
    errors = [abs(b / a - 1) for a, b in zip(exact, rounded, strict=True)]
    return {
        "sub_models": count,
        "kendall_tau": sum((p > 0) - (p < 0) for p in pairs) / len(pairs),
        "median_relative_difference": statistics.median(errors),
        "largest_relative_difference": max(errors),
    }


def cpu_name() -> str:
    """Return the name of the CPU and its bfloat16 instructions."""
    able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    kinds = [name for name in ("avx512_bf16", "amx_bf16") if able.get(name)]
    return f"{able.get('cpu_name', able.get('architecture'))}, {', '.join(kinds) or 'no bfloat16'}"


def main() -> None:
    """Measure, write the JSON file and print a summary."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["run", "distinct", "elementwise", "memory", "ranking"]
    parser.add_argument("what", choices=names, help="the measurement")
    parser.add_argument("--seeds", type=int, default=3, help="run: seeds of the search (3)")
    parser.add_argument(
        "--every",
        type=int,
        default=20,
        help="run: time 1 to 3, 4a and 4b on every n-th generation (20)",
    )
    parser.add_argument("--rounds", type=int, default=5, help="distinct, elementwise: rounds (5)")
    flags = parser.parse_args()
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "run": partial(whole_runs, flags.seeds, flags.every),
        "distinct": partial(distinct, flags.rounds),
        "elementwise": partial(elementwise, 10 * flags.rounds),
        "memory": memory,
        "ranking": ranking,
    }
    found = measures[flags.what]()
    found["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY")
    found |= {"threads": torch.get_num_threads(), "cpu": cpu_name(), "versions": versions()}
    write_json(RESULTS / f"evaluator_{flags.what}.json", found)
    print({name: value for name, value in found.items() if name != "runs"})


if __name__ == "__main__":
    sys.exit(run_with_exit_status(main))
