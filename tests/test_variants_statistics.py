from __future__ import annotations

import random
from itertools import product

import pytest
from scipy import stats

from benchmarks.variants import page
from benchmarks.variants import statistics as st

#: Table 6 of Demsar (2006), "Statistical Comparisons of Classifiers over Multiple Data Sets": AUC
#: of C4.5, with m, with cf, and with both tuned, on 14 data sets. It ranks the first of two that
#: print as 0.975 before the other.
DEMSAR = [
    (0.763, 0.768, 0.771, 0.798),
    (0.599, 0.591, 0.590, 0.569),
    (0.954, 0.971, 0.968, 0.967),
    (0.628, 0.661, 0.654, 0.657),
    (0.882, 0.888, 0.886, 0.898),
    (0.936, 0.931, 0.916, 0.931),
    (0.661, 0.668, 0.609, 0.685),
    (0.583, 0.583, 0.563, 0.625),
    (0.775, 0.838, 0.866, 0.875),
    (1.000, 1.000, 1.000, 1.000),
    (0.940, 0.962, 0.965, 0.962),
    (0.619, 0.666, 0.614, 0.669),
    (0.972, 0.981, 0.9751, 0.975),
    (0.957, 0.978, 0.946, 0.970),
]
NAMES = ("C4.5", "m", "cf", "m+cf")


def costs(*runs: list[float]) -> dict[str, dict[object, float]]:
    return {name: dict(enumerate(run)) for name, run in zip("abcd", runs, strict=False)}


def test_wilcoxon_by_all_signs() -> None:
    """The exact distribution, by flipping the sign of every difference in all 2^n ways."""
    draw = random.Random(3)
    a, b = ([draw.random() for _ in range(9)] for _ in range(2))
    order = sorted(abs(x - y) for x, y in zip(a, b, strict=True))
    ranks = [order.index(abs(x - y)) + 1 for x, y in zip(a, b, strict=True)]
    positive = sum(r for r, x, y in zip(ranks, a, b, strict=True) if x > y)
    every = product((0, 1), repeat=9)
    sums = [sum(r for r, s in zip(ranks, signs, strict=True) if s) for signs in every]
    mean = sum(ranks) / 2
    extreme = sum(abs(s - mean) >= abs(positive - mean) for s in sums)
    statistic, tendency, p = st.wilcoxon(a, b)
    assert statistic == min(positive, sum(ranks) - positive)
    assert tendency == 2 * positive - sum(ranks)
    assert p == pytest.approx(extreme / 2**9)


def test_wilcoxon_where_pairs_are_equal() -> None:
    assert st.wilcoxon([1, 2, 3], [1, 2, 3]) == (0.0, 0.0, 1.0)
    # Six differences of the same sign and size: 2 of the 64 ways to choose their signs.
    _, _, p = st.wilcoxon([1, 2, 3, 4, 5, 6, 9], [2, 3, 4, 5, 6, 7, 9])
    assert p == pytest.approx(2 / 2**6) == st.least_p(6, 1)


def test_a12_by_hand() -> None:
    """1 is below 2, 3 and 4; 2 ties with 2 and is below two; 3 is below one and ties with one."""
    assert st.a12([1, 2, 3], [2, 3, 4]) == pytest.approx((3 + 2.5 + 1.5) / 9)
    assert st.a12([1, 2], [1, 2]) == 0.5
    assert [st.effect(x) for x in (0.5, 0.56, 0.36, 0.71, 0.29)] == [
        "negligible", "small", "medium", "large", "large",
    ]  # fmt: skip


def test_holm_by_hand() -> None:
    """Times 3, 2 and 1 from the smallest on, and never below the one before."""
    assert st.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert st.holm([]) == []


def test_no_verdict_below_six_pairs() -> None:
    few = st.compare("a", "b", costs([1.0] * 5, [2.0] * 5))
    assert (few.p, few.verdict) == (None, "too few pairs")
    assert st.corrected([few])[0].verdict == "too few pairs"
    values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    enough = st.compare("a", "b", costs(values, [1.1 * x + 1 for x in values]))
    assert enough.p == pytest.approx(2 / 2**6)
    assert st.corrected([enough])[0].verdict == "better"
    assert st.corrected([enough, enough])[0].verdict == "too few pairs"  # 4 / 64 at best
    other = st.compare("b", "a", costs(values, [1.1 * x + 1 for x in values]))
    assert st.corrected([other])[0].verdict == "worse"
    values = [float(i) for i in range(7)]
    seven = st.compare("a", "b", costs(values, [1.1 * x + 1 for x in values]))
    mixed = st.compare("a", "b", costs(values, [x + (-1.1) ** x for x in values]))
    found = st.corrected([seven, seven, mixed])
    assert found[0].p_holm == pytest.approx(3 * 2 / 2**7) == st.least_p(7, 3)
    assert [one.verdict for one in found] == ["better", "better", "no difference shown"]


