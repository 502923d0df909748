"""Calibration text that a model writes itself, for those who have no data.

After LLM-QAT (Liu et al., 2023, arXiv:2305.17888), which generates its calibration data so.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor

from sos_deap.errors import InputError
from sos_deap.tasks.data.sequences import Ends, Sequences

_ROWS = 32  # sequences written at once


def sampled_sequences(
    model: Any,
    part: str,
    count: int,
    seqlen: int,
    *,
    temperature: float,
    seed: int,
    start: Ends | None = None,
) -> Sequences:
    """Sequences sampled from a causal language model.

    Each begins with the start tokens given, else with the model's begin-of-text token, or with any
    token where there is none. A text that ends is followed by another, as in training on
    concatenated text.

    :param model: the dense model.
    :param part: name of the part, for the report; each has other text.
    :param count: how many sequences.
    :param seqlen: tokens in each.
    :param temperature: above 0; 1 samples the model's own distribution.
    :param seed: for the draw; torch's global generator is left as it was.
    :param start: tokens at the head of each sequence.
    :raises InputError: if the model computes probabilities that are none.
    """
    start = start or Ends()
    with torch.random.fork_rng(), torch.inference_mode():
        # torch takes 32 bits: the parts' are told apart whatever the seed.
        torch.manual_seed(Random(f"{part} {seed}").getrandbits(32))
        rows = [
            _written(model, start.before, min(_ROWS, count - first), seqlen, temperature)
            for first in range(0, count, _ROWS)
        ]
    name = f"builtin:self {part}, temperature {temperature}, seed {seed}"
    context = max(1, len(start.before))
    return Sequences(name, torch.cat(rows).cpu(), start.start_token, context)


def _written(
    model: Any, before: Sequence[int], rows: int, seqlen: int, temperature: float
) -> Tensor:
    begin = model.config.get_text_config().bos_token_id
    if before:
        first = torch.tensor([before]).expand(rows, -1)
    elif begin is not None:
        first = torch.full((rows, 1), begin)
    else:
        first = torch.randint(model.get_input_embeddings().num_embeddings, (rows, 1))
    ids = first.to(model.device)
    cache = None
    while ids.shape[1] < seqlen:
        new = ids if cache is None else ids[:, -1:]
        output = model(new, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        chances = (output.logits[:, -1].float() / temperature).softmax(-1)
        if not chances.isfinite().all():
            raise InputError("the model computes no probabilities: try --dtype float32")
        # Drawn on the CPU, so that the seed means the same on every device.
        ids = torch.cat((ids, torch.multinomial(chances.cpu(), 1).to(ids)), dim=1)
    return ids
