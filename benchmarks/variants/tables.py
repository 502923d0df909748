"""Tables of results: one row per generation, checkpoint, winner, test or target."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from benchmarks.variants import statistics as st
from benchmarks.variants.results import Group, Row
from benchmarks.variants.settings import Settings
from sos_deap.files.atomic import write_csv


def traces(found: Iterable[Group]) -> list[Row]:
    """Return one row per generation of each run."""
    return [
        {
            **group.problem.named(),
            "variant": variant,
            "seed": seed,
            "search_metric": result["search_metric"],
            **row,
        }
        for group in found
        for variant, runs in group.results.items()
        for seed, result in runs.items()
        for row in result["trace"]
    ]


def checkpoints(found: Iterable[Group]) -> list[Row]:
    """Return one row per measured incumbent, as found (raw) and at equal sparsity."""
    return [
        {
            **group.problem.named(),
            "variant": variant,
            "seed": seed,
            "share_of_budget": row["share"],
            **_measured(result, row, form),
        }
        for group in found
        for variant, runs in group.results.items()
        for seed, result in runs.items()
        for row in result["checkpoints"]
        for form in ("raw", "equal")
    ]


def final(found: Iterable[Group]) -> list[Row]:
    """Return one row per winner, as found (raw) and at equal sparsity."""
    rows = []
    for group in found:
        for variant, runs in group.results.items():
            for seed, result in runs.items():
                dense = result["measured"]["1" * result["genes"]]
                for form in ("raw", "equal"):
                    rows.append(
                        {
                            **group.problem.named(),
                            "variant": variant,
                            "seed": seed,
                            **_measured(result, result["checkpoints"][-1], form),
                            **_flat(dense, "dense_"),
                            "search_seconds": result["seconds"],
                            "stopped_by": result["stopped_by"],
                        }
                    )
    return rows


def _measured(result: Row, row: Row, form: str) -> Row:
    chromosome = row[form]
    removed = chromosome.count("0")
    return {
        "form": form,
        "generation": row["generation"],
        "evaluations": row["evaluations"],
        "tokens": row["tokens"],
        "seconds": row["seconds"],
        "removed": removed,
        "share_removed": removed / len(chromosome),
        **_flat(result["measured"][chromosome]),
        "chromosome": chromosome,
    }


def _flat(metrics: Mapping[str, Mapping[str, Any]], prefix: str = "") -> Row:
    return {
        f"{prefix}{part}_{name}": value
        for part, named in metrics.items()
        for name, value in named.items()
    }


@dataclass(frozen=True)
class Tested:
    """The statistics of one problem.

    :param comparisons: pairs of variants, corrected over all budgets of a model, data and sparsity.
    """

    group: Group
    comparisons: list[st.Comparison]
    ranks: st.Ranks


def comparisons(settings: Settings) -> int:
    """Return the number of comparisons that Holm's correction takes together."""
    return len(st.pairs_of(list(settings.variants), settings.control)) * len(settings.budgets)


def tested(settings: Settings, found: list[Group]) -> list[Tested]:
    """Run all tests, on the winners' held-out metric at equal sparsity."""
    families: dict[Any, list[tuple[Group, st.Comparison]]] = {}
    for group in found:
        problem, costs = group.problem, group.costs()
        family = families.setdefault((problem.model, problem.dataset, problem.sparsity), [])
        for a, b in st.pairs_of(list(settings.variants), settings.control):
            family.append((group, st.compare(a, b, costs)))
    by_group: dict[int, list[st.Comparison]] = {}
    for family in families.values():
        results = st.corrected([comparison for _, comparison in family])
        for (group, _), comparison in zip(family, results, strict=True):
            by_group.setdefault(id(group), []).append(comparison)
    return [Tested(g, by_group.get(id(g), []), st.rank(_without_empty(g.costs()))) for g in found]


def _without_empty(costs: dict[str, dict[Any, float]]) -> dict[str, dict[Any, float]]:
    """Return the costs of the variants with at least one run."""
    return {variant: runs for variant, runs in costs.items() if runs}


def overall(found: list[Group]) -> st.Ranks:
    """Rank variants over problems, by their medians over seeds (Demsar, 2006)."""
    costs: dict[str, dict[Any, float]] = {}
    for group in found:
        for variant, runs in group.costs().items():
            if runs:
                costs.setdefault(variant, {})[group.problem] = float(
                    numpy.median(list(runs.values()))
                )
    return st.rank(costs)


