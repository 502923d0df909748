"""Logits for some positions at a time, so that memory never holds tokens x vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sos_deap.models.narrow import replaced

#: Most logits at a time, by type of device: 8 MiB in float32 on a CPU, which fit its cache; 128 MiB
#: on an accelerator, since each slice costs several kernel launches.
MOST_LOGITS = {"cpu": 2**21}
MOST_LOGITS_ACCELERATOR = 2**25


def logits_in_slices(
    model: Any, input_ids: Tensor, most: int | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Yield a causal language model's logits, slice of positions by slice.

    The layers run once over the whole input. The language-model head (with soft-capping or scaling,
    if any) then runs in the model's own code on slices of the hidden states.

    :param model: the model.
    :param input_ids: token ids, (rows, tokens).
    :param most: most logits per slice, over all rows, at least those of one position; default:
        :data:`MOST_LOGITS` of the device.
    :returns: pairs of a slice of positions and its logits, (rows, positions, vocabulary).
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
        with _body_returning(body, states, states.last_hidden_state[:, part]):
            logits = model(input_ids[:, part], use_cache=False).logits
        yield part, logits


def logits_at(model: Any, input_ids: Tensor, positions: Tensor) -> Tensor:
    """Return a masked language model's logits at one position of each row.

    :param model: the model.
    :param input_ids: token ids, (rows, tokens).
    :param positions: position in each row, (rows,).
    :returns: logits, (rows, vocabulary).
    """
    body = model.base_model
    states = body(input_ids=input_ids)
    rows = torch.arange(len(input_ids), device=input_ids.device)
    with _body_returning(body, states, states.last_hidden_state[rows, positions][:, None]):
        logits: Tensor = model(input_ids[:, :1]).logits
    return logits[:, 0]


@contextmanager
def _body_returning(body: torch.nn.Module, states: Any, part: Tensor) -> Iterator[None]:
    """Replace the forward pass of a model's layers by part of a result computed before.

    :param body: the layers.
    :param states: their output.
    :param part: the hidden states to return, (rows, positions, width).
    """
    called = False

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal called
        called = True
        return type(states)(**{**states, "last_hidden_state": part})

    with replaced(body, forward=forward):
        yield
    if not called:
        raise RuntimeError(f"{type(body).__name__} is not what the language model runs")
