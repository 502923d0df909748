"""The evaluator against the field's loop, part by part, and against the bare matrix products.

    python -m benchmarks.evaluator run         # whole GA runs on builtin:tiny, three seeds
    python -m benchmarks.evaluator distinct    # chromosomes that share nothing, two sizes
    python -m benchmarks.evaluator elementwise # what rotations on copies and small losses save
    python -m benchmarks.evaluator memory      # at 8 times the tokens
    python -m benchmarks.evaluator ranking     # does bfloat16 rank sub-models as float32 does

All ways are timed in one process, in turn, on the same tokens and the same lists of chromosomes.
`run` takes the lists from real runs of the paper's algorithm (100 generations of 10), as asked for
with duplicates, generation by generation. Writes results/evaluator_NAME.json.
"""

from __future__ import annotations

import argparse
import copy
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from deap import base, tools
from torch.nn.functional import cross_entropy, linear
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.main_job import spread
from sos_deap import (
    Chromosome,
    Evaluator,
    cxFitnessWeighted,
    evolve,
    head_map,
    limit_sparsity,
    masked,
    mutSparsityFlipBit,
    prune,
    register,
)
from sos_deap.artifacts import versions
from sos_deap.files.atomic import write_json
from sos_deap.models.measure import peak_bytes
from sos_deap.search.chromosome import random_genes
from sos_deap.tasks import likelihood
from sos_deap.tasks.data.sequences import Sequences
from sos_deap.tasks.language import Perplexity

RESULTS = Path(__file__).parent / "results"
Generations = list[list[list[int]]]  # the chromosomes that each generation asks for


def generations_of(model: Any, task: Perplexity, seed: int) -> Generations:
    """What a run of the paper's algorithm asks for, generation by generation."""
    random.seed(seed)
    evaluator, asked = Evaluator(model, task), list[list[list[int]]]()
    toolbox = base.Toolbox()
    register(toolbox, evaluator)

    def listed(function: Callable[..., Any], individuals: Sequence[Any]) -> list[Any]:
        if individuals:
            asked.append([list(individual) for individual in individuals])
        return evaluator.many(individuals, max_sparsity=0.31)

    toolbox.register("map", listed)
    evolve(toolbox, "sos-repaired", population=10, generations=100, max_sparsity=0.31)
    return asked


def lookup_generations(genes: int, seed: int = 0) -> Generations:
    """The same on a fitness that needs no model: each head has a price, drawn at random."""
    random.seed(seed)
    prices, asked = [random.random() for _ in range(genes)], list[list[list[int]]]()
    toolbox = base.Toolbox()
    bound = limit_sparsity(0.31)
    toolbox.register("individual", lambda: Chromosome(random_genes(genes, 0.05)))
    toolbox.register("population", tools.initRepeat, list, toolbox.individual)
    toolbox.register("select", tools.selTournament, tournsize=3)
    toolbox.register("mate", bound(cxFitnessWeighted))
    toolbox.register("mutate", bound(partial(mutSparsityFlipBit, indpb=0.01)))
    toolbox.register(
        "evaluate", lambda one: (-sum(p for p, g in zip(prices, one, strict=True) if g),)
    )

    def listed(function: Callable[..., Any], individuals: Sequence[Any]) -> list[Any]:
        if individuals:
            asked.append([list(individual) for individual in individuals])
        return list(map(function, individuals))

    toolbox.register("map", listed)
    evolve(toolbox, "sos-repaired", population=10, generations=100, max_sparsity=0.31)
    return asked


def first_asked(generations: Generations) -> Generations:
    """Of each generation what no earlier one asked for: the others cost a cache nothing."""
    known = set[bytes]()
    new = []
    for generation in generations:
        distinct_ones = {bytes(genes): genes for genes in generation}
        new.append([genes for key, genes in distinct_ones.items() if key not in known])
        known |= distinct_ones.keys()
    return new


def field_loop(model: Any, task: Perplexity, generations: Generations) -> None:
    """One candidate at a time, the full forward pass, all logits, nothing remembered."""
    ids, heads = task.sequences.input_ids.to(model.device), head_map(model)
    with torch.inference_mode():
        for genes in (genes for generation in generations for genes in generation):
            with masked(model, [genes], heads):
                logits = model(ids, use_cache=False).logits[:, :-1].float()
            cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).exp().item()


