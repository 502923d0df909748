"""Measure what pruning saves in time and memory, and compare it with the predicted saving.

The saving of a prefill is predicted from its floating-point operations, since arithmetic limits it.
The saving of decoding is predicted from the bytes read, since each new token reads every weight and
the key/value cache once.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sos_deap.errors import InputError
from sos_deap.models.examples import random_inputs
from sos_deap.models.flops import counting
from sos_deap.models.length import most_tokens
from sos_deap.models.memory import fits_in_memory
from sos_deap.models.quantised import weight_bytes
from sos_deap.models.timing import alternate, decode_seconds, generates, prefill

#: Maximum tokens of a batch, including the new ones; more would not fit into any memory.
MOST_TOKENS = 10**9
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler logs its own start and stop


def measure(
    models: Mapping[str, Any],
    *,
    batch_sizes: Sequence[int] = (1,),
    lengths: Sequence[int] = (128,),
    new_tokens: int = 32,
    rounds: int | None = None,
    seconds: float = 30.0,
) -> list[dict[str, Any]]:
    """Measure models in this process, one after the other in each round, after a warm-up.

    :param models: models by name, such as ``dense`` and ``pruned``, on the same device; the others
        are compared with the first one.
    :param batch_sizes: numbers of sequences.
    :param lengths: prompt lengths in tokens; without effect on models of images
        and of spectrograms.
    :param new_tokens: tokens to decode after the prompt, at least 2; 0 for none. Models that do not
        generate do not decode.
    :param rounds: how often each model is timed; the results are medians and quartiles. Default:
        until the quartiles settle (:func:`sos_deap.models.timing.settled`).
    :param seconds: after this time no further round starts, but there are at least
        :data:`~sos_deap.models.timing.LEAST_ROUNDS` rounds.
    :returns: one row for each batch size and length. Under ``models`` it has for each model
        ``prefill_seconds``, ``decode_seconds`` (between two tokens of a sequence),
        ``prefill_quartiles`` and ``decode_quartiles`` (the first and the third),
        ``decode_tokens_per_second`` (over all sequences), ``peak_bytes`` (the weights and the most
        that a prefill allocates), ``kv_bytes_per_token``, ``weight_bytes``, ``prefill_flops`` and
        ``decode_bytes``. Under ``gains`` it has for each model but the first the savings and their
        bounds, as shares of the first model's time.
    :raises InputError: for a size below 1 or too large for the memory, for a prompt longer than the
        model's positions, and for models whose inputs differ.
    """
    check_sizes(batch_sizes, lengths, new_tokens, rounds, seconds)
    _check_same_input(models)
    first, rows = next(iter(models.values())), []
    decoded = new_tokens if all(map(generates, models.values())) else 0
    for length in lengths:  # all of them before the first is timed
        _check_positions(first, length, decoded)
    for batch_size in batch_sizes:
        for length in lengths:
            with torch.inference_mode(), _fits(batch_size, length):
                batch = random_inputs(first, batch_size, length)
                times = alternate(models, batch, decoded, rounds, seconds)
                figures = {
                    name: _figures(model, batch, decoded) | times[name].figures(batch_size)
                    for name, model in models.items()
                }
            row: dict[str, Any] = {"batch_size": batch_size, "length": length}
            row |= {"new_tokens": decoded, "rounds": len(times[next(iter(models))].prefill)}
            rows.append(row | {"models": figures, "gains": _gains(figures)})
    return rows


def check_sizes(
    batch_sizes: Sequence[int],
    lengths: Sequence[int],
    new_tokens: int,
    rounds: int | None,
    seconds: float,
) -> None:
    """Raise :class:`InputError` for sizes that :func:`measure` cannot use."""
    sizes = [*batch_sizes, *lengths, 1 if rounds is None else rounds]
    if new_tokens == 1 or min(sizes) < 1 or new_tokens < 0:
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


def try_out(model: Any, length: int, new_tokens: int) -> None:
    """Run one forward pass of each kind that :func:`measure` times, so that errors are found early.

    :param model: the model.
    :param length: prompt length in tokens.
    :param new_tokens: tokens to decode after the prompt; 0 for none.
    :raises InputError: for a prompt longer than the model's positions.
    """
    decoded = new_tokens if generates(model) else 0
    _check_positions(model, length, decoded)
    batch = random_inputs(model, 1, length)
    with torch.inference_mode():
        _figures(model, batch, 0)
        if decoded:
            decode_seconds(model, batch, 2)


def _fits(batch_size: int, length: int) -> contextlib.AbstractContextManager[None]:
    return fits_in_memory(
        f"memory ran out for batch size {batch_size} and length {length}: give smaller "
        "--batch_sizes or --lengths"
    )


def _check_same_input(models: Mapping[str, Any]) -> None:
    """Raise :class:`InputError` for models that cannot be timed on the same batch."""
    (first, model), *others = models.items()
    for name, other in others:
        if _input(other) != _input(model):
            raise InputError(
                f"the {first} model takes {_input(model)}, the {name} model {_input(other)}: "
                "give a model and the one from which it was pruned"
            )


def _input(model: Any) -> str:
    """Name the inputs of a model, for comparison and for error messages."""
    config = model.config
    if model.main_input_name != "input_ids":  # such as pixel_values
        return str(model.main_input_name)
    what = f"{model.main_input_name} of {config.get_text_config().vocab_size:,} tokens"
    return f"{what} and decoder_input_ids" if config.is_encoder_decoder else what


def _check_positions(model: Any, length: int, new_tokens: int) -> None:
    longest = most_tokens(model)
    if longest is not None and length + new_tokens > longest:
        raise InputError(
            f"length {length} and {new_tokens} new tokens are more than the model's {longest} "
            "positions: give a smaller --lengths or --new_tokens"
        )


def _figures(model: Any, batch: dict[str, Tensor], new_tokens: int) -> dict[str, Any]:
    """Compute the figures that are counted rather than timed.

    :param model: the model.
    :param batch: the inputs of a prefill.
    :param new_tokens: tokens to decode; on average half of them are in the key/value cache.
    """
    weights = weight_bytes(model)
    with counting(model) as counter:
        output = prefill(model, batch)
    main = batch[model.main_input_name]
    # Of sound, the cache holds the vectors that the encoder makes.
    cached = getattr(output, "encoder_last_hidden_state", None)
    sequences, tokens = (main if cached is None else cached).shape[:2]
    cache_bytes = _cache_bytes(output) / (sequences * tokens)
    del output, cached
    read = weights - _lookup_bytes(model)
    return {
        "weight_bytes": weights,
        "peak_bytes": weights + peak_bytes(model, lambda: prefill(model, batch)),
        "kv_bytes_per_token": cache_bytes,
        "prefill_flops": counter.get_total_flops(),
        "decode_bytes": read + cache_bytes * (tokens + new_tokens / 2) * sequences,
    }


def _lookup_bytes(model: Any) -> int:
    """Bytes of an embedding table of which decoding reads single rows only; 0 if it is tied."""
    if not generates(model):
        return 0
    weight, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    if head is not None and head.weight is weight:
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
    """Run a function and return the most bytes that it has allocated at a time.

    :param model: the model that the function runs; only memory on its device counts.
    :param function: the function, without arguments.
    """
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
    """Shares of the first model's time that the others save, and the bounds of these savings."""
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
