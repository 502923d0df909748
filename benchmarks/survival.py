"""Kill runs with SIGKILL at random moments, resume them and compare; write results/survival.json.

    python -m benchmarks.survival [--kills 20] [--seed 0]    # about 12 minutes on 2 CPU cores

Each process is killed at a moment drawn uniformly from the duration of the last uninterrupted
process, which includes loading, writing and pruning. Every third run is killed again after it was
resumed, and every sixth a third time. A process that ends before its moment is not killed. If a
kill left no run in the folder, the next process starts a new run, else it resumes. The final folder
is compared with that of an uninterrupted run: `result.json` except for seconds and counts of work,
and chromosome, evaluations, front and weights byte for byte.

The file contains the moments, the state of the folder after each kill, the outcomes, and the number
of evaluations that were read from the journal instead of being computed again.
"""

from __future__ import annotations

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

from sos_deap.cli import Parser, run_with_exit_status
from sos_deap.files.atomic import write_json

RESULT = Path(__file__).parent / "results" / "survival.json"

#: Flags of a run whose search takes some seconds, about as long as pruning, timing both models and
#: drawing the page together.
FLAGS = [
    "--generations=12",
    "--population_size=6",
    "--samples=24",
    "--seqlen=16",
    "--heldout_samples=8",
    "--seed=0",
]

#: Counts of work in the last process, which are lower after a resume.
WORK = ("layers_computed", "flops", "out_of_memory")

#: Files that must be equal byte for byte.
FILES = ("chromosome.json", "evaluations.csv", "pareto.csv", "pruned/model.safetensors")


def started(folder: Path) -> subprocess.Popen[bytes]:
    """Start a process that begins the run, or resumes it if the folder contains one."""
    has_run = (folder / "config.json").exists()
    given = [f"--resume={folder}"] if has_run else [*FLAGS, f"--output_dir={folder}"]
    return subprocess.Popen(
        [sys.executable, "-m", "sos_deap.run", "--quiet", *given],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )


def killed(folder: Path, moment: float) -> bool:
    """Start a process and kill it after some seconds; return whether it was still running."""
    process = started(folder)
    try:
        process.wait(timeout=moment)
    except subprocess.TimeoutExpired:
        process.kill()
    return process.wait() < 0


def lines(folder: Path) -> list[bytes]:
    """Return the journal's complete lines without its first, which holds the settings."""
    path = folder / "journal.jsonl"
    written = path.read_bytes().splitlines(keepends=True)[1:] if path.exists() else []
    return [line for line in written if line.endswith(b"\n")]


def evaluations(folder: Path) -> list[tuple[str, str]]:
    """Return the chromosomes in the journal, each with the examples it was scored on."""
    contents = [json.loads(line.partition(b" ")[2]) for line in lines(folder)]
    return [(genes, str(line["examples"])) for line in contents for genes in line["sums"]]


def stage(folder: Path) -> str:
    """Return the stage that the run in a folder has reached."""
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
    """Return the results of a complete run that must not depend on interruptions."""
    result = json.loads((folder / "result.json").read_text())
    search = {
        name: value
        for name, value in result["search"].items()
        if not name.startswith("seconds") and name not in WORK
    }
    files = {name: (folder / name).read_bytes() for name in FILES}
    return {**result, "search": search, "files": files}


def uninterrupted(folder: Path) -> tuple[float, int]:
    """Run or resume to the end; return the seconds and exit status of the process."""
    begun = time.perf_counter()
    status = started(folder).wait()
    return time.perf_counter() - begun, status


def one_run(folder: Path, shares: list[float], duration: float) -> dict[str, Any]:
    """Start a run, kill it at these proportions of a run's duration in seconds, and complete it."""
    kills = []
    for share in shares:
        moment = share * duration
        if not killed(folder, moment):
            break  # the process ended before this moment
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
    seconds, status = (None, 0) if stage(folder) == "complete" else uninterrupted(folder)
    computed = Counter(evaluations(folder))
    return {
        "kills": kills,
        "status": status,
        "seconds_of_the_last_process": seconds,
        "evaluations": len(computed),
        "evaluations_computed_twice": sum(computed.values()) - len(computed),
    }


def main() -> None:
    """Kill and resume runs, print each and a summary, and write the JSON file."""
    parser = Parser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="number of kills, at least (20)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (0)")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        first = Path(scratch) / "uninterrupted"
        duration, status = uninterrupted(first)
        assert status == 0
        expected = outcome(first)
        while sum(len(run["kills"]) for run in runs) < arguments.kills:
            number = len(runs)
            kills = 1 + (number % 3 == 0) + (number % 6 == 0)
            folder = Path(scratch) / str(number)
            run = one_run(folder, [rng.random() for _ in range(kills)], duration)
            # The machine may be busier than before, so the latest duration is used.
            duration = run["seconds_of_the_last_process"] or duration
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
    sys.exit(run_with_exit_status(main))
