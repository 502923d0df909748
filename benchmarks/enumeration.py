"""How often does a search find the true optimum? On a model small enough to try every sub-model.

    python -m benchmarks.enumeration --model DIR --dataset DIR [--unit group] [--seeds 40]

Scores every chromosome of the sparsity on the same calibration tokens by the divergence from the
dense model, then runs each search with a budget of a share of them, 5 % unless told, with many
seeds; an evaluation counts as often as it is asked for. Reports how often a search found the
optimum, and where what it found ranks among all. Writes results/enumeration.json.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
from collections.abc import Sequence
from functools import partial
from itertools import combinations, islice
from pathlib import Path
from typing import Any

from deap import base, tools

from sos_deap import Chromosome, Evaluator, evolve
from sos_deap.artifacts import versions
from sos_deap.files.atomic import write_json
from sos_deap.models.importance import IMPORTANCES
from sos_deap.search.limits import Limits
from sos_deap.search.space import Space, most_removed

RESULTS = Path(__file__).parent / "results"
SEARCHES = (
    "sweep,prior=wanda",
    "sweep",
    "swap",
    "evopress",
    "umda",
    "greedy",
    "one-shot",
    "random",
)
_BLOCK = 2000  # chromosomes scored at once; neighbours share their first layers


def every(genes: int, removed: int) -> Any:
    """All chromosomes that remove so many genes, neighbours beside each other."""
    for gone in combinations(range(genes), removed):
        yield [int(gene not in gone) for gene in range(genes)]


def enumerated(evaluator: Evaluator, space: Space) -> dict[tuple[int, ...], float]:
    """The fitness of every chromosome of the sparsity."""
    chromosomes = every(len(space), space.removed)
    table: dict[tuple[int, ...], float] = {}
    while block := list(islice(chromosomes, _BLOCK)):
        for genes, (fitness,) in zip(block, evaluator.many(block), strict=True):
            table[tuple(genes)] = fitness
        print(f"{len(table)} of {math.comb(len(space), space.removed)}", flush=True)
    return table


def found_by(
    search: str,
    space: Space,
    known: dict[tuple[int, ...], float],
    evaluator: Evaluator,
    budget: int,
) -> float:
    """The fitness of what a search finds."""

    def evaluate(individual: Sequence[int]) -> tuple[float]:
        genes = tuple(individual)
        if genes not in known:  # of another sparsity, on the way
            known[genes] = evaluator(genes)[0]
        return (known[genes],)

    toolbox = base.Toolbox()
    toolbox.register("individual", space.random)
    toolbox.register("population", tools.initRepeat, list, toolbox.individual)
    toolbox.register("evaluate", evaluate)
    toolbox.space = space
    fitness: float = (
        evolve(toolbox, search, limits=Limits(evaluations=budget)).halloffame[0].fitness.values[0]
    )
    return fitness


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--calibration_split")
    parser.add_argument("--unit", default="group")
    parser.add_argument("--sparsity", type=float, default=0.31)
    parser.add_argument("--share", type=float, default=0.05, help="of all chromosomes: the budget")
    parser.add_argument("--seeds", type=int, default=40)
    given = parser.parse_args()
    evaluator = Evaluator.from_pretrained(
        given.model,
        dataset=given.dataset,
        calibration_split=given.calibration_split,
        heldout_samples=1,
        task="kl",
        objective="metric",
        unit=given.unit,
        seqlen=128,
        samples=8,
    )
    genes = evaluator.head_map.genes_per_layer
    space = Space(
        genes,
        most_removed(sum(genes), given.sparsity, evaluator.sparsity),
        individual=Chromosome,
        priors={name: partial(evaluator.importance, name) for name in IMPORTANCES},
    )
    table = enumerated(evaluator, space)
    ranked, known = sorted(table.values(), reverse=True), dict(table)
    budget = int(given.share * len(table))
    searches = {}
    for search in SEARCHES:
        ranks = []
        for seed in range(given.seeds):
            random.seed(seed)
            ranks.append(1 + ranked.index(found_by(search, space, known, evaluator, budget)))
        searches[search] = {
            "found the optimum": ranks.count(1) / given.seeds,
            "rank, median": statistics.median(ranks),
            "rank, worst": max(ranks),
        }
        print(search, searches[search], flush=True)
    write_json(
        RESULTS / "enumeration.json",
        {
            "model": Path(given.model).name,
            "dataset": Path(given.dataset).name,
            "genes": sum(genes),
            "removed": space.removed,
            "chromosomes": len(table),
            "budget": budget,
            "seeds": given.seeds,
            "kl": {"best": -ranked[0], "second": -ranked[1], "median": -statistics.median(ranked)},
            "searches": searches,
            "data": evaluator.task.describe(),
            "versions": versions(),
        },
    )


if __name__ == "__main__":
    main()
