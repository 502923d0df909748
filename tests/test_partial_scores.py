"""What is counted for scores on some of the examples."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sos_deap.evaluation.accounting import Accounting
from sos_deap.evaluation.partial_scores import PartialScores


class _Task(SimpleNamespace):
    """Four examples of 10 tokens together."""

    tokens, name = 10, "loss"

    def __len__(self) -> int:
        return 4

    def metrics(self, sums: list[float]) -> dict[str, float]:
        return {"loss": sums[0]}


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_tokens_do_not_depend_on_chunks(size: int) -> None:
    def compute(keys: Any, examples: Any) -> Any:
        for start in range(0, len(keys), size):
            chunk = keys[start : start + size]
            yield chunk, [[1.0]] * len(chunk)

    accounting, task = Accounting(4, tokens=0), _Task()
    scores: Any = PartialScores(compute, task, 1, accounting)
    found = list(scores.metrics([bytes([i]) for i in range(4)], (0, 1)))
    assert sum(map(len, found)) == 4
    assert accounting.tokens == 4 * round(10 / 4)
