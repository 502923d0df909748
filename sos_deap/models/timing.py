"""Time the prefill and the decoding of models, in alternation."""

from __future__ import annotations

import inspect
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from sos_deap.models.generating import generate

_T = TypeVar("_T")

#: What of a model's work is timed: a forward pass on a prompt, or one step of the generation.
TIMES_OF = ("prefill", "decode")

#: Minimum number of rounds, however long they take: a median of fewer is not reliable.
LEAST_ROUNDS = 3
_WARM_UP = 2  # rounds
_LATEST = 5  # rounds without which the quartiles must be nearly the same
_MOVED = 0.01  # most that a quartile may differ by then, as a share of it


@dataclass
class Times:
    """Measured times of one model, one entry per round.

    :param prefill: seconds of a prefill.
    :param decode: seconds between two tokens of a sequence.
    """

    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)

    def figures(self, batch_size: int) -> dict[str, Any]:
        """Return medians and quartiles over the rounds; those of decoding are ``None`` without it.

        :param batch_size: number of sequences.
        """
        decode = statistics.median(self.decode) if self.decode else None
        return {
            "prefill_seconds": statistics.median(self.prefill),
            "prefill_quartiles": quartiles(self.prefill),
            "decode_seconds": decode,
            "decode_quartiles": quartiles(self.decode) if self.decode else None,
            "decode_tokens_per_second": batch_size / decode if decode else None,
        }


def alternate(
    models: Mapping[str, Any],
    batch: dict[str, Tensor],
    new_tokens: int,
    rounds: int | None,
    seconds: float,
) -> dict[str, Times]:
    """Time each model once per round, so that a change of the machine's speed affects all alike.

    :param models: models by name.
    :param batch: their inputs.
    :param new_tokens: tokens to decode; 0 for none.
    :param rounds: number of rounds after the warm-up; ``None``: until the quartiles of all times
        have settled (:func:`settled`).
    :param seconds: after this time no further round starts, but there are at least
        :data:`LEAST_ROUNDS` rounds.
    :returns: the times by the model's name.
    """

    def once(name: str) -> tuple[float, float | None]:
        model = models[name]
        prefilled = seconds_of(model, "prefill", batch)
        return prefilled, decode_seconds(model, batch, new_tokens) if new_tokens else None

    return timed(models, once, rounds, seconds)


def timed(
    names: Iterable[str],
    once: Callable[[str], tuple[float, float | None]],
    rounds: int | None,
    seconds: float,
) -> dict[str, Times]:
    """Return the times of models by name; see :func:`alternate`.

    :param names: names of the models.
    :param once: function from a name to the seconds of a prefill and of a decoding step, the latter
        ``None`` without decoding.
    :param rounds: number of rounds, or ``None`` until the quartiles settle.
    :param seconds: after this time no further round starts.
    """

    def enough(found: Mapping[str, list[tuple[float, float | None]]]) -> bool:
        series = [list(zip(*both, strict=True)) for both in found.values()]
        return all(settled(times) for pair in series for times in pair if None not in times)

    most, ended = (10**6, enough) if rounds is None else (rounds, None)
    return {
        name: Times([first for first, _ in both], [last for _, last in both if last is not None])
        for name, both in interleaved(names, once, most, seconds, ended=ended).items()
    }


def quartiles(values: Sequence[float]) -> list[float]:
    """Return the first and the third quartile of at least one value."""
    if len(values) == 1:
        return [values[0], values[0]]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return [first, third]


def settled(values: Sequence[float]) -> bool:
    """Whether the latest 5 of at least 10 values moved neither quartile by more than 1 %."""
    if len(values) < 2 * _LATEST:
        return False
    now, before = quartiles(values), quartiles(values[:-_LATEST])
    return all(abs(a - b) <= _MOVED * b for a, b in zip(now, before, strict=True))


def interleaved(
    names: Iterable[str],
    once: Callable[[str], _T],
    rounds: int,
    seconds: float,
    warm_up: int = _WARM_UP,
    ended: Callable[[Mapping[str, list[_T]]], bool] | None = None,
) -> dict[str, list[_T]]:
    """Call a function for each name in turn, round by round, after a warm-up.

    :param names: the names.
    :param once: function from a name to a measured value.
    :param rounds: number of rounds after the warm-up.
    :param seconds: after this time no further round starts, but there are at least
        :data:`LEAST_ROUNDS` rounds.
    :param warm_up: number of rounds before, whose values are dropped.
    :param ended: whether the values so far are enough, so that no further round starts.
    :returns: the values by name, one for each round.
    """
    found: dict[str, list[_T]] = {name: [] for name in names}
    started = time.perf_counter()
    for number in range(-warm_up, rounds):
        if number >= LEAST_ROUNDS and (
            time.perf_counter() - started > seconds or (ended is not None and ended(found))
        ):
            break
        for name, values in found.items():
            value = once(name)
            if number >= 0:
                values.append(value)
    return found


def seconds_of(model: Any, of: str, batch: dict[str, Tensor], new_tokens: int = 2) -> float:
    """Measure one prefill of a batch, or the mean time of a decoding step after it.

    :param model: the model.
    :param of: one of :data:`TIMES_OF`.
    :param batch: its inputs.
    :param new_tokens: tokens to decode, at least 2.
    """
    if of == "decode":
        return decode_seconds(model, batch, new_tokens)
    started = _now(model)
    prefill(model, batch)
    return _now(model) - started


def generates(model: Any) -> bool:
    """Whether a model generates text."""
    return bool(model.can_generate())


def prefill(model: Any, batch: dict[str, Tensor]) -> Any:
    """Run one forward pass as generation runs it on a prompt.

    :param model: the model.
    :param batch: its inputs.
    :returns: the model's output, with the logits of the last position and a key/value cache as far
        as the model has them.
    """
    last = "logits_to_keep" in inspect.signature(model.forward).parameters
    extra = {"logits_to_keep": 1} if last else {}
    if generates(model):
        extra["use_cache"] = True
    return model(**batch, **extra)


def decode_seconds(model: Any, batch: dict[str, Tensor], new_tokens: int) -> float:
    """Measure the mean time between two tokens of greedy generation, without the prefill.

    :param model: a model that generates.
    :param batch: its inputs.
    :param new_tokens: tokens to decode, at least 2.
    :returns: seconds.
    """
    ticks: list[float] = []

    class Clock(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
            ticks.append(_now(model))
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    # Without an end token, so that all sequences have the same length.
    settings = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, pad_token_id=0)
    given = {name: value for name, value in batch.items() if name != "decoder_input_ids"}
    if model.config.is_encoder_decoder:
        settings.decoder_start_token_id = 0
    generate(model, settings, **given, stopping_criteria=StoppingCriteriaList([Clock()]))
    return (ticks[-1] - ticks[0]) / (len(ticks) - 1)


def _now(model: Any) -> float:
    """The time in seconds, after all work on the model's device has ended."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()
