"""How much a metric changes between two models, with a confidence interval over the examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sos_deap.evaluation.compute import Sums
from sos_deap.tasks.task import SHARES, Task

#: Most groups of examples that are drawn together.
GROUPS = 32
_FEWEST = 5  # groups: fewer give no useful interval
_DRAWS = 1000
_LEVEL = 0.95


@dataclass(frozen=True)
class Change:
    """The change of a metric from one model to another on the same examples.

    :param kind: ``"points"``, the difference times 100, of metrics in
        :data:`~sos_deap.tasks.task.SHARES`, and of a main metric of which higher is better if its
        values lie between 0 and 1; else ``"percent"``, the relative change times 100, of positive
        metrics; else ``"difference"``.
    :param value: the change.
    :param low: lower end of its 95 % confidence interval; ``None`` with fewer than 5 examples, and
        if a metric is not finite.
    :param high: upper end.
    """

    kind: str
    value: float
    low: float | None
    high: float | None


def groups_of(examples: int) -> list[slice]:
    """Cut examples into at most :data:`GROUPS` consecutive groups of nearly equal size.

    :param examples: their number, at least 1.
    """
    count = min(GROUPS, examples)
    ends = [examples * i // count for i in range(count + 1)]
    return [slice(start, end) for start, end in pairwise(ends)]


def added(groups: Sums) -> list[float]:
    """Return the sums over all groups.

    :param groups: for each group the sums of a task.
    """
    return [sum(column) for column in zip(*groups, strict=True)]


def changes(task: Task, before: Sums, after: Sums) -> dict[str, Change]:
    """Return the change of each metric of a task, with a confidence interval.

    The interval is the percentile bootstrap (Efron, 1979) over groups of examples. It is paired:
    each draw takes the same groups for both models, so that it leaves out what makes a text easy or
    hard for both. The draws are the same in every call.

    :param task: the task.
    :param before: sums of the first model for each group (see :func:`groups_of`).
    :param after: sums of the second model.
    :returns: by the metric's name; metrics which are not finite are left out.
    """
    rows = [np.arange(len(before))]
    if len(before) >= _FEWEST:
        rows += [*np.random.default_rng(0).integers(len(before), size=(_DRAWS, len(before)))]
    sums = [np.asarray(groups) for groups in (before, after)]
    pairs = [tuple(task.metrics(one[row].sum(0).tolist()) for one in sums) for row in rows]
    found = {}
    for name in pairs[0][0]:
        values = [(one[name], other[name]) for one, other in pairs]
        if all(map(math.isfinite, values[0])):
            found[name] = _change(values, _higher_is_better(task, name))
    return found


def loss(task: Task, name: str, before: float, after: float) -> float:
    """Return how much worse a metric is than before, in the unit of its change.

    :param task: the task of the metric.
    :param name: name of the metric.
    :param before: value of the dense model.
    :param after: value of a sub-model.
    :returns: positive if it is worse; NaN if a value is not finite.
    """
    higher = _higher_is_better(task, name)
    change = _change([(before, after)], higher).value
    return -change if higher else change


def _higher_is_better(task: Task, name: str) -> bool:
    """Whether a higher value is better; of metrics other than the main one, of shares only."""
    return name in SHARES or (name == task.name and task.greater_is_better)


def _change(values: Sequence[tuple[float, float]], shares: bool) -> Change:
    """Return the change between two values; the first pair counts, the others are draws."""
    kind = _kind(values, shares)
    first, *drawn = [_changed(kind, *pair) for pair in values]
    if not drawn or not all(map(math.isfinite, drawn)):
        return Change(kind, first, None, None)
    tail = 50 * (1 - _LEVEL)
    low, high = map(float, np.percentile(drawn, [tail, 100 - tail]))
    return Change(kind, first, low, high)


def _kind(values: Sequence[tuple[float, float]], shares: bool) -> str:
    if shares and all(0 <= value <= 1 for value in values[0]):
        return "points"
    return "percent" if all(one > 0 for one, _ in values) else "difference"


def _changed(kind: str, before: float, after: float) -> float:
    if kind == "percent":
        return 100 * (after / before - 1)
    return (after - before) * (100 if kind == "points" else 1)