def tests(results: list[Tested], ranks: st.Ranks) -> list[Row]:
    """Return one row per test and per average rank; ranks over all problems use medians."""
    rows = []
    for result in results:
        where = result.group.problem.named()
        sign = -1 if result.group.greater else 1  # from costs back to the metric
        for c in result.comparisons:
            rows.append(
                {
                    **where,
                    "test": "wilcoxon",
                    "a": c.a,
                    "b": c.b,
                    "n": c.pairs,
                    "statistic": c.statistic,
                    "p": c.p,
                    "p_holm": c.p_holm,
                    "a12": c.a12,
                    "median_difference": c.difference and sign * c.difference,
                    "verdict": c.verdict,
                }
            )
        rows += _rank_rows(where, result.ranks)
    if len(results) > 1:
        nowhere = dict.fromkeys(results[0].group.problem.named(), "all")
        rows += _rank_rows(nowhere, ranks)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name) for name in columns} for row in rows]


def _rank_rows(where: Row, ranks: st.Ranks) -> list[Row]:
    rows: list[Row] = [
        {**where, "test": "average rank", "a": name, "n": ranks.blocks, "statistic": value}
        for name, value in ranks.average.items()
    ]
    if ranks.statistic is None:
        verdict = "not tested: needs 3 variants and 6 blocks"
        return [*rows, {**where, "test": "friedman", "n": ranks.blocks, "verdict": verdict}]
    friedman = {"statistic": ranks.statistic, "p": ranks.p, "n": ranks.blocks}
    rows.append({**where, "test": "friedman", **friedman})
    for (a, b), p in (ranks.nemenyi or {}).items():
        rows.append({**where, "test": "nemenyi", "a": a, "b": b, "n": ranks.blocks, "p": p})
    return rows


def target_of(settings: Settings, group: Group) -> float | None:
    """Return the target metric: the given one, or the median of the reference's winners."""
    if settings.target is not None:
        return settings.target
    values = group.finals(settings.reference)
    return float(numpy.median(values)) if values else None


def hits(group: Group, variant: str, target: float) -> list[tuple[bool, float]]:
    """Return for each run whether it reached a target, and its cost until then or in total."""
    found = []
    for result in group.results[variant].values():
        reached = [
            row
            for row in result["checkpoints"]
            if group.cost(group.value(result, row["equal"])) <= group.cost(target)
        ]
        row = reached[0] if reached else result["checkpoints"][-1]
        found.append((bool(reached), group.spent(row)))
    return found


def targets(settings: Settings, found: Iterable[Group]) -> list[Row]:
    """Return one row per variant and problem: expected running time and success rate."""
    rows = []
    for group in found:
        target = target_of(settings, group)
        for variant in settings.variants if target is not None else ():
            assert target is not None
            time = st.runtime(hits(group, variant, target))
            rows.append(
                {
                    **group.problem.named(),
                    "variant": variant,
                    "metric": group.metric,
                    "target": target,
                    "reached": time.reached,
                    "runs": time.runs,
                    "expected_cost": time.expected,
                    "cost_unit": group.problem.unit,
                }
            )
    return rows


def fronts(found: Iterable[Group]) -> list[Row]:
    """Return the hypervolume of each run's front on both parts, for variants with two objectives.

    It is a proportion of the area from the reference point to the dense model's metric at the
    target sparsity. The reference point is that of `sos_deap.run`: sparsity 0, and twice the dense
    metric, log 2 for a divergence, or 0 if higher is better.
    """
    rows = []
    for group in found:
        for variant, by_seed in group.results.items():
            for seed, result in by_seed.items():
                for part in ("calibration", "heldout") if result["front"] else ():
                    dense = group.value(result, "1" * result["genes"], part)
                    worst = _front_reference(group, dense)
                    scale = (worst - group.cost(dense)) * group.problem.sparsity
                    points = _points(group, result, part)
                    area = st.hypervolume(points, (worst, 0.0))
                    rows.append(
                        {
                            **group.problem.named(),
                            "variant": variant,
                            "seed": seed,
                            "part": part,
                            "metric": group.metric,
                            "hypervolume": area / scale if scale > 0 else None,
                            "points": len(points),
                        }
                    )
    return rows


def _front_reference(group: Group, dense: float) -> float:
    """Return the cost at the reference point."""
    if group.greater:
        return 0.0
    return math.log(2) if group.metric == "kl" else 2 * dense


def _points(group: Group, result: Row, part: str) -> list[tuple[float, float]]:
    values = [(group.value(result, one, part), one) for one in result["front"]]
    return [(group.cost(v), -one.count("0") / len(one)) for v, one in values if not math.isnan(v)]


def write(path: Path, rows: list[Row]) -> None:
    """Write a table, if it has rows."""
    if rows:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        write_csv(path, columns, ([row.get(name) for name in columns] for row in rows))
