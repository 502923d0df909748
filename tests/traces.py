"""Record what every search at constant sparsity proposes, for a comparison between versions.

    python -m tests.traces   # writes tests/traces.json

The recorded traces were made when a solution was a number of removed genes, before genes had costs.
"""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

from deap import base, tools

from sos_deap import Chromosome, evolve
from sos_deap.search.chromosome import random_genes
from sos_deap.search.context import SearchContext
from sos_deap.search.limits import Limits
from sos_deap.search.operators import cxBalanced, mutSparsityFlipBit, mutSwap
from sos_deap.search.repairs import limit_sparsity
from tests.spaces import heads

FILE = Path(__file__).with_suffix(".json")
#: Sizes of the layers, S, number of examples, and budget in evaluations.
SPACES: dict[str, tuple[tuple[int, ...], float, int, int]] = {
    "4x4": ((4, 4, 4, 4), 5 / 16, 1, 120),
    "4x4 examples": ((4, 4, 4, 4), 0.34, 64, 150),
    "unequal layers": ((3, 5, 2, 6), 0.4, 8, 90),
    "12x12": ((12,) * 12, 0.31, 32, 400),
}
SEARCHES = (
    "bonsai",
    "bonsai,prior=mine,rounds=3",
    "coarse-to-fine,prior=mine",
    "evopress",
    "greedy",
    "local",
    "local,prior=mine",
    "one-shot",
    "one-shot,prior=mine",
    "pbil",
    "random",
    "sleb",
    "swap",
    "swap,screen=4",
    "sweep",
    "sweep,curve=3",
    "sweep,prior=mine",
    "umda",
    "eaSimple",
)


def trace(search: str, name: str) -> dict[str, Any]:
    """Run a search on a landscape of dependent genes; return a digest of its proposals."""
    sizes, share, examples, budget = SPACES[name]
    draw = random.Random(len(sizes))
    genes = sum(sizes)
    weights = [draw.uniform(0, 2) for _ in range(genes)]
    pairs = [(*draw.sample(range(genes), 2), draw.uniform(-1, 1)) for _ in range(3 * genes)]
    noise = [[draw.uniform(-0.5, 0.5) for _ in range(genes)] for _ in range(examples)]
    asked: list[str] = []
    spent = {"evaluations": 0.0, "tokens": 0.0}

    def evaluate(individual: Any) -> tuple[float]:
        start, stop = individual.examples or (0, examples)
        asked.append("".join(map(str, individual)) + f" {start}-{stop}")
        spent["evaluations"] += (stop - start) / examples
        removed = [gene for gene in range(genes) if not individual[gene]]
        loss = sum(weights[gene] for gene in removed)
        loss += sum(w for a, b, w in pairs if not individual[a] and not individual[b])
        window = noise[start:stop]
        return (-loss - sum(one[gene] for one in window for gene in removed) / len(window),)

    space = heads(sizes, share, examples=examples, priors={"mine": lambda: weights})
    toolbox = base.Toolbox()
    toolbox.register("individual", lambda: Chromosome(random_genes(genes, 0.1)))
    toolbox.register("population", tools.initRepeat, list, toolbox.individual)
    toolbox.register("evaluate", evaluate)
    toolbox.register("mate", cxBalanced)
    toolbox.register("mutate", _mutate)
    toolbox.register("select", tools.selTournament, tournsize=3)
    toolbox.decorate("mutate", limit_sparsity(share))
    toolbox.search = SearchContext(space=space, spent=lambda: spent)
    random.seed(11)
    evolution = evolve(toolbox, search, population=6, limits=Limits(evaluations=budget))
    return {
        "proposals": len(asked),
        "digest": hashlib.sha256("\n".join([*asked, str(random.getstate())]).encode()).hexdigest(),
        "winner": "".join(map(str, evolution.halloffame[0])),
    }


def _mutate(individual: Any) -> Any:
    return mutSwap(mutSparsityFlipBit(individual, 0.05, bias=3)[0])


def traces() -> dict[str, Any]:
    """Return the traces of all searches in all spaces."""
    return {name: {search: trace(search, name) for search in SEARCHES} for name in SPACES}


if __name__ == "__main__":
    FILE.write_text(json.dumps(traces(), indent=1) + "\n")
