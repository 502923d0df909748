"""The size of masked batches, with a clock that only forward passes advance."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sos_deap import Evaluator
from sos_deap.evaluation.batch_size import BatchSizes
from sos_deap.evaluation.forward import ForwardRunner
from sos_deap.models.find_genes import head_map
from tests.conftest import GENES

ROWS = 3  # sequences of the evaluator's task


def several_of(count: int) -> list[list[int]]:
    """Distinct chromosomes."""
    return [[int(bit) for bit in f"{number:0{GENES}b}"] for number in range(1, count + 1)]


def asked(seconds: Callable[[int], float], most: int, passes: int) -> list[int]:
    """The sizes that are chosen where a batch of a size takes so long."""
    sizes, found = BatchSizes(), list[int]()
    for _ in range(passes):
        found.append(sizes.next(most))
        sizes.record(found[-1], seconds(found[-1]))
    return found


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (lambda size: 1.0 * size, 1),  # nothing is gained
        (lambda size: 1.5 * size - 0.5, 1),  # larger ones are slower
        (lambda size: 10.0 + size, 11),  # only the start takes time: as many as fit
        (lambda size: 10.0 + size + size**3, 2),  # up to a point
    ],
)
def test_sizes_double_and_the_fastest_stays(seconds: Callable[[int], float], expected: int) -> None:
    assert asked(seconds, 11, 12) == [1, 1, 2, 2, 4, 4, 8, 8] + [expected] * 4


def test_a_slow_first_pass_does_not_count() -> None:
    sizes = BatchSizes()
    for size, time in [(1, 100.0), (1, 1.0), (2, 50.0), (2, 3.0), (4, 6.0), (4, 6.0)]:
        sizes.record(size, time)
    assert [sizes.next(most) for most in (1, 2, 3, 4, 7)] == [1, 1, 1, 1, 1]


def test_a_larger_size_does_not_count_as_a_timing_of_smaller_ones() -> None:
    sizes = BatchSizes()
    for size in (1, 1, 3, 2, 3, 2):
        sizes.record(size, 1.0)
    assert [sizes.next(most) for most in (1, 2, 3)] == [1, 2, 3]
    assert sizes.next(4) == 4  # not timed yet


def fake_clock(
    evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch, seconds: Callable[[int], float]
) -> list[int]:
    """Let a forward pass of so many rows take so long; gives the list of their rows, growing."""
    now, rows = [0.0], list[int]()

    def forward(module: object, args: tuple[torch.Tensor]) -> None:
        rows.append(len(args[0]))
        now[0] += seconds(rows[-1])

    evaluator.model.get_input_embeddings().register_forward_pre_hook(forward)
    monkeypatch.setattr(
        "sos_deap.evaluation.forward.time", SimpleNamespace(perf_counter=lambda: now[0])
    )
    return rows


def sizes_of(evaluator: Evaluator, count: int, batch_tokens: int | None = None) -> list[int]:
    passes = masked_passes(evaluator, batch_tokens)
    return [len(chunk) for chunk, _ in passes.run([bytes(genes) for genes in several_of(count)])]


def masked_passes(evaluator: Evaluator, batch_tokens: int | None = None) -> ForwardRunner:
    heads = head_map(evaluator.model)
    return ForwardRunner(
        evaluator.model, heads, evaluator.task, batch_tokens=batch_tokens, batching="masked"
    )


def test_the_timed_passes_compute_the_requested_sub_models(
    evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = several_of(52)
    expected = evaluator.metrics(several)
    rows = fake_clock(evaluator, monkeypatch, lambda rows: 1 + rows / 4)
    timed = Evaluator(evaluator.model, evaluator.task, batching="masked")
    found = timed.metrics(several[:40]) + timed.metrics(several[40:])
    assert found == pytest.approx(expected, rel=1e-5)
    # A row to test rotations, twice, and to count operations; then no sub-model twice.
    assert rows == [1, 1, 1, *(ROWS * size for size in (1, 1, 2, 2, 4, 4, 8, 8, 10, 12))]


def test_a_token_budget_is_kept_to_without_timing(
    evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_clock(evaluator, monkeypatch, lambda rows: rows**2)
    assert sizes_of(evaluator, 10, 4 * ROWS * 16) == [4, 4, 2]


def test_sub_models_run_one_at_a_time_if_batches_are_slower(
    evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_clock(evaluator, monkeypatch, lambda rows: rows**1.1)
    assert sizes_of(evaluator, 20) == [1, 1, 2, 2, 4, 4, *[1] * 6]


def test_passes_on_some_of_the_examples_do_not_count_as_timings(
    evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_clock(evaluator, monkeypatch, lambda rows: rows)
    keys, passes = [bytes(genes) for genes in several_of(6)], masked_passes(evaluator)
    assert [len(chunk) for chunk, _ in passes.run(keys[:3], slice(0, 1))] == [1, 1, 1]
    assert [len(chunk) for chunk, _ in passes.run(keys)] == [1, 1, 2, 2]


def test_out_of_memory_ends_the_growth(
    evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedding: Any = evaluator.model.get_input_embeddings()
    several, forward = several_of(30), embedding.forward
    expected = evaluator.metrics(several)

    def limited(ids: torch.Tensor) -> object:
        if len(ids) > 4 * ROWS:
            raise torch.OutOfMemoryError("simulated")
        return forward(ids)

    monkeypatch.setattr(embedding, "forward", limited)
    fake_clock(evaluator, monkeypatch, lambda rows: 1 + rows / 4)
    passes = masked_passes(evaluator)
    found = list(passes.run([bytes(genes) for genes in several]))
    assert [len(chunk) for chunk, _ in found] == [1, 1, 2, 2, *[4] * 6]
    assert passes.cost.out_of_memory == 1
    metrics = [evaluator.task.metrics(row)["perplexity"] for _, sums in found for row in sums]
    assert metrics == pytest.approx(expected, rel=1e-5)


def test_an_error_of_the_first_pass_does_not_change_the_batching(
    evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(evaluator.task, "score", fails)
        with pytest.raises(KeyboardInterrupt):
            evaluator.metric([1] * GENES)
    fresh = Evaluator(evaluator.model, evaluator.task)
    assert evaluator.metrics(several_of(3)) == fresh.metrics(several_of(3))
    assert evaluator.batching == fresh.batching == "shared"


@pytest.mark.parametrize(
    ("seconds", "masked_is_faster"),
    [
        (lambda rows: 1.0, True),  # starting an operation takes all the time
        (float, False),  # shared layers compute fewer rows
    ],
)
def test_the_faster_way_of_batching_is_chosen_by_time(
    evaluator: Evaluator,
    monkeypatch: pytest.MonkeyPatch,
    seconds: Callable[[int], float],
    masked_is_faster: bool,
) -> None:
    """As on an accelerator; on a CPU the choice is fixed."""
    now = [0.0]

    def spend(module: object, args: tuple[torch.Tensor]) -> None:
        now[0] += seconds(len(args[0]))

    for layer in evaluator.model.model.layers:
        layer.mlp.register_forward_pre_hook(spend)
    monkeypatch.setattr(
        "sos_deap.evaluation.forward.time", SimpleNamespace(perf_counter=lambda: now[0])
    )
    heads = head_map(evaluator.model)
    passes = ForwardRunner(evaluator.model, heads, evaluator.task, batch_tokens=100_000)
    assert passes._masked_is_faster() is masked_is_faster
    assert now[0] > 0
