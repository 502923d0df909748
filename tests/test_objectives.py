from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sos_deap import InputError
from sos_deap.tasks.objectives import (
    OBJECTIVES,
    check_metric,
    checked_objective,
    kl,
    metric,
    paper,
    paper_literal,
    pareto,
    tradeoff,
)

SCORES = st.floats(-500, 500)
SPARSITIES = st.floats(0, 0.9)


def test_equation_1_by_hand() -> None:
    assert paper(-6.5, 0.31) == pytest.approx((-4.485,))  # -6.5 * 0.69
    assert paper(0.69, 0.31) == pytest.approx((1.0,))  # 0.69 / 0.69
    assert paper_literal(0.69, 0.31) == pytest.approx((0.4761,))  # 0.69 * 0.69
    assert metric(-6.5, 0.31) == (-6.5,)


def test_the_others_by_hand() -> None:
    assert kl(-math.log(2), 0.25) == pytest.approx((-1.5,))  # twice the perplexity, 3/4 left
    assert kl(0.0, 0.0) == (-1.0,)
    assert tradeoff(-6.5, 0.5) == (-6.0,)
    assert checked_objective("tradeoff", 10)(-6.5, 0.5) == (-1.5,)
    assert pareto(-6.5, 0.31) == (-6.5, 0.31)


def test_kl_is_for_divergences() -> None:
    for name, greater in (("perplexity", False), ("accuracy", True)):
        with pytest.raises(InputError, match=f"is for a divergence, and the metric is {name}"):
            check_metric(kl, name, greater)
        check_metric(paper, name, greater)
    check_metric(kl, "kl", False)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
@given(better=SCORES, worse=SCORES, sparsity=SPARSITIES)
def test_the_better_metric_wins_at_equal_sparsity(
    name: str, better: float, worse: float, sparsity: float
) -> None:
    if better > worse:
        assert OBJECTIVES[name](better, sparsity) >= OBJECTIVES[name](worse, sparsity)
    if better > worse + 1e-3:
        assert OBJECTIVES[name](better, sparsity) > OBJECTIVES[name](worse, sparsity)


@pytest.mark.parametrize("name", sorted(set(OBJECTIVES) - {"metric", "paper-literal"}))
@given(score=SCORES, sparser=SPARSITIES, denser=SPARSITIES)
def test_the_higher_sparsity_wins_at_equal_metric(
    name: str, score: float, sparser: float, denser: float
) -> None:
    if sparser > denser:
        assert OBJECTIVES[name](score, sparser) >= OBJECTIVES[name](score, denser)
    if sparser > denser + 1e-3 and abs(score) > 1e-3:
        assert OBJECTIVES[name](score, sparser) > OBJECTIVES[name](score, denser)


def test_the_literal_and_the_plain_metric_do_not_reward_sparsity() -> None:
    assert paper_literal(0.9, 0.3) < paper_literal(0.9, 0.1)  # sparsity is punished
    assert metric(0.9, 0.3) == metric(0.9, 0.1)


def test_extremes_are_finite() -> None:
    for name, objective in OBJECTIVES.items():
        assert all(map(math.isfinite, objective(0.5, 1.0))), name
        assert all(map(math.isfinite, objective(-1e9, 0.5))), name


@pytest.mark.parametrize(
    ("name", "weight", "message"),
    [
        ("papr", None, "unknown objective 'papr': did you mean 'paper'"),
        ("paper", 2.0, "tradeoff_weight is only for the objective tradeoff, and this one is paper"),
        ("tradeoff", -1.0, "tradeoff_weight is -1.0"),
        ("tradeoff", math.nan, "tradeoff_weight is nan"),
    ],
)
def test_bad_objectives(name: str, weight: float | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        checked_objective(name, weight)
