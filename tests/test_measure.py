"""Measurements against counts by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from sos_deap import InputError, prune
from sos_deap.models.length import most_tokens
from sos_deap.models.measure import measure
from sos_deap.models.timing import quartiles, settled
from sos_deap.report.timings import measured_table
from sos_deap.tasks.data.sequences import checked_seqlen
from tests.tiny import HEAD_DIM, LAYERS, VOCABULARY, WIDTH, build

GENES = [1, 0, 1, 1] + [0] * 4 + [1, 1, 0, 0]


def one(models: dict[str, Any], **settings: Any) -> dict[str, Any]:
    (row,) = measure(models, rounds=1, new_tokens=4, lengths=[8], **settings)
    return row


def test_counts_are_those_made_by_hand() -> None:
    model = build("llama", 2)
    models = {"dense": model, "pruned": prune(model, GENES)}
    row = one(models, batch_sizes=[3])
    for name, query, kv in (("dense", 12, 6), ("pruned", 5, 3)):
        figures, rows = row["models"][name], 3 * 8
        projections = WIDTH * HEAD_DIM * (2 * query + 2 * kv) + LAYERS * 3 * WIDTH * 48
        scores = 2 * 2 * rows * 8 * HEAD_DIM * query  # q.k and weights.v, over all pairs
        logits = 2 * 3 * WIDTH * VOCABULARY  # of the last position alone
        assert figures["prefill_flops"] == 2 * rows * projections + scores + logits
        # Keys and values in float32; a layer without heads stores one number per token for each.
        empty = 0 if name == "dense" else 1
        assert figures["kv_bytes_per_token"] == 2 * 4 * (kv * HEAD_DIM + empty)
        weights = 4 * models[name].num_parameters()
        assert figures["weight_bytes"] == weights
        table = 4 * VOCABULARY * WIDTH  # looked up, not read through
        cached = 3 * figures["kv_bytes_per_token"] * (8 + 4 / 2)
        assert figures["decode_bytes"] == weights - table + cached
        assert figures["peak_bytes"] > weights
        assert figures["prefill_seconds"] > 0
        assert figures["decode_tokens_per_second"] == 3 / figures["decode_seconds"] > 0
    gains, dense, pruned = row["gains"]["pruned"], row["models"]["dense"], row["models"]["pruned"]
    for gain, key in (
        ("prefill", "prefill_seconds"),
        ("prefill_bound", "prefill_flops"),
        ("decode", "decode_seconds"),
        ("decode_bound", "decode_bytes"),
    ):
        assert gains[gain] == pytest.approx(1 - pruned[key] / dense[key])


def test_tied_embeddings_are_read_through() -> None:
    figures = one({"model": build("gpt2")})["models"]["model"]
    assert figures["decode_bytes"] > figures["weight_bytes"]


def test_peak_memory_counts_what_is_alive_at_once() -> None:
    class Allocates(torch.nn.Module):
        def forward(self) -> None:
            first = torch.empty(1000, dtype=torch.uint8)
            del first
            kept = torch.empty(3000, dtype=torch.uint8)
            torch.empty(2000, dtype=torch.uint8)
            del kept

    from sos_deap.models.measure import peak_bytes

    module: Any = Allocates()
    module.device = torch.device("cpu")
    assert peak_bytes(module, module) == 5000


OTHERS = ["bart", "bert", "clip", "gpt2", "gptj", "mistral", "vit", "wav2vec2", "whisper"]


@pytest.mark.parametrize("family", OTHERS)
def test_other_kinds_of_models(family: str) -> None:
    model = build(family)
    row = one({"dense": model, "same": model})
    decodes = family in ("bart", "gpt2", "gptj", "mistral", "whisper")
    assert (row["models"]["same"]["decode_seconds"] is not None) == decodes
    assert (row["models"]["same"]["kv_bytes_per_token"] > 0) == decodes
    assert row["gains"]["same"]["prefill_bound"] == 0


def test_the_cache_of_sound_is_counted_by_what_the_encoder_makes() -> None:
    figures = one({"model": build("whisper")}, batch_sizes=[2])["models"]["model"]
    vectors = 16  # max_source_positions
    one_token = 2 * 4 * WIDTH * LAYERS
    assert figures["kv_bytes_per_token"] == (vectors + 1) * one_token / vectors


def test_every_size_and_length_gets_a_row_and_the_table_shows_it() -> None:
    model = build("llama")
    rows = measure({"model": model}, batch_sizes=[1, 2], lengths=[4, 8], new_tokens=2, rounds=1)
    assert [(row["batch_size"], row["length"]) for row in rows] == [(1, 4), (1, 8), (2, 4), (2, 8)]
    shown = measured_table(rows)
    assert shown.count("prefill, ms") == 4 and "2 x 8 tokens" in shown and "saved" not in shown
    both = measured_table(measure({"dense": model, "pruned": model}, lengths=[4], rounds=1))
    assert "saved   bound" in both and "       0 %" in both


def test_quartiles_settle_when_late_rounds_no_longer_move_them() -> None:
    assert quartiles([3.0]) == [3.0, 3.0]
    assert quartiles([4.0, 1.0, 2.0, 3.0, 5.0]) == [2.0, 4.0]  # numpy's percentiles
    assert not settled([1.0] * 9) and settled([1.0] * 10)
    assert not settled([1.0] * 5 + [1.2] * 5)
    assert settled([1.0] * 5 + [1.2] * 5 + [1.0, 1.2, 1.1, 1.2, 1.0])


def test_without_rounds_timing_ends_when_the_quartiles_have_settled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A machine that gets faster until round 12: with constant times, 10 rounds were enough."""
    calls = iter(range(1000))

    def prefill(*_: Any) -> float:
        return max(1.0, 2.0 - next(calls) / 12)

    monkeypatch.setattr("sos_deap.models.timing.seconds_of", prefill)
    models = {"model": build("llama")}
    row = measure(models, lengths=[4], new_tokens=0, seconds=1e9)[0]
    times = [max(1.0, 2.0 - i / 12) for i in range(2, 100)]  # without the warm-up
    assert row["rounds"] == next(n for n in range(10, 98) if settled(times[:n])) > 10
    assert row["models"]["model"]["prefill_quartiles"][0] == 1.0


