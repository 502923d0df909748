"""Measure the speed-up of engines over one process; write results/engines.json.

    python -m benchmarks.engines [process scoop ray] [--workers 2] [--samples 48] [--rounds 7]

The same new chromosomes are evaluated alternately by this process with one thread and by workers
with one thread each. The overhead of messages is measured with tasks that sleep. Run it
on a machine with at least as many idle cores as workers.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from sos_deap import Evaluator, open_engine
from sos_deap.cards import versions
from sos_deap.cli import Parser, quiet, run_with_exit_status
from sos_deap.engines import ENGINES
from sos_deap.engines.launch import launch
from sos_deap.errors import WorkerLostError
from sos_deap.files.atomic import write_json

RESULTS = Path(__file__).parent / "results"
_SLEEP = 0.05  # seconds, long enough for SCOOP to distribute the tasks
_REMOVED = 0.3


def evaluator_of(samples: int) -> Evaluator:
    """Return an evaluator of the embedded model and text, without cached hidden states."""
    return Evaluator.from_pretrained("builtin:tiny", samples=samples, reuse_memory=0.0)


def chromosomes(evaluator: Evaluator, count: int, draw: random.Random) -> list[list[int]]:
    """Return random chromosomes; their sub-models share nearly no layers."""
    return [
        [int(draw.random() > _REMOVED) for _ in range(len(evaluator.gene_map))]
        for _ in range(count)
    ]


def seconds(evaluator: Evaluator, batch: list[list[int]]) -> float:
    """Return the seconds of evaluating chromosomes."""
    started = time.perf_counter()
    evaluator.many(batch)
    return time.perf_counter() - started


def overhead(engine: Any) -> float:
    """Return the median overhead of 20 rounds of one task per worker, in seconds."""
    times = []
    for _ in range(20):
        started = time.perf_counter()
        futures = [engine.submit(time.sleep, _SLEEP) for _ in range(engine.workers)]
        for future in futures:
            future.result()
        times.append(time.perf_counter() - started - _SLEEP)
    return statistics.median(times)


def measured(name: str, workers: int, samples: int, rounds: int) -> dict[str, Any]:
    """Measure one engine and this process alternately."""
    torch.set_num_threads(1)
    quiet()
    serial, parallel = evaluator_of(samples), evaluator_of(samples)
    engine = ENGINES[name](workers)
    message = overhead(engine)
    engine.close()
    open_engine(parallel, name, workers)
    draw, count = random.Random(0), 8 * workers
    for evaluator in (serial, parallel):
        evaluator.many(chromosomes(evaluator, 2 * workers, draw))  # one-time work
    pairs = []
    for _ in range(rounds):
        batch = chromosomes(serial, count, draw)
        pairs.append((seconds(serial, batch), seconds(parallel, batch)))
    parallel.close_engine()
    ratios = [one / several for one, several in pairs]
    return {
        "workers": workers,
        "seconds_an_evaluation": statistics.median(one / count for one, _ in pairs),
        "times_as_fast": {
            "median": statistics.median(ratios),
            "min": min(ratios),
            "max": max(ratios),
        },
        "milliseconds_a_round": 1000 * message,
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_with_exit_status(lambda: compare(parsed(arguments)))


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the flags."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "engines", nargs="*", default=list(ENGINES), help="engines to measure (all)"
    )
    parser.add_argument("--workers", type=int, default=2, help="workers of each engine (2)")
    parser.add_argument("--samples", type=int, default=48, help="sequences per evaluation (48)")
    parser.add_argument("--rounds", type=int, default=7, help="alternating rounds (7)")
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    flags: argparse.Namespace = parser.parse_args(arguments)
    return flags


def compare(flags: argparse.Namespace) -> None:
    """Measure each engine in a separate process; with --into, measure one in this process."""
    numbers = (flags.workers, flags.samples, flags.rounds)
    if flags.into is not None:
        write_json(flags.into, measured(flags.engines[0], *numbers))
        return
    result: dict[str, Any] = {}
    for name in flags.engines:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "figures.json"
            names = ("workers", "samples", "rounds")
            given = [name, f"--into={path}"]
            given += [f"--{key}={value}" for key, value in zip(names, numbers, strict=True)]
            if name == "scoop":
                status = launch("benchmarks.engines:main", given, flags.workers)
            else:
                command = [sys.executable, "-m", "benchmarks.engines", *given]
                status = subprocess.run(command, check=False).returncode
            if status:
                raise WorkerLostError(f"the process of {name} ended with status {status}")
            result[name] = json.loads(path.read_text())
        print(name, json.dumps(result[name], indent=1), flush=True)
    machine = {"cores": os.cpu_count(), "samples": flags.samples, "rounds": flags.rounds}
    write_json(RESULTS / "engines.json", {**result, **machine, "versions": versions()})


if __name__ == "__main__":
    sys.exit(main())
