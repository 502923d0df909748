"""Measure how often searches find the true optimum; write results/enumeration.json.

    python -m benchmarks.enumeration --model DIR --dataset DIR [--unit group] [--seeds 40]

It scores every chromosome of one sparsity on the same calibration tokens by the divergence from the
dense model. Then it runs each search with many seeds and a budget of 5 % of these evaluations,
where repeated evaluations count again. The results are how often a search found the optimum, and
the ranks of its solutions among all chromosomes.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from itertools import combinations, islice
from pathlib import Path
from typing import Any

from deap import base, tools

from sos_deap import Chromosome, Evaluator, evolve
from sos_deap.cards import versions
from sos_deap.cli import Parser, run_with_exit_status
from sos_deap.files.atomic import write_json
from sos_deap.models.importance import IMPORTANCES
from sos_deap.search.context import SearchContext
from sos_deap.search.limits import Limits
from sos_deap.search.space import Part, Space

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
_BLOCK = 2000  # chromosomes per call of the evaluator; neighbours share their first layers


def every(genes: int, removed: int) -> Any:
    """Yield all chromosomes that remove this number of genes, in lexicographic order."""
    for zeros in combinations(range(genes), removed):
        yield [int(gene not in zeros) for gene in range(genes)]


def enumerated(evaluator: Evaluator, space: Space) -> dict[tuple[int, ...], float]:
    """Return the fitness of every chromosome at the sparsity of the space."""
    removed = space.steps([1] * len(space))
    chromosomes = every(len(space), removed)
    table: dict[tuple[int, ...], float] = {}
    while block := list(islice(chromosomes, _BLOCK)):
        for genes, (fitness,) in zip(block, evaluator.many(block), strict=True):
            table[tuple(genes)] = fitness
        total = math.comb(len(space), removed)
        print(f"{len(table):,} of {total:,} chromosomes evaluated", flush=True)
    return table


def found_by(
    search: str,
    space: Space,
    known: dict[tuple[int, ...], float],
    evaluator: Evaluator,
    budget: int,
) -> float:
    """Run a search with a table of known fitness; return the fitness of its solution."""

    def evaluate(individual: Sequence[int]) -> tuple[float]:
        genes = tuple(individual)
        if genes not in known:  # at another sparsity, during the search
            known[genes] = evaluator(genes)[0]
        return (known[genes],)

    toolbox = base.Toolbox()
    toolbox.register("individual", space.random)
    toolbox.register("population", tools.initRepeat, list, toolbox.individual)
    toolbox.register("evaluate", evaluate)
    toolbox.search = SearchContext(space=space)
    fitness: float = (
        evolve(toolbox, search, limits=Limits(evaluations=budget)).halloffame[0].fitness.values[0]
    )
    return fitness


def summary(ranks: list[int]) -> dict[str, float]:
    """Return statistics of the ranks of solutions among all chromosomes; the optimum has rank 1."""
    return {
        "found the optimum": ranks.count(1) / len(ranks),
        "rank, median": statistics.median(ranks),
        "rank, worst": max(ranks),
    }


def parsed() -> argparse.Namespace:
    """Return the flags."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a small causal model")
    parser.add_argument("--dataset", required=True, help="data set, as for sos_deap.run")
    parser.add_argument("--calibration_split", help="default: train, else validation")
    parser.add_argument("--unit", default="group", help="a gene removes a head or a group (group)")
    parser.add_argument("--sparsity", type=float, default=0.31, help="of the genes (0.31)")
    parser.add_argument(
        "--share", type=float, default=0.05, help="budget as a proportion of all chromosomes (0.05)"
    )
    parser.add_argument("--seeds", type=int, default=40, help="runs of each search (40)")
    flags: argparse.Namespace = parser.parse_args()
    return flags


def main() -> None:
    """Enumerate, run the searches, print their results and write the JSON file."""
    given = parsed()
    evaluator = Evaluator.from_pretrained(
        given.model,
        dataset=given.dataset,
        calibration_split=given.calibration_split,
        heldout_samples=1,
        task="kl",
        objective="metric",
        genes=given.unit + "s",
        seqlen=128,
        samples=8,
    )
    space = Space(
        tuple(Part(part.layer, part.kind, part.size) for part in evaluator.gene_map.parts),
        max_sparsity=given.sparsity,
        sparsity=evaluator.sparsity,
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
        searches[search] = summary(ranks)
        print(search, searches[search], flush=True)
    write_json(
        RESULTS / "enumeration.json",
        {
            "model": Path(given.model).name,
            "dataset": Path(given.dataset).name,
            "genes": len(space),
            "removed": space.steps([1] * len(space)),
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
    sys.exit(run_with_exit_status(main))
