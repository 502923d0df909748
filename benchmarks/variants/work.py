"""Jobs in parallel processes; each leaves a file, so that what was killed is gone on with."""

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
    """Where a job's result is, once it is done."""
    return folder / "jobs" / f"{job.name}.json"


def _error_path(folder: Path, job: Job) -> Path:
    return folder / "jobs" / f"{job.name}.error.txt"


def _say(line: str) -> None:
    print(line, flush=True)  # into a pipe too


def work(
    folder: Path, planned: list[Job], workers: int, say: Callable[[str], None] = _say
) -> dict[str, str]:
    """Do the jobs that have not been done.

    :param folder: the output folder.
    :param planned: all jobs.
    :param workers: processes; 1 is this one.
    :param say: takes the lines of progress.
    :returns: why jobs failed, by name; a job that was in a process that died is among them.
    """
    left = [job for job in planned if not result_path(folder, job).exists()]
    if len(left) < len(planned):
        say(f"{len(planned) - len(left)} of {len(planned)} runs are there already")
    started, failed = time.perf_counter(), dict[str, str]()
    for done, (job, why) in enumerate(_outcomes(folder, left, workers), 1):
        if why:
            failed[job.name] = why
        seconds = time.perf_counter() - started
        rest = seconds / done * (len(left) - done)
        state = f"FAILED: {why}" if why else "done"
        say(
            f"{done}/{len(left)}  {seconds:.0f} s, ETA {rest:.0f} s  {job.variant}, "
            f"seed {job.seed}, {job.problem.title}: {state}"
        )
    return failed


def _outcomes(folder: Path, left: list[Job], workers: int) -> Iterator[tuple[Job, str]]:
    """Each job as it ends, with what went wrong."""
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
                yield futures[future], "a process died, out of memory perhaps: start again"
    except BaseException:
        engine.close(at_once=True)
        raise
    engine.close()


def do(folder: Path, job: Job) -> str:
    """Do one job and write its file; returns what went wrong, if anything did."""
    from benchmarks.variants.job import run_job

    try:
        result: dict[str, Any] = run_job(job)
        write_json(result_path(folder, job), result)
    except Exception as error:  # one job must not take the others with it
        write_text(_error_path(folder, job), traceback.format_exc())
        return f"{type(error).__name__}: {first_line(error)}"
    finally:
        gc.collect()  # the states that a search kept are gigabytes, and held in a circle
    _error_path(folder, job).unlink(missing_ok=True)
    return ""
