"""Significance tests and effect sizes, computed with scipy, scikit-posthocs and statsmodels.

Values are costs: lower is better. Runs are paired by seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, count
from typing import Any

import numpy
from scipy import stats

#: With fewer pairs no p-value is below 0.05: with 5, the smallest two-sided one is 1/16.
LEAST_PAIRS = 6
ALPHA = 0.05
TOO_FEW = "too few pairs"

Costs = Mapping[str, Mapping[Any, float]]  # by variant and block, such as a seed


@dataclass(frozen=True)
class Comparison:
    """A comparison of two variants on the same seeds.

    :param pairs: number of seeds with results of both.
    :param difference: median over pairs of a's cost minus b's cost.
    :param a12: probability that a run of ``a`` is better than one of ``b``; 0.5 is no effect.
    :param statistic: Wilcoxon's W, the smaller sum of signed ranks.
    :param tendency: sum of the signed ranks; below 0 if a's costs tend to be lower.
    :param p: two-sided p-value; ``None`` for too few pairs.
    :param p_holm: p-value after Holm's correction over all comparisons of the family.
    :param family: number of comparisons in the family.
    :param verdict: ``"better"`` or ``"worse"`` (a than b), ``"no difference shown"``, or
        ``"too few pairs"`` if no corrected p-value can be below :data:`ALPHA`.
    """

    a: str
    b: str
    pairs: int
    difference: float | None
    a12: float | None
    statistic: float | None = None
    tendency: float | None = None
    p: float | None = None
    p_holm: float | None = None
    family: int = 1
    verdict: str = TOO_FEW


def wilcoxon(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """Return W, the sum of signed ranks and the two-sided p-value of Wilcoxon's signed-rank test.

    Pairs of equal values are ignored.
    """
    differences = [x - y for x, y in zip(a, b, strict=True) if x != y]
    if not differences:
        return 0.0, 0.0, 1.0
    found = stats.wilcoxon(differences)  # exact up to 50 pairs, with ties up to 13
    signed = numpy.sign(differences) * stats.rankdata(numpy.abs(differences))
    return float(found.statistic), float(signed.sum()), float(found.pvalue)


def a12(a: Sequence[float], b: Sequence[float]) -> float:
    """Return Vargha and Delaney's A: how often a cost of ``a`` is below one of ``b``."""
    first, second = numpy.asarray(a)[:, None], numpy.asarray(b)[None, :]
    return float((first < second).mean() + 0.5 * (first == second).mean())


def effect(probability: float) -> str:
    """Return the size of the effect of an A12 in words (Vargha and Delaney, 2000)."""
    distance = abs(probability - 0.5)
    for word, least in (("large", 0.21), ("medium", 0.14), ("small", 0.06)):
        if distance >= least - 1e-12:
            return word
    return "negligible"


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values after Holm's step-down correction."""
    from statsmodels.stats.multitest import multipletests

    if not p_values:
        return []
    return [float(p) for p in multipletests(list(p_values), method="holm")[1]]


def least_p(pairs: int, family: int) -> float:
    """Return the smallest p-value possible with Wilcoxon's test and Holm's correction."""
    return min(1.0, family * 0.5 ** (pairs - 1))


def least_pairs(family: int) -> int:
    """Return the number of pairs needed for a corrected p-value below :data:`ALPHA`."""
    return next(n for n in count(LEAST_PAIRS) if least_p(n, family) < ALPHA)


def compare(a: str, b: str, costs: Costs) -> Comparison:
    """Compare two variants, without correction."""
    seeds = [seed for seed in costs[a] if seed in costs[b]]
    first, second = ([costs[name][seed] for seed in seeds] for name in (a, b))
    if not seeds:
        return Comparison(a, b, 0, None, None)
    differences = [x - y for x, y in zip(first, second, strict=True)]
    middle, effect_size = float(numpy.median(differences)), a12(first, second)
    if len(seeds) < LEAST_PAIRS:
        return Comparison(a, b, len(seeds), middle, effect_size)
    return Comparison(a, b, len(seeds), middle, effect_size, *wilcoxon(first, second))


