"""What pruning brought: time, memory and bytes, measured in turn, beside what counting allows.

The bound of the prefill is the share of floating-point operations that went, since a prefill is
limited by arithmetic; the bound of decoding is the share of bytes that went, since each new token
reads every weight and the key/value cache once.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from sos_deap.errors import InputError
from sos_deap.models.examples import random_inputs
from sos_deap.models.flops import counting
from sos_deap.models.generating import generate
from sos_deap.models.length import most_tokens
from sos_deap.models.sharing import MEMORY_ERRORS, is_out_of_memory

#: Fewest rounds, whatever they take: a median of fewer says nothing.
LEAST_ROUNDS = 3
#: Most tokens of a batch, the new ones among them: no machine has the memory for so many.
MOST_TOKENS = 10**9
_WARM_UP = 2
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler reports its own start and stop


@dataclass
class _Times:
    prefill: list[float] = field(default_factory=list)  # seconds
    decode: list[float] = field(default_factory=list)  # seconds a token of one sequence


def measure(
    models: Mapping[str, Any],
    *,
    batch_sizes: Sequence[int] = (1,),
    lengths: Sequence[int] = (128,),
    new_tokens: int = 32,
    rounds: int = 10,
    seconds: float = 60.0,
) -> list[dict[str, Any]]:
    """Measure models side by side in this process, in turn, after a warm-up.

    :param models: models by the name of their column, such as ``dense`` and ``pruned``, on the same
        device; the first is what the others are compared with.
    :param batch_sizes: numbers of sequences.
    :param lengths: prompt lengths in tokens; without effect on models of images.
    :param new_tokens: tokens to decode after the prompt, at least 2; 0 for none. Only models that
        generate decode.
    :param rounds: how often each model is timed; the figures are medians.
    :param seconds: after these no further round begins once there were :data:`LEAST_ROUNDS`.
    :returns: one row for each batch size and length: for each model ``prefill_seconds``,
        ``decode_seconds`` between two tokens of a sequence, ``decode_tokens_per_second`` over all
        sequences, ``peak_bytes`` (weights and the most that a prefill allocates),
        ``kv_bytes_per_token``, ``weight_bytes``, ``prefill_flops`` and ``decode_bytes``; with the
        gains and their bounds, as shares of the first model's time, under ``gains``.
    :raises InputError: for a size below one or that does not fit into memory, a prompt longer than
        the model's positions, and models that do not take the same input.
    """
    if new_tokens == 1 or min([*batch_sizes, *lengths, rounds]) < 1 or new_tokens < 0:
        raise InputError(
            "batch sizes, lengths and rounds must be at least 1, new tokens 0 or at least 2"
        )
    if not seconds >= 0:  # so that NaN fails
        raise InputError(f"seconds is {seconds}: give 0 or more")
    if max(batch_sizes) * (max(lengths) + new_tokens) > MOST_TOKENS:
        raise InputError(
            f"batches of {max(batch_sizes):.4g} sequences of {max(lengths):.4g} tokens and "
            f"{new_tokens:.4g} new ones have over {MOST_TOKENS:,} tokens: give smaller sizes"
        )
    _check_same_input(models)
    first, rows = next(iter(models.values())), []
    decoded = new_tokens if all(map(_generates, models.values())) else 0
    for length in lengths:  # all of them before the first is timed
        _check_positions(first, length, decoded)
    for batch_size in batch_sizes:
        for length in lengths:
            with torch.inference_mode(), _fits(batch_size, length):
                batch = random_inputs(first, batch_size, length)
                times = _alternate(models, batch, decoded, rounds, seconds)
                figures = {
                    name: _figures(model, batch, length + decoded / 2)
                    | _medians(times[name], batch_size)
                    for name, model in models.items()
                }
            row: dict[str, Any] = {"batch_size": batch_size, "length": length}
            row |= {"new_tokens": decoded, "rounds": len(times[next(iter(models))].prefill)}
            rows.append(row | {"models": figures, "gains": _gains(figures)})
    return rows


def try_out(model: Any, length: int, new_tokens: int) -> None:
    """Make one pass of each kind that :func:`measure` makes, for its errors.

    :raises InputError: for a prompt longer than the model's positions.
    """
    decoded = new_tokens if _generates(model) else 0
    _check_positions(model, length, decoded)
    batch = random_inputs(model, 1, length)
    with torch.inference_mode():
        _figures(model, batch, length)
        if decoded:
            _decode_seconds(model, batch, 2)


@contextlib.contextmanager
def _fits(batch_size: int, length: int) -> Iterator[None]:
    try:
        yield
    except MEMORY_ERRORS as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            f"memory ran out for batch size {batch_size} and length {length}: give smaller "
            "--batch_sizes or --lengths"
        ) from error


def _check_same_input(models: Mapping[str, Any]) -> None:
    """Raise :class:`InputError` for models that cannot be timed on the same batch."""
    (first, model), *others = models.items()
    for name, other in others:
        if _input(other) != _input(model):
            raise InputError(
                f"the {first} model takes {_input(model)}, the {name} model {_input(other)}: "
                "give a model and the one that it was pruned from"
            )


def _input(model: Any) -> str:
    """What a model takes, in words."""
    config = model.config
    if model.main_input_name != "input_ids":  # such as pixel_values
        return str(model.main_input_name)
    what = f"{model.main_input_name} of {model.get_input_embeddings().num_embeddings:,} tokens"
    return f"{what} and decoder_input_ids" if config.is_encoder_decoder else what


def _generates(model: Any) -> bool:
    return bool(model.can_generate())


def _check_positions(model: Any, length: int, new_tokens: int) -> None:
    longest = most_tokens(model)
    if longest is not None and length + new_tokens > longest:
        raise InputError(
            f"length {length} and {new_tokens} new tokens are more than the model's {longest} "
            "positions: give a smaller --lengths or --new_tokens"
        )


def _alternate(
    models: Mapping[str, Any],
    batch: dict[str, Tensor],
    new_tokens: int,
    rounds: int,
    seconds: float,
) -> dict[str, _Times]:
    times = {name: _Times() for name in models}
    started = time.perf_counter()
    for number in range(-_WARM_UP, rounds):
        if number >= LEAST_ROUNDS and time.perf_counter() - started > seconds:
            break
        for name, model in models.items():
            prefill = _seconds(model, functools.partial(_prefill, model, batch))
            decode = _decode_seconds(model, batch, new_tokens) if new_tokens else None
            if number >= 0:
                times[name].prefill.append(prefill)
                times[name].decode += [] if decode is None else [decode]
    return times


def _prefill(model: Any, batch: dict[str, Tensor]) -> Any:
    # Only the last position's logits, as generation asks for them.
    last = "logits_to_keep" in inspect.signature(model.forward).parameters
    extra = {"logits_to_keep": 1} if last else {}
    if _generates(model):
        extra["use_cache"] = True
    return model(**batch, **extra)


def _decode_seconds(model: Any, batch: dict[str, Tensor], new_tokens: int) -> float:
    """Seconds between two tokens of greedy generation, the prefill left out."""
    ticks: list[float] = []

    class Clock(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
            ticks.append(_now(model))
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    # Without an end token, so that nothing ends the text.
    plain = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, pad_token_id=0)
    given = {name: value for name, value in batch.items() if name != "decoder_input_ids"}
    if model.config.is_encoder_decoder:
        plain.decoder_start_token_id = 0
    generate(model, plain, **given, stopping_criteria=StoppingCriteriaList([Clock()]))
    return (ticks[-1] - ticks[0]) / (len(ticks) - 1)


def _seconds(model: Any, function: Callable[[], Any]) -> float:
    started = _now(model)
    function()
    return _now(model) - started


def _now(model: Any) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()


def _medians(times: _Times, batch_size: int) -> dict[str, float | None]:
    decode = statistics.median(times.decode) if times.decode else None
    return {
        "prefill_seconds": statistics.median(times.prefill),
        "decode_seconds": decode,
        "decode_tokens_per_second": batch_size / decode if decode else None,
    }


def _figures(model: Any, batch: dict[str, Tensor], cached: float) -> dict[str, Any]:
    """What is counted rather than timed; ``cached`` is the mean number of tokens in the cache."""
    weights = sum(parameter.nbytes for parameter in model.parameters())
    with counting(model) as counter:
        output = _prefill(model, batch)
    cache_bytes = _cache_bytes(output) / next(iter(batch.values())).shape[:2].numel()
    sequences = len(next(iter(batch.values())))
    del output
    read = weights - _lookup_bytes(model)
    return {
        "weight_bytes": weights,
        "peak_bytes": weights + peak_bytes(model, lambda: _prefill(model, batch)),
        "kv_bytes_per_token": cache_bytes,
        "prefill_flops": counter.get_total_flops(),
        "decode_bytes": read + cache_bytes * cached * sequences,
    }


def _lookup_bytes(model: Any) -> int:
    """Bytes of an embedding table that decoding looks up but does not read through."""
    table = model.get_input_embeddings()
    head = model.get_output_embeddings() if _generates(model) else None
    weight = getattr(table, "weight", None)
    if weight is None or (head is not None and head.weight is weight):
        return 0
    nbytes: int = weight.nbytes
    return nbytes


def _cache_bytes(output: Any) -> int:
    cache = getattr(output, "past_key_values", None)
    parts = [
        getattr(cache, name, None) for name in ("self_attention_cache", "cross_attention_cache")
    ]
    caches = [part for part in parts if part is not None] or [cache]
    layers = [layer for part in caches for layer in getattr(part, "layers", ())]
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in layers if layer.is_initialized)


def peak_bytes(model: Any, function: Callable[[], Any]) -> int:
    """The most bytes that a call allocates at a time, on the model's device."""
    if model.device.type == "cuda":
        before = torch.cuda.memory_allocated(model.device)
        torch.cuda.reset_peak_memory_stats(model.device)
        function()
        return torch.cuda.max_memory_allocated(model.device) - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        function()
    events: Any = profiler.profiler.kineto_results.events()
    allocations = [event for event in events if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(allocations, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def _gains(figures: dict[str, dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Shares of the first model's time that the others save, beside their bounds."""
    first, *others = figures
    base = figures[first]

    def saved(name: str, key: str) -> float | None:
        return 1 - figures[name][key] / base[key] if base[key] else None

    return {
        name: {
            "prefill": saved(name, "prefill_seconds"),
            "prefill_bound": saved(name, "prefill_flops"),
            "decode": saved(name, "decode_seconds"),
            "decode_bound": saved(name, "decode_bytes"),
        }
        for name in others
    }