def test_rounds_end_after_the_time_but_not_before_three() -> None:
    row = measure({"model": build("llama")}, lengths=[4], new_tokens=0, rounds=50, seconds=0)[0]
    assert row["rounds"] == 3
    assert row["models"]["model"]["decode_seconds"] is None
    assert math.isfinite(row["models"]["model"]["prefill_seconds"])


@pytest.mark.parametrize(
    ("family", "settings", "tokens"),
    [
        ("roberta", {"max_position_embeddings": 12, "pad_token_id": 3}, 8),
        ("camembert", {"max_position_embeddings": 12, "pad_token_id": 1}, 10),
        ("xlm-roberta", {"max_position_embeddings": 12, "pad_token_id": 1}, 10),
        ("bert", {"max_position_embeddings": 12}, 12),
        ("distilbert", {"max_position_embeddings": 12}, 12),
        ("opt", {"max_position_embeddings": 12, "pad_token_id": 1}, 12),
        ("bart", {"max_position_embeddings": 12, "pad_token_id": 1}, 12),
        ("gpt2", {"max_position_embeddings": 12}, 12),
    ],
)
def test_the_longest_length_is_what_stock_models_read(
    family: str, settings: dict[str, Any], tokens: int
) -> None:
    model = build(family, **settings)
    assert most_tokens(model) == checked_seqlen(None, model) == tokens
    measure({"model": model}, lengths=[tokens], new_tokens=0, rounds=1)
    ids = torch.full((1, tokens + 1), 5)
    with pytest.raises((IndexError, RuntimeError, ValueError)):
        model(input_ids=ids)
    with pytest.raises(InputError, match=f"length {tokens + 1} and 0 new tokens are more"):
        measure({"model": model}, lengths=[tokens + 1], new_tokens=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_sizes": [0]}, "must be at least 1"),
        ({"lengths": [4, 0]}, "must be at least 1"),
        ({"rounds": 0}, "must be at least 1"),
        ({"new_tokens": 1}, "0 or at least 2"),
        ({"seconds": math.nan}, "seconds is nan: give 0 or more"),
        ({"batch_sizes": [10**30]}, "batches of 1e.30 sequences of 128 tokens and 32 new ones"),
        ({"new_tokens": 10**9}, "and 1e.09 new ones have over 1,000,000,000 tokens"),
        ({"rounds": -1}, "must be at least 1"),
        (
            {"lengths": [60], "new_tokens": 5},
            "length 60 and 5 new tokens are more",
        ),
    ],
)
def test_bad_sizes(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        measure({"model": build("llama")}, **settings)


def test_models_of_other_input_are_refused() -> None:
    small = build("llama")
    for other, message in (
        (
            build("llama", vocab_size=50),
            "input_ids of 61 tokens, the b model input_ids of 50",
        ),
        (build("vit"), "the b model pixel_values: give a model and the one"),
        (build("bart"), "the b model input_ids of 61 tokens and decoder_input_ids"),
    ):
        with pytest.raises(InputError, match=message):
            measure({"a": small, "b": other})


def test_memory_that_runs_out_is_named_with_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def allocates(*_: Any) -> Any:
        return torch.empty(2**50)  # torch's own error

    monkeypatch.setattr("sos_deap.models.measure.random_inputs", allocates)
    with pytest.raises(InputError, match="memory ran out for batch size 3 and length 8: give sm"):
        measure({"model": build("llama")}, batch_sizes=[3], lengths=[8])


def test_a_length_too_long_is_refused_before_any_is_timed() -> None:
    model = build("llama")
    model.forward = None  # timing would call it
    with pytest.raises(InputError, match="length 60 and 32 new tokens"):
        measure({"model": model}, lengths=[8, 60])