def corrected(family: Sequence[Comparison]) -> list[Comparison]:
    """Return a family of comparisons with corrected p-values and verdicts."""
    tested = [i for i, comparison in enumerate(family) if comparison.p is not None]
    adjusted = dict(zip(tested, holm([family[i].p or 0.0 for i in tested]), strict=True))
    found = []
    for i, comparison in enumerate(family):
        if i not in adjusted:
            found.append(replace(comparison, family=len(family)))
            continue
        size, verdict = len(tested), "no difference shown"
        if comparison.pairs < least_pairs(size):
            verdict = TOO_FEW
        if adjusted[i] < ALPHA:
            verdict = "better" if (comparison.tendency or 0.0) < 0 else "worse"
        found.append(replace(comparison, p_holm=adjusted[i], family=size, verdict=verdict))
    return found


def pairs_of(variants: Sequence[str], control: str | None) -> list[tuple[str, str]]:
    """Return all pairs of variants, or each with a control: fewer comparisons (Demsar, 2006)."""
    if control is None:
        return list(combinations(variants, 2))
    return [(name, control) for name in variants if name != control]


@dataclass(frozen=True)
class Ranks:
    """Ranks of variants within blocks; rank 1 is the best.

    :param average: mean rank by variant.
    :param blocks: number of blocks with results of all variants.
    :param statistic: Friedman's chi-square; ``None`` for fewer than 3 variants or too few blocks.
    :param p: p-value of Friedman's test.
    :param nemenyi: p-values of all pairs by Nemenyi's post-hoc test.
    :param critical: difference of average ranks that is significant at 0.05 (Demsar, 2006).
    """

    average: dict[str, float]
    blocks: int
    statistic: float | None = None
    p: float | None = None
    nemenyi: dict[tuple[str, str], float] | None = None
    critical: float | None = None


def rank(costs: Costs) -> Ranks:
    """Return average ranks with Friedman's and Nemenyi's tests."""
    names = list(costs)
    blocks = [block for block in costs[names[0]] if all(block in costs[n] for n in names)]
    if not blocks:
        return Ranks({}, 0)
    table = numpy.array([[costs[name][block] for name in names] for block in blocks])
    average = stats.rankdata(table, axis=1).mean(axis=0)
    found = Ranks(dict(zip(names, map(float, average), strict=True)), len(blocks))
    if len(names) < 3 or len(blocks) < LEAST_PAIRS:
        return found
    if (table == table[:, :1]).all():  # the test divides by the variance of ranks
        return replace(found, statistic=0.0, p=1.0)
    statistic, p = stats.friedmanchisquare(*table.T)
    return Ranks(
        found.average,
        found.blocks,
        float(statistic),
        float(p),
        _nemenyi(names, table),
        critical_difference(len(names), len(blocks)),
    )


def _nemenyi(names: Sequence[str], table: Any) -> dict[tuple[str, str], float]:
    import scikit_posthocs

    p = scikit_posthocs.posthoc_nemenyi_friedman(table).to_numpy()
    return {(a, b): float(p[i, j]) for (i, a), (j, b) in combinations(enumerate(names), 2)}


def critical_difference(variants: int, blocks: int) -> float:
    """Return Nemenyi's critical difference of average ranks at 0.05."""
    q = float(stats.studentized_range.ppf(1 - ALPHA, variants, math.inf)) / math.sqrt(2)
    return q * math.sqrt(variants * (variants + 1) / (6 * blocks))


@dataclass(frozen=True)
class Runtime:
    """The expected running time to a target.

    :param expected: cost of all runs divided by the number that reached the target (ERT);
        ``None`` if none did.
    :param reached: number of runs that reached the target.
    :param runs: number of runs.
    """

    expected: float | None
    reached: int
    runs: int


def runtime(runs: Sequence[tuple[bool, float]]) -> Runtime:
    """Compute the expected running time (Auger and Hansen, 2005).

    :param runs: for each run, whether it reached the target, and its cost until then, or in total.
    """
    reached = sum(hit for hit, _ in runs)
    total = math.fsum(spent for _, spent in runs)
    return Runtime(total / reached if reached else None, reached, len(runs))


def hypervolume(points: Sequence[tuple[float, float]], reference: tuple[float, float]) -> float:
    """Return the area that points dominate up to a reference point, minimising both values."""
    import moocore

    inside = [p for p in points if p[0] < reference[0] and p[1] < reference[1]]
    return float(moocore.hypervolume(numpy.array(inside), ref=reference)) if inside else 0.0