def sliced_loop(model: Any, task: Perplexity, generations: Generations) -> None:
    """Copy and slice the model for each candidate."""
    ids, heads = task.sequences.input_ids, head_map(model)
    with torch.inference_mode():
        for genes in (genes for generation in generations for genes in generation):
            smaller: Any = prune(model, genes, heads)
            logits = smaller(ids, use_cache=False).logits[:, :-1].float()
            cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).exp().item()


def ours(model: Any, task: Perplexity, generations: Generations, **settings: Any) -> Evaluator:
    """The evaluator, a generation at a time."""
    evaluator = Evaluator(model, task, **settings)
    for generation in generations:
        evaluator.many(generation)
    return evaluator


def products(model: Any, tokens: int) -> Iterator[tuple[int, int, int]]:
    """The matrix products of one forward pass, as (rows, inner, columns)."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            yield tokens, module.in_features, module.out_features


def bare_products(model: Any, tokens: int, times: int) -> None:
    """Those products alone, in the model's dtype and attention's left out, for some sub-models."""
    dtype = model.dtype
    operands = [
        (torch.empty(rows, inner, dtype=dtype), torch.empty(columns, inner, dtype=dtype))
        for rows, inner, columns in products(model, tokens)
    ]
    with torch.inference_mode():
        for _ in range(times):
            for left, right in operands:
                linear(left, right)


def timed(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way, all of them in turn in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
            print(f"{name}: {seconds[name][-1]:.2f} s", flush=True)
    return seconds


def ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> dict[str, float]:
    """How many times as long one way takes as another, round by round."""
    return spread([a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)])


def tiny() -> tuple[Any, Any, Perplexity]:
    """The embedded model in float32 and bfloat16, and its default calibration text."""
    evaluator = Evaluator.from_pretrained(device="cpu", dtype="float32", heldout_samples=1)
    task: Any = evaluator.task
    return evaluator.model, copy.deepcopy(evaluator.model).bfloat16(), task


def wide() -> tuple[Any, Any, Perplexity]:
    """A random Llama of 12 x 768 with 12 heads, and 2,048 tokens."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=2048,
    )
    model = LlamaForCausalLM(config).eval()
    task = Perplexity(Sequences("random", torch.randint(2048, (4, 512))))
    return model, copy.deepcopy(model).bfloat16(), task


def whole_runs(seeds: int, every: int) -> dict[str, Any]:
    """Whole runs of the evaluator; of what remembers nothing a part of the generations, scaled up.

    The ways between loops and the default that must see all generations are timed for one seed.
    """
    model, low, task = tiny()
    rows: list[dict[str, Any]] = []
    for seed in range(seeds):
        generations = generations_of(low, task, seed)
        new = first_asked(generations)
        part, new_part = generations[::every], new[::every]
        asked, asked_part, new_asked, new_asked_part = (
            sum(map(len, g)) for g in (generations, part, new, new_part)
        )
        evaluators: dict[str, Evaluator] = {}

        def default() -> None:
            evaluators["default"] = ours(low, task, generations)  # noqa: B023

        ways: dict[str, Callable[[], Any]] = {
            "1 field's loop, float32": partial(field_loop, model, task, part),
            "2 field's loop, bfloat16": partial(field_loop, low, task, part),
            "3 copy and slice, float32": partial(sliced_loop, model, task, part),
            "4a cache and batches": partial(ours, model, task, new_part, batching="masked"),
            "4b shared layers, heads left out": partial(
                ours, model, task, new_part, reuse_memory=0
            ),
            "4d bfloat16": default,
        }
        if seed == 0:
            ways["4c states kept"] = partial(ours, model, task, generations)
        scales = dict.fromkeys("123", asked / asked_part)
        scales |= dict.fromkeys(("4a", "4b"), new_asked / new_asked_part)
        scaled = {name: s[0] * scales.get(name.split()[0], 1) for name, s in timed(ways, 1).items()}
        best = evaluators["default"].accounting
        rows.append(
            {
                "seed": seed,
                "asked": asked,
                "computed": best.forward_evaluations,
                "layers_computed": best.layers_computed / best.layers,
                "outside_forward": best.seconds_outside
                / (best.seconds_outside + best.seconds_forward),
                "seconds": scaled,
            }
        )
        print(rows[-1], flush=True)
    first, second, last = "1 field's loop, float32", "2 field's loop, bfloat16", "4d bfloat16"
    return {
        "loops_1_to_3_and_4a_4b": f"every {every}th generation, scaled up",
        "runs": rows,
        "loop_1_over_ours": spread([r["seconds"][first] / r["seconds"][last] for r in rows]),
        "loop_2_over_ours": spread([r["seconds"][second] / r["seconds"][last] for r in rows]),
    }


