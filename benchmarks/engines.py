"""How much faster are workers? Evaluations by two or more, against one process with one thread.

    python -m benchmarks.engines [process scoop ray] [--workers 2] [--samples 48] [--rounds 7]

The same new chromosomes go, in turn, through this process with one thread, and through workers
with one thread each. What a message costs is measured with tasks that sleep. Writes
results/engines.json. On as many cores as workers, that have nothing else to do.
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
from sos_deap.artifacts import versions
from sos_deap.cli import quiet
from sos_deap.engines import ENGINES
from sos_deap.engines.launch import launch
from sos_deap.files.atomic import write_json

RESULTS = Path(__file__).parent / "results"
_SLEEP = 0.05  # long enough for SCOOP to give it away
_REMOVED = 0.3


def evaluator_of(samples: int) -> Evaluator:
    """On the embedded model and text."""
    return Evaluator.from_pretrained("builtin:tiny", samples=samples, reuse_memory=0.0)


def chromosomes(evaluator: Evaluator, count: int, draw: random.Random) -> list[list[int]]:
    """Random ones, which share next to nothing."""
    return [
        [int(draw.random() > _REMOVED) for _ in range(len(evaluator.head_map))]
        for _ in range(count)
    ]


def seconds(evaluator: Evaluator, some: list[list[int]]) -> float:
    """What it takes to evaluate chromosomes."""
    started = time.perf_counter()
    evaluator.many(some)
    return time.perf_counter() - started


def overhead(engine: Any) -> float:
    """Seconds that a round of one task a worker takes beyond the task; the median of 20."""
    times = []
    for _ in range(20):
        started = time.perf_counter()
        futures = [engine.submit(time.sleep, _SLEEP) for _ in range(engine.workers)]
        for future in futures:
            future.result()
        times.append(time.perf_counter() - started - _SLEEP)
    return statistics.median(times)


def measured(name: str, workers: int, samples: int, rounds: int) -> dict[str, Any]:
    """One engine against this process alone, alternating."""
    torch.set_num_threads(1)
    quiet()
    alone, spread = evaluator_of(samples), evaluator_of(samples)
    engine = ENGINES[name](workers)
    message = overhead(engine)
    engine.close()
    open_engine(spread, name, workers)
    draw, count = random.Random(0), 8 * workers
    for evaluator in (alone, spread):
        evaluator.many(chromosomes(evaluator, 2 * workers, draw))  # what is done once
    pairs = []
    for _ in range(rounds):
        some = chromosomes(alone, count, draw)
        pairs.append((seconds(alone, some), seconds(spread, some)))
    spread.close_engine()
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
    """Measure each engine in a process of its own; one of them, if told where to write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engines", nargs="*", default=list(ENGINES))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    flags = parser.parse_args(arguments)
    numbers = (flags.workers, flags.samples, flags.rounds)
    if flags.into is not None:
        write_json(flags.into, measured(flags.engines[0], *numbers))
        return 0
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
                return status
            result[name] = json.loads(path.read_text())
        print(name, json.dumps(result[name], indent=1), flush=True)
    machine = {"cores": os.cpu_count(), "samples": flags.samples, "rounds": flags.rounds}
    write_json(RESULTS / "engines.json", {**result, **machine, "versions": versions()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
