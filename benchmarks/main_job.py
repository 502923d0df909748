"""Time whole processes of `python -m sos_deap.run`; write results/main_job_NAME.json.

    python -m benchmarks.main_job NAME [--repeats 3] [--FLAG VALUE ...]    # flags of sos_deap.run

The file contains the settings that differ from the defaults, the seconds of the whole process, the
proportion of the search outside forward passes, and `result.json` of the last run; the script
checks that all runs have the same result.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sos_deap.cli import Parser, run_with_exit_status
from sos_deap.files.atomic import write_json

RESULTS = Path(__file__).parent / "results"


def one_run(flags: list[str]) -> tuple[float, dict[str, Any]]:
    """Run the command once; return its seconds and the content of result.json."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        command = [sys.executable, "-m", "sos_deap.run", *flags, "--output_dir", str(folder)]
        started = time.perf_counter()
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        if status := subprocess.run(command, check=False, env=environment).returncode:
            sys.exit(status)  # the run has printed its error
        seconds = time.perf_counter() - started
        return seconds, json.loads((folder / "result.json").read_text())


def spread(values: list[float]) -> dict[str, float]:
    """Return median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def main() -> None:
    """Run the command, print a summary and write the JSON file."""
    parser = Parser(description=__doc__)
    parser.add_argument("name", help="part of the name of the JSON file")
    parser.add_argument("--repeats", type=int, default=1, help="number of runs (1)")
    arguments, flags = parser.parse_known_args()
    if arguments.repeats < 1 or not re.fullmatch(r"\w+", arguments.name):
        parser.error("give a NAME of letters, digits and _, and --repeats of at least 1")
    runs = [one_run(flags) for _ in range(arguments.repeats)]
    results = [result for _, result in runs]
    assert all(result["best"] == results[0]["best"] for result in results), (
        "the results of the runs differ"
    )
    outside = [1 - r["search"]["seconds_forward"] / r["search"]["seconds"] for r in results]
    summary = {
        # Only the last two parts of a path are written: the rest differs between machines.
        "settings": ["/".join(Path(f).parts[-2:]) if "/" in f else f for f in flags],
        "process_seconds": spread([seconds for seconds, _ in runs]),
        "search_seconds": spread([result["search"]["seconds"] for result in results]),
        "share_of_search_outside_forward": spread(outside),
    }
    write_json(RESULTS / f"main_job_{arguments.name}.json", {**summary, "result": results[-1]})
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    sys.exit(run_with_exit_status(main))
