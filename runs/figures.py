"""Reproduce the paper's figures 1, 3, 4 and its study of the mutation rate (IV.A) on builtin:tiny.

    python -m runs.figures sparsities [--evaluations 1000]  # searches of figure 1
    python -m runs.figures speeds                           # times their results
    python -m runs.figures study [--seeds 3]                # data of figures 3 and 4
    python -m runs.figures                                  # draws the figures from the CSV files

All steps write to runs/results/figures/: CSV files, and the figures as PNG and SVG. Run `speeds` on
an idle machine. Figures 3, 4 and the study use `sos-repaired` with its defaults, which continues at
the maximum sparsity. In figure 1, each search has the tokens of 1,000 evaluations of 8 sequences;
other budgets are written to sparsities_N.csv.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from sos_deap import load, prune
from sos_deap.cli import Parser, run_with_exit_status
from sos_deap.config import parse
from sos_deap.files.atomic import write_csv
from sos_deap.models.measure import measure
from sos_deap.plan import evaluator_of, plan_of, search
from sos_deap.presets import PRESETS
from sos_deap.report.figures import COLOURS, MARKERS, save

RESULTS = Path(__file__).parent / "results" / "figures"
RATES = (0.005, 0.01, 0.02, 0.05, 0.1)
SPARSITIES = (0.1, 0.2, 0.31, 0.4, 0.5)
EVALUATION = 8 * 128  # tokens
BEST = {"algorithm": PRESETS["best"]["algorithm"], "task": "kl", **PRESETS["best"]["kl"]}
del BEST["max_evaluations"]
#: The searches of figure 1 with their best settings.
SEARCHES: dict[str, dict[str, Any]] = {
    "sweep (preset best)": BEST,
    "EvoPress": {"algorithm": "evopress", "task": "kl", "samples": 128},
    "Bonsai, by Wanda": {"algorithm": "bonsai,prior=wanda", "task": "kl"},
    "Wanda, one-shot": {"algorithm": "one-shot,prior=wanda", "task": "kl", "samples": 128},
    "paper's GA, repaired": {"algorithm": "sos-repaired"},
}
_PART = 128  # held-out sequences

Row = dict[str, Any]


def searched(**flags: Any) -> tuple[Any, Any, list[Row]]:
    """Run a search; return its evaluator, its best, and all chromosomes with their generation."""
    plan = plan_of(*parse([f"--{name}={value}" for name, value in flags.items()]))
    evaluator = evaluator_of(plan)
    ends: list[int] = []  # number of chromosomes computed up to each generation
    evolution = search(plan, evaluator, lambda *_: ends.append(len(list(evaluator.history()))))
    rows: list[Row] = []
    for i, (genes, metric) in enumerate(evaluator.history()):
        generation = next(number for number, end in enumerate(ends) if i < end)
        rows.append(
            {
                "generation": generation,
                "sparsity": round(evaluator.sparsity(genes), 4),
                evaluator.task.name: round(metric, 4),
            }
        )
    return evaluator, evolution.halloffame[0], rows


def heldout(evaluator: Any, genes: list[int]) -> float:
    """Return the perplexity of a sub-model on held-out text."""
    pruned = prune(evaluator.model, genes)
    perplexity: float = evaluator.metrics_of(pruned, evaluator.heldout)["perplexity"]
    return round(perplexity, 3)


def mutation_study(seeds: int) -> Iterator[Row]:
    """Yield one row per rate and seed; write all chromosomes of the first run at 1 %."""
    for seed in range(seeds):
        for rate in RATES:
            evaluator, best, rows = searched(mutation_rate=rate, seed=seed, heldout_samples=_PART)
            if rate == 0.01 and seed == 0:
                write(RESULTS / "chromosomes.csv", rows)
            reached = (row["generation"] for row in rows if row["sparsity"] > 0.29)
            yield {
                "mutation_rate": rate,
                "seed": seed,
                "sparsity": round(evaluator.sparsity(best), 4),
                "calibration_perplexity": round(evaluator.metric(best), 3),
                "heldout_perplexity": heldout(evaluator, list(best)),
                "dense_heldout_perplexity": heldout(evaluator, [1] * len(best)),
                "median_perplexity": statistics.median(row["perplexity"] for row in rows),
                "first_generation_at_29_percent": next(reached, None),
            }
            print(f"mutation rate {rate:.1%}, seed {seed}: done", flush=True)


def by_sparsity(evaluations: int) -> Iterator[Row]:
    """Yield one row per search and sparsity of figure 1."""
    tokens = evaluations * EVALUATION
    for name, flags in SEARCHES.items():
        for sparsity in SPARSITIES:
            evaluator, best, _ = searched(
                **flags, max_sparsity=sparsity, max_tokens=tokens, heldout_samples=_PART
            )
            yield {
                "search": name,
                "sparsity": round(evaluator.sparsity(best), 4),
                "heldout_perplexity": heldout(evaluator, list(best)),
                "tokens": evaluator.accounting.tokens,
                "chromosome": "".join(map(str, best)),
            }
            print(f"{name}, {sparsity:.0%}: done", flush=True)


def speeds() -> Iterator[Row]:
    """Yield the rows of figure 1 with the prefill speed-up of each sub-model.

    All sub-models are timed in turn, so that other load on the machine affects all equally.
    """
    model, rows = load("builtin:tiny"), read(RESULTS / "sparsities_1000.csv")
    models = {"dense": model}
    for i, row in enumerate(rows):
        models[str(i)] = prune(model, [int(gene) for gene in row["chromosome"]])
    [figures] = measure(models, lengths=[128], new_tokens=0, rounds=400, seconds=300)
    times = {name: of["prefill_seconds"] for name, of in figures["models"].items()}
    for i, row in enumerate(rows):
        yield {**row, "speedup": round(times["dense"] / times[str(i)], 4)}


def write(path: Path, rows: Iterable[Row]) -> None:
    """Write a CSV file with the columns of the first row."""
    table = list(rows)
    write_csv(path, list(table[0]), (list(row.values()) for row in table))


def read(path: Path) -> list[Row]:
    """Read a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def grouped(rows: Iterable[Row], key: str) -> Mapping[str, list[Row]]:
    """Group rows by the value of a column."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row[key]].append(row)
    return groups


def figure_1() -> Figure:
    """Plot perplexity against speed-up."""
    figure, axis = panel("prefill speed-up over the dense model", "perplexity, held-out")
    for i, (name, rows) in enumerate(grouped(read(RESULTS / "speeds.csv"), "search").items()):
        points = [(float(row["speedup"]), float(row["heldout_perplexity"])) for row in rows]
        look: Any = {"color": COLOURS[i], "marker": MARKERS[i], "markersize": 5}
        axis.plot(*zip(*points, strict=True), label=name, **look)
    axis.legend()
    return figure


def figure_3() -> Figure:
    """Plot perplexity against sparsity for all chromosomes."""
    figure, axis = panel("sparsity (proportion of heads removed)", "perplexity, calibration")
    rows = read(RESULTS / "chromosomes.csv")
    axis.scatter(
        [float(row["sparsity"]) for row in rows],
        [float(row["perplexity"]) for row in rows],
        c=[int(row["generation"]) for row in rows],
        s=9,
    )
    figure.colorbar(axis.collections[0], label="generation")
    return figure


def figure_4() -> Figure:
    """Plot the sparsity of new chromosomes by generation."""
    figure, axis = panel("generation", "sparsity of new chromosomes")
    generations = grouped(read(RESULTS / "chromosomes.csv"), "generation")
    numbers = [int(number) for number in generations]
    of = [[float(row["sparsity"]) for row in rows] for rows in generations.values()]
    axis.plot(numbers, [statistics.mean(found) for found in of], color=COLOURS[0], label="mean")
    axis.fill_between(
        numbers,
        [min(found) for found in of],
        [max(found) for found in of],
        color=COLOURS[0],
        alpha=0.2,
        linewidth=0,
        label="range",
    )
    axis.legend()
    return figure


def mutation_rates() -> Figure:
    """Plot held-out perplexity and sparsity by mutation rate."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    rates = grouped(read(RESULTS / "mutation_rates.csv"), "mutation_rate")
    names = [f"{float(rate):.1%}".replace(".0", "") for rate in rates]
    columns = {
        "heldout_perplexity": "held-out perplexity / dense",
        "median_perplexity": "median perplexity of all",
        "sparsity": "sparsity of the best",
    }
    for axis, (column, label) in zip(figure.subplots(1, 3), columns.items(), strict=True):
        for i, rows in enumerate(rates.values()):
            values = [float(row[column]) for row in rows]
            if column == "heldout_perplexity":  # each seed has its own held-out text
                dense_values = (float(row["dense_heldout_perplexity"]) for row in rows)
                values = [value / dense for value, dense in zip(values, dense_values, strict=True)]
            axis.scatter([i] * len(values), values, color=COLOURS[0], alpha=0.5, s=18)
            axis.hlines(statistics.median(values), i - 0.3, i + 0.3, color=COLOURS[1])
        axis.set_xticks(range(len(names)), names)
        axis.set_xlabel("mutation rate")
        axis.set_title(label)
    return figure


