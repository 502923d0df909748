"""Run DEAP's eaSimple on SCOOP's processes: ``python -m scoop -n 4 examples/deap_scoop.py``.

Each process loads the model once; the processes exchange only chromosomes and sums.
"""

from __future__ import annotations

import random

from deap import algorithms, base, tools

import sos_deap


def main() -> None:
    """Prune the embedded model."""
    random.seed(0)
    evaluate = sos_deap.Evaluator.from_pretrained("builtin:tiny", samples=4)
    sos_deap.open_engine(evaluate, "scoop")
    toolbox = base.Toolbox()
    sos_deap.register(toolbox, evaluate)
    best = tools.HallOfFame(1)
    algorithms.eaSimple(
        toolbox.population(n=8),
        toolbox,
        cxpb=0.9,
        mutpb=1.0,
        ngen=5,
        stats=sos_deap.statistics(),
        halloffame=best,
    )
    removed = f"{best[0].count(0)} of {len(best[0])} heads removed"
    print(f"perplexity {evaluate.metric(best[0]):.2f} with {removed}")


if __name__ == "__main__":
    main()
