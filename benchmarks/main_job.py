"""The main job, timed from outside: `python -m sos_deap.run` as a user starts it.

    python -m benchmarks.main_job NAME [--FLAG VALUE ...]     # the flags of sos_deap.run

Writes results/main_job_NAME.json: the settings that differ from the defaults, what `result.json`
reports, the seconds of the whole process, and the share of the search outside forward passes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sos_deap.report import write_json

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Run, read the run folder, write the result."""
    name, *flags = sys.argv[1:]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        started = time.perf_counter()
        command = [sys.executable, "-m", "sos_deap.run", *flags, "--output_dir", str(folder)]
        subprocess.run(command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        seconds = time.perf_counter() - started
        result = json.loads((folder / "result.json").read_text())
    search = result["search"]
    inside, total = search["seconds_forward"], search["seconds"]
    # Of a path only the last two parts: where the data lies on this machine is nobody's business.
    settings = ["/".join(Path(flag).parts[-2:]) if "/" in flag else flag for flag in flags]
    write_json(
        RESULTS / f"main_job_{name}.json",
        {
            "settings": settings,
            "process_seconds": seconds,
            "share_of_search_outside_forward": 1 - inside / total,
            **result,
        },
    )
    print(f"{seconds:.1f} s in all; search {total:.1f} s, {inside:.1f} s in forward passes")


if __name__ == "__main__":
    main()
