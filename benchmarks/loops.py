"""Alternative ways to evaluate lists of chromosomes, and functions to time them in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn.functional import cross_entropy, linear

from benchmarks.main_job import spread
from benchmarks.workloads import Generations
from sos_deap import Evaluator, head_map, masked, prune
from sos_deap.tasks.language import Perplexity


def plain_loop(model: Any, task: Perplexity, generations: Generations) -> None:
    """Evaluate one candidate at a time: a full forward pass with all logits, without a cache."""
    ids, heads = task.sequences.input_ids.to(model.device), head_map(model)
    with torch.inference_mode():
        for genes in (genes for generation in generations for genes in generation):
            with masked(model, [genes], heads):
                logits = model(ids, use_cache=False).logits[:, :-1].float()
            cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).exp().item()


def sliced_loop(model: Any, task: Perplexity, generations: Generations) -> None:
    """Evaluate one candidate at a time: copy and slice the model for each."""
    ids, heads = task.sequences.input_ids, head_map(model)
    with torch.inference_mode():
        for genes in (genes for generation in generations for genes in generation):
            smaller: Any = prune(model, genes, heads)
            logits = smaller(ids, use_cache=False).logits[:, :-1].float()
            cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).exp().item()


def ours(model: Any, task: Perplexity, generations: Generations, **settings: Any) -> Evaluator:
    """Evaluate one generation at a time with a new evaluator, and return it."""
    evaluator = Evaluator(model, task, **settings)
    for generation in generations:
        evaluator.many(generation)
    return evaluator


def dense_passes(evaluator: Evaluator, count: int) -> None:
    """Evaluate the dense model `count` times, each time with an empty cache."""
    for _ in range(count):
        evaluator.clear()
        evaluator.metric([1] * len(evaluator.gene_map))


def products(model: Any, tokens: int) -> Iterator[tuple[int, int, int]]:
    """Yield the matrix products of one forward pass as (rows, inner, columns)."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            yield tokens, module.in_features, module.out_features


def bare_products(model: Any, tokens: int, times: int) -> None:
    """Compute only the linear layers' products of some sub-models, in the model's dtype."""
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
    """Return the seconds of each function by name; each round calls all of them in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
            print(f"{name}: {seconds[name][-1]:.2f} s", flush=True)
    return seconds


def ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> dict[str, float]:
    """Return median and range over rounds of the time of `slow` over that of `fast`."""
    return spread([a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)])
