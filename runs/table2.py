"""Measure a row of the paper's Table II; write runs/results/table2_NAME.json.

    python -m runs.table2 runs/table2_NAME.yaml [--FLAG VALUE ...]     # flags of sos_deap.run

It runs the search in a temporary folder, then times the dense model and the saved pruned model
alternately on the held-out part. The file contains metrics and seconds before and after pruning,
the removed heads, the settings, and the figures of the paper.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from benchmarks.main_job import spread
from sos_deap import load
from sos_deap.cli import quiet, run_with_exit_status
from sos_deap.config import RunConfig, parse
from sos_deap.errors import InputError
from sos_deap.files.atomic import write_json
from sos_deap.plan import evaluator_of, plan_of
from sos_deap.run import run
from sos_deap.tasks.settings import TaskSettings

RESULTS = Path(__file__).parent / "results"
ROUNDS = 5

#: The paper's Table II; its text gives DistilBERT's times as 267 s and 237 s.
PAPER: dict[str, dict[str, Any]] = {
    "roberta_tweets": {"metric": "accuracy, %", "before": 61.78, "after": 59.69}
    | {"seconds_before": 4.62, "seconds_after": 3.37},
    "distilbert_sst2": {"metric": "accuracy, %", "before": 98.8, "after": 98.1}
    | {"seconds_before": 2.67, "seconds_after": 2.37},
    "gemma_summaries": {"metric": "precision, %", "before": 80.32, "after": 76.94}
    | {"seconds_before": 85, "seconds_after": 72},
    "llama2_wikitext": {"metric": "perplexity", "before": 5.1, "after": 6.5}
    | {"megabytes_before": 6676.51, "megabytes_after": 6042.51},
}


def row(arguments: list[str]) -> None:
    """Run a recipe and write its JSON file."""
    if not arguments or not arguments[0].endswith(".yaml"):
        raise InputError("the first argument must be a recipe: give runs/table2_NAME.yaml")
    name = Path(arguments[0]).stem.removeprefix("table2_")
    paper = PAPER.get(name.removesuffix("_standin"))
    if paper is None:
        raise InputError(f"{arguments[0]} is not a row of Table II: known are {', '.join(PAPER)}")
    config, settings = parse(arguments)
    quiet()
    with tempfile.TemporaryDirectory() as scratch:
        config = replace(config, output_dir=config.output_dir or str(Path(scratch, "run")))
        started = time.perf_counter()
        folder = run(config, settings)
        seconds = time.perf_counter() - started
        result = json.loads((folder / "result.json").read_text())
        before, after = held_out_seconds(config, settings, folder / "pruned")
    RESULTS.mkdir(exist_ok=True)
    sides = {"before": result["dense"], "after": result["best"]}
    write_json(
        RESULTS / f"table2_{name}.json",
        {
            "paper": paper,
            "seconds_of_the_search_and_all": round(seconds, 1),
            "held_out_seconds": {"before": before, "after": after},
            **sides,
            "search": result["search"],
            "data": result["data"],
            "settings": changed_settings(config, settings),
            "dtype": result["dtype"],
            "versions": result["versions"],
        },
    )
    print(
        f"held-out part, medians of {ROUNDS}: "
        f"dense {before['median']:.2f} s, pruned {after['median']:.2f} s"
    )


def held_out_seconds(
    config: RunConfig, settings: TaskSettings, pruned_folder: Path
) -> tuple[dict[str, float], dict[str, float]]:
    """Time the dense and the pruned model alternately on the held-out part, in seconds."""
    evaluator = evaluator_of(plan_of(config, settings))
    assert evaluator.heldout is not None
    dense = evaluator.model
    pruned: Any = load(pruned_folder, dtype=dense.dtype)
    models = [dense, pruned.to(dense.device)]
    times: list[list[float]] = [[], []]
    for round_ in range(ROUNDS + 1):
        for model, seconds in zip(models, times, strict=True):
            started = time.perf_counter()
            evaluator.metrics_of(model, evaluator.heldout)
            if round_:  # the first round is a warm-up
                seconds.append(time.perf_counter() - started)
    before, after = map(spread, times)
    return before, after


def changed_settings(config: RunConfig, settings: TaskSettings) -> dict[str, Any]:
    """Return the settings that differ from the defaults; paths with their last two parts only."""
    values = asdict(config) | asdict(settings)
    defaults = {f.name: f.default for part in (RunConfig, TaskSettings) for f in fields(part)}
    return {
        name: "/".join(Path(value).parts[-2:]) if isinstance(value, str) else value
        for name, value in values.items()
        if value != defaults[name] and name != "output_dir"
    }


if __name__ == "__main__":
    sys.exit(run_with_exit_status(lambda: row(sys.argv[1:])))