def distinct(rounds: int) -> dict[str, Any]:
    """Chromosomes at random, new ones in every round; no state is kept from one to the next."""
    found: dict[str, Any] = {}
    for name, (model, low, task), count in (("builtin:tiny", tiny(), 10), ("12 x 768", wide(), 4)):
        random.seed(0)
        genes, tokens = len(head_map(model)), len(task) * task.seqlen
        evaluators = {share: Evaluator(low, task, reuse_memory=0) for share in (0.0, 0.25, 0.5)}
        for evaluator in evaluators.values():
            evaluator.metrics([random_genes(genes, 0.9)])  # what is done once is done
        seconds: dict[str, list[float]] = {}
        for _ in range(rounds):
            several = {
                share: [random_genes(genes, share) for _ in range(count)] for share in (0.25, 0.5)
            }
            ways: dict[str, Callable[[], Any]] = {
                "bare products, dense": partial(bare_products, low, tokens, count),
                "eager bfloat16": partial(field_loop, low, task, [several[0.25]]),
                "ours, dense": partial(dense_passes, evaluators[0.0], count),
                "ours, 25 % removed": partial(evaluators[0.25].metrics, several[0.25]),
                "ours, 50 % removed": partial(evaluators[0.5].metrics, several[0.5]),
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
    """Evaluations of `builtin:tiny` with and without rotations on copies and losses in blocks.

    Processor time beside the time on the wall: it does not count other programs, nor threads that
    wait where `OMP_WAIT_POLICY=passive` lets them sleep.
    """
    _, low, task = tiny()
    found: dict[str, Any] = {}
    for threads in (1, torch.get_num_threads()):
        torch.set_num_threads(threads)
        evaluator = Evaluator(low, task, reuse_memory=0)
        genes = len(evaluator.head_map)
        evaluator.metrics([random_genes(genes, 0.9)])
        copies, block = evaluator.runner._rotations, likelihood._MOST_ON_CPU
        ways = {"neither": ([], 2**62), "rotations": (copies, 2**62), "losses": ([], block)}
        ways["both"] = (copies, block)
        wall: dict[str, list[float]] = {way: [] for way in ways}
        processor: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            one, metrics = random_genes(genes, 0.25), set[float]()
            for way, (evaluator.runner._rotations, likelihood._MOST_ON_CPU) in ways.items():
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


def dense_passes(evaluator: Evaluator, count: int) -> None:
    """The model with all its heads, as often as asked: what is known of it is forgotten."""
    for _ in range(count):
        evaluator.clear()
        evaluator.metric([1] * len(evaluator.head_map))


def memory() -> dict[str, Any]:
    """The most bytes that a generation allocates, at 4,096 calibration tokens and 8 times that."""
    found: dict[str, Any] = {}
    for samples in (32, 256):
        evaluator = Evaluator.from_pretrained(
            device="cpu", samples=samples, heldout_samples=1, reuse_memory=0.1
        )
        genes = len(evaluator.head_map)
        evaluator.metrics([random_genes(genes, 0.9)])
        several = [random_genes(genes, 0.25) for _ in range(10)]
        peak = peak_bytes(evaluator.model, lambda: evaluator.metrics(several))  # noqa: B023
        found[f"{samples * 128} tokens"] = peak
    few, many = found.values()
    return {"peak_bytes_beyond_the_model": found, "ratio": many / few}


def ranking(count: int = 200) -> dict[str, Any]:
    """Kendall's tau between the perplexities of random sub-models in two dtypes."""
    model, low, task = tiny()
    random.seed(0)
    genes = len(head_map(model))
    several = [random_genes(genes, random.uniform(0.02, 0.31)) for _ in range(count)]
    exact, rounded = (Evaluator(m, task).metrics(several) for m in (model, low))
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
    """The processor, and whether it multiplies bfloat16 in hardware."""
    able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    kinds = [name for name in ("avx512_bf16", "amx_bf16") if able.get(name)]
    return f"{able.get('cpu_name', able.get('architecture'))}, {', '.join(kinds) or 'no bfloat16'}"


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["run", "distinct", "elementwise", "memory", "ranking"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--every", type=int, default=20, help="generations for loops 1 to 3, 4a and 4b"
    )
    parser.add_argument("--rounds", type=int, default=5)
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
    main()
