"""Models, texts and lists of chromosomes for benchmarks of evaluation time."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from deap import base, tools
from transformers import LlamaConfig, LlamaForCausalLM

from sos_deap import (
    Chromosome,
    Evaluator,
    cxFitnessWeighted,
    evolve,
    limit_sparsity,
    mutSparsityFlipBit,
    register,
)
from sos_deap.search.chromosome import random_genes
from sos_deap.tasks.data.sequences import Sequences
from sos_deap.tasks.language import Perplexity

Generations = list[list[list[int]]]  # the chromosomes that each generation requests
Map = Callable[[Callable[..., Any], Sequence[Any]], list[Any]]


def generations_of(model: Any, task: Perplexity, seed: int) -> Generations:
    """Return the chromosomes that a run of the paper's algorithm requests, by generation."""
    random.seed(seed)
    evaluator, requested = Evaluator(model, task), list[list[list[int]]]()
    toolbox = base.Toolbox()
    register(toolbox, evaluator)
    evaluate = partial(evaluator.many, max_sparsity=0.31)
    toolbox.register("map", _recorded(requested, lambda _, individuals: evaluate(individuals)))
    evolve(toolbox, "sos-repaired", population=10, generations=100, max_sparsity=0.31)
    return requested


def lookup_generations(genes: int, seed: int = 0) -> Generations:
    """Return the chromosomes of a run whose fitness needs no model: a random cost per head."""
    random.seed(seed)
    costs, requested = [random.random() for _ in range(genes)], list[list[list[int]]]()
    toolbox = base.Toolbox()
    bound = limit_sparsity(0.31)
    toolbox.register("individual", lambda: Chromosome(random_genes(genes, 0.05)))
    toolbox.register("population", tools.initRepeat, list, toolbox.individual)
    toolbox.register("select", tools.selTournament, tournsize=3)
    toolbox.register("mate", bound(cxFitnessWeighted))
    toolbox.register("mutate", bound(partial(mutSparsityFlipBit, indpb=0.01)))
    toolbox.register(
        "evaluate", lambda one: (-sum(c for c, g in zip(costs, one, strict=True) if g),)
    )
    toolbox.register("map", _recorded(requested, lambda *called: list(map(*called))))
    evolve(toolbox, "sos-repaired", population=10, generations=100, max_sparsity=0.31)
    return requested


def _recorded(requested: Generations, evaluate: Map) -> Map:
    """Return a map for a toolbox which also appends the chromosomes of each call to `requested`."""

    def recorded(function: Callable[..., Any], individuals: Sequence[Any]) -> list[Any]:
        if individuals:
            requested.append([list(individual) for individual in individuals])
        return evaluate(function, individuals)

    return recorded


def first_asked(generations: Generations) -> Generations:
    """Return each generation's chromosomes that are no cache hits."""
    known = set[bytes]()
    new = []
    for generation in generations:
        distinct_ones = {bytes(genes): genes for genes in generation}
        new.append([genes for key, genes in distinct_ones.items() if key not in known])
        known |= distinct_ones.keys()
    return new


def tiny() -> tuple[Any, Any, Perplexity]:
    """Return the embedded model in float32 and in bfloat16, and its default calibration text."""
    evaluator = Evaluator.from_pretrained(device="cpu", dtype="float32", heldout_samples=1)
    task: Any = evaluator.task
    return evaluator.model, copy.deepcopy(evaluator.model).bfloat16(), task


def wide() -> tuple[Any, Any, Perplexity]:
    """Return a random Llama of 12 layers x 768 with 12 heads in both dtypes, and 2,048 tokens."""
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
