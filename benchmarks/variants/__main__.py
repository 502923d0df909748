"""Compare variants of the search at equal budgets, with statistics.

    python -m benchmarks.variants --model M --dataset D --variants sos,swap,nsga2
        --budget 1000 --seeds 15 --output_dir DIR

Ends with 0, with 1 if a run failed, and with 2 for bad input, before anything is written. Started
again with the same folder it goes on where it was stopped.
"""

from __future__ import annotations

import json
import sys

from benchmarks.variants import iohfiles, page, plan, results, tables
from benchmarks.variants.settings import Settings, parse
from benchmarks.variants.work import result_path, work
from sos_deap.cli import quiet, run_with_exit_status
from sos_deap.errors import InputError


def compare(settings: Settings) -> list[str]:
    """Do all runs that are left, and write tables, figures and the page.

    :returns: the names of the runs that failed.
    :raises InputError: for bad settings, before anything is written.
    """
    from benchmarks.variants.job import try_out

    planned = plan.jobs(settings)
    before = plan.check_folder(settings)
    plan.check(planned)
    if settings.ioh:
        iohfiles.checked()
    damaged = [job for job in planned if _is_damaged(settings, job)]
    left = [job for job in planned if not result_path(settings.output_dir, job).exists()]
    for kind in plan.kinds(left + damaged):
        try_out(kind, settings.heldout_metric)
    plan.remember(settings, before)
    for path in (result_path(settings.output_dir, job) for job in damaged):
        aside = path.with_name(f"{path.name}.damaged")
        path.replace(aside)
        print(f"{path} is damaged: set aside as {aside.name}, computed again", file=sys.stderr)
    failed = work(settings.output_dir, planned, settings.workers)
    report(settings, planned, list(failed))
    for name, why in failed.items():
        print(f"failed: {name}: {why}", file=sys.stderr)
    return list(failed)


def _is_damaged(settings: Settings, job: plan.Job) -> bool:
    """Whether a job's file is there and is none of which the tables can be made."""
    path = result_path(settings.output_dir, job)
    if not path.exists():
        return False
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        runs = {job.variant: {job.seed: result}}
        group = results.Group(job.problem, runs, *results.compared(settings, result))
        for rows in (tables.traces, tables.checkpoints, tables.final, tables.fronts):
            rows([group])
        tables.hits(group, job.variant, group.dense)
        page.summary(group, tables.overall([group]))
        return any(result[name] != value for name, value in plan.described(job).items())
    except InputError:  # it lacks the metric that is asked for
        raise
    except Exception:  # of a file that was cut or edited any value may be missing or of any type
        return True


def report(settings: Settings, planned: list[plan.Job], failed: list[str]) -> None:
    """Write what the runs found, and print the main table."""
    found = results.groups(settings, planned)
    results.check(found)
    tested, ranks = tables.tested(settings, found), tables.overall(found)
    written = {
        "traces.csv": tables.traces(found),
        "checkpoints.csv": tables.checkpoints(found),
        "final.csv": tables.final(found),
        "tests.csv": tables.tests(tested, ranks),
        "targets.csv": tables.targets(settings, found),
        "fronts.csv": tables.fronts(found),
    }
    written = {name: rows for name, rows in written.items() if rows}
    for name, rows in written.items():
        tables.write(settings.output_dir / name, rows)
    if settings.ioh:
        iohfiles.write(settings.output_dir / "ioh", found)
    path = page.write(settings, tested, ranks, failed, list(written))
    for result in tested:
        group = result.group
        print(f"\n{group.problem.title}\n{group.metric}, dense {page.number(group.dense)} held-out")
        print(page.table(group, result.ranks))
        print(page.reach(result))
    print(f"\npage: {path}")


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    failed: list[str] = []

    def job() -> None:
        settings = parse(sys.argv[1:] if arguments is None else arguments)
        quiet()
        failed.extend(compare(settings))

    return run_with_exit_status(job) or int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
