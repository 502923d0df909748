"""Execute jobs in parallel processes; each writes a file, so a killed comparison can resume."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, as_completed
from pathlib import Path
from typing import Any

from benchmarks.variants.plan import Job
from sos_deap.engines.process import Processes
from sos_deap.errors import first_line
from sos_deap.files.atomic import write_json, write_text


def result_path(folder: Path, job: Job) -> Path:
    """Return the path of a job's result."""
    return folder / "jobs" / f"{job.name}.json"


def _error_path(folder: Path, job: Job) -> Path:
    return folder / "jobs" / f"{job.name}.error.txt"


def _print(line: str) -> None:
    print(line, flush=True)  # also into a pipe


def work(
    folder: Path, planned: list[Job], workers: int, report: Callable[[str], None] = _print
) -> dict[str, str]:
    """Execute the jobs without a result.

    :param folder: the output folder.
    :param planned: all jobs.
    :param workers: number of processes; 1 uses this process.
    :param report: called with each line of progress.
    :returns: the errors of failed jobs by name, including jobs whose process died.
    """
    left = [job for job in planned if not result_path(folder, job).exists()]
    if len(left) < len(planned):
        report(f"{len(planned) - len(left)} of {len(planned)} runs are already done")
    started, failed = time.perf_counter(), dict[str, str]()
    for done, (job, error) in enumerate(_outcomes(folder, left, workers), 1):
        if error:
            failed[job.name] = error
        seconds = time.perf_counter() - started
        rest = seconds / done * (len(left) - done)
        state = f"FAILED: {error}" if error else "done"
        report(
            f"{done}/{len(left)}  {seconds:.0f} s, ETA {rest:.0f} s  {job.variant}, "
            f"seed {job.seed}, {job.problem.title}: {state}"
        )
    return failed


def _outcomes(folder: Path, left: list[Job], workers: int) -> Iterator[tuple[Job, str]]:
    """Yield each job when it has ended, with its error or an empty text."""
    if workers == 1 or len(left) < 2:
        for job in left:
            yield job, do(folder, job)
        return
    engine = Processes(min(workers, len(left)))
    try:
        futures: dict[Future[str], Job] = {engine.submit(do, folder, job): job for job in left}
        for future in as_completed(futures):
            try:
                yield futures[future], future.result()
            except engine.lost:
                yield (
                    futures[future],
                    "a process died, possibly out of memory: run the same command again",
                )
    except BaseException:
        engine.close(at_once=True)
        raise
    engine.close()


def do(folder: Path, job: Job) -> str:
    """Execute one job and write its file; return its error or an empty text."""
    from benchmarks.variants.job import run_job

    try:
        result: dict[str, Any] = run_job(job)
        write_json(result_path(folder, job), result)
    except Exception as error:  # the other jobs continue
        write_text(_error_path(folder, job), traceback.format_exc())
        return f"{type(error).__name__}: {first_line(error)}"
    finally:
        gc.collect()  # cached hidden states take gigabytes and are in a reference cycle
    _error_path(folder, job).unlink(missing_ok=True)
    return ""
