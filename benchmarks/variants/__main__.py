"""Compare variants of the search at equal budgets; write tables, tests, figures and a page.

    python -m benchmarks.variants --model M --dataset D --variants sos,swap,nsga2
        --budget 1000 --seeds 15 --output_dir DIR

The exit status is 0, 1 if a run failed, or 2 for invalid input, before anything is written. The
same command with the same folder resumes a stopped comparison.
"""

from __future__ import annotations

import json
import sys

from benchmarks.variants import iohfiles, page, plan, results, tables
from benchmarks.variants.settings import Settings, parse
from benchmarks.variants.statistics import least_pairs
from benchmarks.variants.work import result_path, work
from sos_deap.cli import quiet, run_with_exit_status
from sos_deap.errors import InputError


def compare(settings: Settings) -> list[str]:
    """Execute the missing runs, and write tables, figures and the page.

    :returns: the names of the runs that failed.
    :raises InputError: for invalid settings, before anything is written.
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
    seeds, comparisons = len(settings.seeds), tables.comparisons(settings)
    if not comparisons:
        print("one variant has nothing to be compared with: there are no tests", file=sys.stderr)
    elif seeds < least_pairs(comparisons):
        print(page.reach(seeds, comparisons), file=sys.stderr)
    plan.remember(settings, before)
    for path in (result_path(settings.output_dir, job) for job in damaged):
        aside = path.with_name(f"{path.name}.damaged")
        path.replace(aside)
        print(f"{path} is damaged: renamed to {aside.name}, computed again", file=sys.stderr)
    failed = work(settings.output_dir, planned, settings.workers)
    report(settings, planned, list(failed))
    for name, reason in failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    return list(failed)


def _is_damaged(settings: Settings, job: plan.Job) -> bool:
    """Return whether a job's file exists but is not usable for the tables."""
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
        return any(result[name] != value for name, value in plan.identity(job).items())
    except InputError:  # it lacks the requested metric
        raise
    except Exception:  # values of a truncated or edited file may be missing or of any type
        return True


def report(settings: Settings, planned: list[plan.Job], failed: list[str]) -> None:
    """Write the results of all runs, and print the main tables."""
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
        print(*page.notes(result), sep="\n")
    print(f"\npage: {path}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    failed: list[str] = []

    def job() -> None:
        settings = parse(sys.argv[1:] if arguments is None else arguments)
        quiet()
        failed.extend(compare(settings))

    return run_with_exit_status(job) or int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
