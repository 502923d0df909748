"""The main job, timed from outside: `python -m sos_deap.run` as a user starts it.

    python -m benchmarks.main_job NAME [--repeats 3] [--FLAG VALUE ...]   # sos_deap.run's flags

Writes results/main_job_NAME.json: the settings that differ from the defaults, the seconds of the
whole process, the share of the search outside forward passes, and the last run's `result.json`
(the runs differ in nothing but times, which is checked).
"""

from __future__ import annotations

import argparse
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

from sos_deap.files.atomic import write_json

RESULTS = Path(__file__).parent / "results"


def one_run(flags: list[str]) -> tuple[float, dict[str, Any]]:
    """Seconds of the process, and what it reports."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        command = [sys.executable, "-m", "sos_deap.run", *flags, "--output_dir", str(folder)]
        started = time.perf_counter()
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        if status := subprocess.run(command, check=False, env=environment).returncode:
            sys.exit(status)  # the run has printed why
        seconds = time.perf_counter() - started
        return seconds, json.loads((folder / "result.json").read_text())


def spread(values: list[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def main() -> None:
    """Run as often as asked, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--repeats", type=int, default=1)
    arguments, flags = parser.parse_known_args()
    if arguments.repeats < 1 or not re.fullmatch(r"\w+", arguments.name):
        parser.error("give a NAME of letters, digits and _, and --repeats of at least 1")
    runs = [one_run(flags) for _ in range(arguments.repeats)]
    results = [result for _, result in runs]
    assert all(result["best"] == results[0]["best"] for result in results), "runs differ"
    outside = [1 - r["search"]["seconds_forward"] / r["search"]["seconds"] for r in results]
    summary = {
        # Of a path only the last two parts: where the data lies on this machine tells nobody much.
        "settings": ["/".join(Path(f).parts[-2:]) if "/" in f else f for f in flags],
        "process_seconds": spread([seconds for seconds, _ in runs]),
        "search_seconds": spread([result["search"]["seconds"] for result in results]),
        "share_of_search_outside_forward": spread(outside),
    }
    write_json(RESULTS / f"main_job_{arguments.name}.json", {**summary, "result": results[-1]})
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
