from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sos_deap.tasks.objectives import OBJECTIVES, metric, paper, paper_literal

SCORES = st.floats(-1e3, 1e3)
SPARSITIES = st.floats(0, 0.9)


def test_equation_1_by_hand() -> None:
    assert paper(-6.5, 0.31) == pytest.approx((-4.485,))  # -6.5 * 0.69
    assert paper(0.69, 0.31) == pytest.approx((1.0,))  # 0.69 / 0.69
    assert paper_literal(0.69, 0.31) == pytest.approx((0.4761,))  # 0.69 * 0.69
    assert metric(-6.5, 0.31) == (-6.5,)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
@given(better=SCORES, worse=SCORES, sparsity=SPARSITIES)
def test_the_better_metric_wins_at_equal_sparsity(
    name: str, better: float, worse: float, sparsity: float
) -> None:
    if better > worse:
        assert OBJECTIVES[name](better, sparsity) >= OBJECTIVES[name](worse, sparsity)


@given(score=SCORES, sparser=SPARSITIES, denser=SPARSITIES)
def test_the_higher_sparsity_wins_at_equal_metric(
    score: float, sparser: float, denser: float
) -> None:
    if sparser > denser:
        assert paper(score, sparser) >= paper(score, denser)


def test_the_literal_form_punishes_sparsity_where_the_metric_grows() -> None:
    assert paper_literal(0.9, 0.3) < paper_literal(0.9, 0.1)


def test_a_model_without_heads_has_a_finite_fitness() -> None:
    assert paper(0.5, 1.0)[0] < float("inf")