#: The CSV file of each figure.
DRAWN: dict[Callable[[], Figure], str] = {
    figure_1: "speeds.csv",
    figure_3: "chromosomes.csv",
    figure_4: "chromosomes.csv",
    mutation_rates: "mutation_rates.csv",
}


def panel(x: str, y: str) -> tuple[Figure, Any]:
    """Create a figure with one panel."""
    figure = Figure(figsize=(5.4, 3.6), layout="constrained")
    axis = figure.subplots()
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    return figure, axis


def main() -> None:
    """Execute one step: search, time, or draw."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "step",
        nargs="?",
        choices=("sparsities", "speeds", "study", "draw"),
        default="draw",
        help="step to execute (draw)",
    )
    parser.add_argument("--seeds", type=int, default=3, help="study: number of seeds (3)")
    parser.add_argument(
        "--evaluations", type=int, default=1000, help="sparsities: budget of each search (1000)"
    )
    given = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    if given.step == "sparsities":
        write(RESULTS / f"sparsities_{given.evaluations}.csv", by_sparsity(given.evaluations))
    elif given.step == "speeds":
        write(RESULTS / "speeds.csv", speeds())
    elif given.step == "study":
        write(RESULTS / "mutation_rates.csv", mutation_study(given.seeds))
    else:
        for draw, data in DRAWN.items():
            if (RESULTS / data).exists():
                save(RESULTS, draw.__name__, draw)
            else:
                print(f"{draw.__name__} is not drawn: {data} does not exist")


if __name__ == "__main__":
    sys.exit(run_with_exit_status(main))