@pytest.mark.parametrize(("family", "pairs"), [(1, 6), (2, 7), (3, 7), (6, 8), (45, 11)])
def test_fewest_pairs_that_can_show_a_difference(family: int, pairs: int) -> None:
    """By Holm's correction of the smallest p-value of scipy's test."""
    for n, reached in ((pairs, True), (pairs - 1, False)):
        smallest = float(stats.wilcoxon(range(1, n + 1), method="exact").pvalue)
        assert (st.holm([smallest] * family)[0] < st.ALPHA) == reached
    assert st.least_pairs(family) == pairs
    assert st.least_p(pairs, family) == pytest.approx(family * 2 / 2**pairs)
    assert f"give --seeds {pairs} or more" in page.reach(pairs - 1, family)
    assert "give" not in page.reach(pairs, family)


def test_only_seeds_that_both_have_are_pairs() -> None:
    table = {"a": {0: 1.0, 1: 2.0, 2: 3.0}, "b": {1: 2.5, 2: 3.5, 3: 0.0}}
    found = st.compare("a", "b", table)
    assert (found.pairs, found.difference) == (2, -0.5)
    assert st.compare("a", "b", {"a": {0: 1.0}, "b": {}}).verdict == "too few pairs"


def test_ranks_as_demsar_has_them() -> None:
    table = {name: {i: -row[k] for i, row in enumerate(DEMSAR)} for k, name in enumerate(NAMES)}
    found = st.rank(table)
    assert list(found.average.values()) == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=1e-3)
    # The paper has 9.28, not corrected for the ties in it: 9.28 / (1 - ties / (N k (k^2 - 1))).
    ties = sum(row.count(x) ** 2 - 1 for row in DEMSAR for x in row)  # t^3 - t = t (t^2 - 1)
    assert found.statistic == pytest.approx(9.28 / (1 - ties / (14 * 4 * 15)), abs=0.01)
    assert found.critical == pytest.approx(2.569 * (4 * 5 / (6 * 14)) ** 0.5, abs=1e-3)
    assert found.nemenyi is not None
    for (a, b), p in found.nemenyi.items():
        assert found.critical is not None
        assert (p < 0.05) == (abs(found.average[a] - found.average[b]) > found.critical)


def test_few_or_equal_blocks_are_ranked_but_not_tested() -> None:
    few = st.rank(costs([1.0, 1.0], [2.0, 2.0], [3.0, 3.0]))
    assert few.average == {"a": 1, "b": 2, "c": 3}
    assert (few.statistic, few.critical) == (None, None)
    equal = st.rank(costs([1.0] * 6, [1.0] * 6, [1.0] * 6))
    assert (equal.p, equal.average) == (1.0, {"a": 2, "b": 2, "c": 2})
    assert st.rank({"a": {0: 1.0}, "b": {1: 1.0}}).average == {}


def test_expected_running_time_by_hand() -> None:
    assert st.runtime([(True, 100), (False, 1000), (True, 300)]) == st.Runtime(700, 2, 3)
    assert st.runtime([(False, 1000)]) == st.Runtime(None, 0, 1)


def test_hypervolume_by_hand() -> None:
    """Two rectangles to (3, 3): 2 x 1 of (1, 2) and 1 x 2 of (2, 1), which share 1 x 1."""
    assert st.hypervolume([(1, 2), (2, 1), (4, 0)], (3, 3)) == 3
    assert st.hypervolume([], (3, 3)) == 0


def test_a_control_is_tested_against_each_other_variant_alone() -> None:
    assert st.pairs_of(["a", "b", "c"], "b") == [("a", "b"), ("c", "b")]
    assert st.pairs_of(["a", "b", "c"], None) == [("a", "b"), ("a", "c"), ("b", "c")]
