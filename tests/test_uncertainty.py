"""Changes of metrics and their confidence intervals, against SciPy and by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from sos_deap import Evaluator, prune
from sos_deap.evaluation.uncertainty import Change, added, changes, groups_of
from sos_deap.quality import changes_of, quality
from tests.conftest import GENES


def mean_task(name: str, greater_is_better: bool) -> Any:
    return SimpleNamespace(
        name=name,
        greater_is_better=greater_is_better,
        metrics=lambda sums: {name: sums[0] / sums[1]},
    )


@pytest.mark.parametrize("examples", [1, 5, 31, 32, 33, 872])
def test_groups_are_consecutive_and_nearly_equal(examples: int) -> None:
    groups = groups_of(examples)
    assert [i for group in groups for i in range(examples)[group]] == list(range(examples))
    sizes = {group.stop - group.start for group in groups}
    assert len(groups) == min(32, examples) and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("kind", ["points", "percent"])
def test_the_interval_is_the_paired_bootstrap_of_scipy(kind: str) -> None:
    draw = np.random.default_rng(7)
    hard = draw.uniform(0.2, 0.6, 32)  # what makes a group hard for both models
    before, after = (hard + draw.normal(gain, 0.02, 32) for gain in (0.2, 0.19))
    sums = [[[value, 1.0] for value in values] for values in (before, after)]
    name = "accuracy" if kind == "points" else "perplexity"
    found = changes(mean_task(name, kind == "points"), *sums)[name]

    def change(one: Any, other: Any, axis: int) -> Any:
        means = one.mean(axis=axis), other.mean(axis=axis)
        if kind == "points":
            return 100 * (means[1] - means[0])
        return 100 * (means[1] / means[0] - 1)

    expected = stats.bootstrap(
        (before, after), change, paired=True, method="percentile", n_resamples=20_000
    ).confidence_interval
    assert found.kind == kind and found.value == pytest.approx(change(before, after, 0))
    width = expected.high - expected.low
    assert found.low == pytest.approx(expected.low, abs=0.1 * width)
    assert found.high == pytest.approx(expected.high, abs=0.1 * width)


def test_a_change_from_zero_is_a_difference_and_few_examples_have_no_interval() -> None:
    task = mean_task("kl", False)
    found = changes(task, [[0.0, 1.0]] * 4, [[0.1, 1.0]] * 4)["kl"]
    assert found == Change("difference", found.value, None, None)
    assert found.value == pytest.approx(0.1)
    found = changes(task, [[0.0, 1.0]] * 5, [[0.1, 1.0]] * 5)["kl"]
    assert found.low == found.high == found.value


def test_a_metric_that_is_not_finite_has_no_change() -> None:
    assert changes(mean_task("kl", False), [[0.0, 1.0]] * 6, [[math.inf, 1.0]] * 6) == {}


def test_changes_of_a_pruned_model(evaluator: Evaluator) -> None:
    """The same model has no change; a pruned one has the change of its metrics."""
    dense = quality(evaluator, evaluator.model)
    same = changes_of(evaluator, dense, quality(evaluator, evaluator.model))
    assert same["calibration"]["perplexity"]["value"] == 0
    pruned = prune(evaluator.model, [0, *[1] * (GENES - 1)])
    reached = quality(evaluator, pruned)
    found = changes_of(evaluator, dense, reached)["calibration"]["perplexity"]
    values = [
        evaluator.metrics_of(m, evaluator.task)["perplexity"] for m in (evaluator.model, pruned)
    ]
    assert found["value"] == pytest.approx(100 * (values[1] / values[0] - 1))
    assert reached.metrics["calibration"]["perplexity"] == values[1]
    assert len(dense.sums["calibration"]) == len(groups_of(len(evaluator.task)))
    assert added(dense.sums["calibration"])[1] == sum(n for _, n in dense.sums["calibration"])
