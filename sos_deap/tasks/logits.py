"""Logits for a part of the positions at a time, so that tokens x vocabulary never exist at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sos_deap.models.narrow import replaced

#: Most logits at a time, by type of device: on a CPU 8 MiB of them in float32, which stay in its
#: cache; elsewhere 128 MiB, since each slice costs the start of some kernels.
MOST_LOGITS = {"cpu": 2**21}
MOST_LOGITS_ACCELERATOR = 2**25


def logits_in_slices(
    model: Any, input_ids: Tensor, most: int | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """A causal language model's logits for all positions, in turn.

    The layers run once over the whole input. What follows them (the head, and soft-capping or
    scaling where a model has it) runs in the model's own code, on a slice of the hidden states.

    :param model: the model.
    :param input_ids: (rows, tokens).
    :param most: most logits at a time, over all rows; one position's are computed in any case.
        ``None`` for :data:`MOST_LOGITS`.
    :returns: slices of positions, each with its logits, (rows, positions, vocabulary).
    """
    rows, tokens = input_ids.shape
    if most is None:
        most = MOST_LOGITS.get(input_ids.device.type, MOST_LOGITS_ACCELERATOR)
    step = max(1, most // (rows * model.config.get_text_config().vocab_size))
    if step >= tokens:
        yield slice(0, tokens), model(input_ids, use_cache=False).logits
        return
    body = model.get_decoder()
    states = body(input_ids=input_ids, use_cache=False)
    for start in range(0, tokens, step):
        part = slice(start, min(start + step, tokens))
        with _answering(body, states, states.last_hidden_state[:, part]):
            logits = model(input_ids[:, part], use_cache=False).logits
        yield part, logits


def logits_at(model: Any, input_ids: Tensor, positions: Tensor) -> Tensor:
    """A masked language model's logits at one position of each row.

    :param model: the model.
    :param input_ids: (rows, tokens).
    :param positions: (rows,).
    :returns: (rows, vocabulary).
    """
    body = model.base_model
    states = body(input_ids=input_ids)
    rows = torch.arange(len(input_ids), device=input_ids.device)
    with _answering(body, states, states.last_hidden_state[rows, positions][:, None]):
        logits: Tensor = model(input_ids[:, :1]).logits
    return logits[:, 0]


@contextmanager
def _answering(body: torch.nn.Module, states: Any, part: Tensor) -> Iterator[None]:
    """Let a model's layers answer with a part of hidden states that they computed before."""
    answered = False

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal answered
        answered = True
        return type(states)(**{**states, "last_hidden_state": part})

    with replaced(body, forward=forward):
        yield
    if not answered:
        raise RuntimeError(f"{type(body).__name__} is not what the language model runs")
