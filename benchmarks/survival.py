"""Does a run survive SIGKILL at any moment? Killed at random, resumed, and compared.

    python -m benchmarks.survival [--kills 20] [--seed 0]    # 12 busy minutes, into results/

Each process is killed at a moment drawn uniformly from the duration of the last one that nobody
disturbed, from its start to its end: loading, writing and pruning too. Every third run is killed
again while it goes on, and every sixth a third time; a process that has ended before its moment is
not killed, so a run may come without. Where a kill left no run in the folder, the
next process starts anew, else it resumes. What is there at last is compared with what the
undisturbed run left: `result.json` but for seconds and counts of work, chromosome, evaluations,
front and weights to the byte.

Writes results/survival.json: the moments, what the folder held then, the outcome of each, and how
many evaluations were taken over from the journal instead of being computed again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from sos_deap.files.atomic import write_json

RESULT = Path(__file__).parent / "results" / "survival.json"

#: Of a run whose search takes some seconds. The last three of what it does, pruning, timing both
#: models and drawing the page, take about as long.
FLAGS = [
    "--generations=12",
    "--population_size=6",
    "--samples=24",
    "--seqlen=16",
    "--heldout_samples=8",
    "--seed=0",
]

#: Counts of the last process's work, of which one that goes on has less.
WORK = ("layers_computed", "flops", "out_of_memory")

#: What must be the same to the byte.
FILES = ("chromosome.json", "evaluations.csv", "pareto.csv", "pruned/model.safetensors")


def started(folder: Path) -> subprocess.Popen[bytes]:
    """A process that begins the run, or goes on with what is in its folder."""
    holds_one = (folder / "config.json").exists()
    given = [f"--resume={folder}"] if holds_one else [*FLAGS, f"--output_dir={folder}"]
    return subprocess.Popen(
        [sys.executable, "-m", "sos_deap.run", "--quiet", *given],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )


def killed(folder: Path, moment: float) -> bool:
    """Start a process and kill it after so many seconds; whether it was still there."""
    process = started(folder)
    try:
        process.wait(timeout=moment)
    except subprocess.TimeoutExpired:
        process.kill()
    return process.wait() < 0


def lines(folder: Path) -> list[bytes]:
    """The whole lines of the journal that are evaluations."""
    path = folder / "journal.jsonl"
    written = path.read_bytes().splitlines(keepends=True)[1:] if path.exists() else []
    return [line for line in written if line.endswith(b"\n")]


def evaluations(folder: Path) -> list[tuple[str, str]]:
    """The chromosomes in the journal, each with the examples that it was scored on."""
    contents = [json.loads(line.partition(b" ")[2]) for line in lines(folder)]
    return [(genes, str(line["examples"])) for line in contents for genes in line["sums"]]


def stage(folder: Path) -> str:
    """How far the run in a folder has come."""
    for name, what in (
        ("report.html", "complete"),
        ("measured.json", "drawing the page"),
        ("result.json", "timing the models"),
        ("pruned", "writing the result"),
        ("chromosome.json", "pruning"),
        ("logbook.csv", "writing tables"),
        ("journal.jsonl", "searching"),
    ):
        if (folder / name).exists():
            return what
    return "loading"


def outcome(folder: Path) -> dict[str, Any]:
    """What a complete run left that must not depend on how often it was stopped."""
    result = json.loads((folder / "result.json").read_text())
    search = {
        name: value
        for name, value in result["search"].items()
        if not name.startswith("seconds") and name not in WORK
    }
    files = {name: (folder / name).read_bytes() for name in FILES}
    return {**result, "search": search, "files": files}


def undisturbed(folder: Path) -> tuple[float, int]:
    """Let a process go on to its end; its seconds and exit status."""
    begun = time.perf_counter()
    status = started(folder).wait()
    return time.perf_counter() - begun, status


def one_run(folder: Path, shares: list[float], whole: float) -> dict[str, Any]:
    """Start a run, kill it at these shares of a whole run's seconds, and let it end."""
    kills = []
    for share in shares:
        moment = share * whole
        if not killed(folder, moment):
            break  # it was faster than the one before, and has ended
        kept = evaluations(folder)
        kills.append(
            {
                "seconds": moment,
                "share": share,
                "stage": stage(folder),
                "evaluations_kept": len(kept),
            }
        )
        if kills[-1]["stage"] == "complete":
            break
    seconds, status = (None, 0) if stage(folder) == "complete" else undisturbed(folder)
    computed = Counter(evaluations(folder))
    return {
        "kills": kills,
        "status": status,
        "seconds_of_the_last_process": seconds,
        "evaluations": len(computed),
        "evaluations_computed_twice": sum(computed.values()) - len(computed),
    }


def main() -> None:
    """Kill as many runs as asked, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        first = Path(scratch) / "whole"
        whole, status = undisturbed(first)
        assert status == 0
        expected = outcome(first)
        while sum(len(run["kills"]) for run in runs) < arguments.kills:
            number = len(runs)
            kills = 1 + (number % 3 == 0) + (number % 6 == 0)
            folder = Path(scratch) / str(number)
            run = one_run(folder, [rng.random() for _ in range(kills)], whole)
            whole = run["seconds_of_the_last_process"] or whole  # others use the machine too
            run["same"] = run["status"] == 0 and outcome(folder) == expected
            runs.append(run)
            print(json.dumps(run), flush=True)
    kills_of = [kill for run in runs for kill in run["kills"]]
    summary = {
        "flags": FLAGS,
        "seed": arguments.seed,
        "runs": len(runs),
        "kills": len(kills_of),
        "kills_by_stage": dict(Counter(kill["stage"] for kill in kills_of)),
        "same_as_undisturbed": sum(run["same"] for run in runs),
        "evaluations_saved": sum(kill["evaluations_kept"] for kill in kills_of),
        "evaluations_computed_twice": sum(run["evaluations_computed_twice"] for run in runs),
    }
    write_json(RESULT, {**summary, "each": runs})
    print(json.dumps(summary, indent=2))
    sys.exit(summary["same_as_undisturbed"] < len(runs))


if __name__ == "__main__":
    main()
