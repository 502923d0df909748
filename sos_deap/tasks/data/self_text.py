"""Calibration text that the model itself generates, for use without data.

LLM-QAT (Liu et al., 2023, arXiv:2305.17888) generates its calibration data in this way.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor

from sos_deap.errors import InputError
from sos_deap.tasks.data.sequences import Sequences, SpecialTokens

_ROWS = 32  # sequences generated at a time


def sampled_sequences(
    model: Any,
    part: str,
    count: int,
    seqlen: int,
    *,
    temperature: float,
    seed: int,
    start: SpecialTokens | None = None,
) -> Sequences:
    """Sample sequences from a causal language model.

    Each sequence begins with the given start tokens, else with the model's begin-of-text token, or
    with a random token if the model has none. After the end of a text another text follows, as in
    training on concatenated text.

    :param model: the dense model.
    :param part: name of the part, for the report; each part has different text.
    :param count: number of sequences.
    :param seqlen: tokens in each sequence.
    :param temperature: above 0; 1 samples the model's own distribution.
    :param seed: seed of the draw; torch's global generator is not changed.
    :param start: special tokens at the head of each sequence; default: none.
    :raises InputError: if the model's probabilities are not finite.
    """
    start = start or SpecialTokens()
    with torch.random.fork_rng(), torch.inference_mode():
        # Hashed to 32 bits for torch, so that the parts differ for every seed.
        torch.manual_seed(Random(f"{part} {seed}").getrandbits(32))
        rows = [
            _generated(model, start.before, min(_ROWS, count - first), seqlen, temperature)
            for first in range(0, count, _ROWS)
        ]
    name = f"builtin:self {part}, temperature {temperature}, seed {seed}"
    context = max(1, len(start.before))
    return Sequences(name, torch.cat(rows).cpu(), start.start_token, context)


def _generated(
    model: Any, before: Sequence[int], rows: int, seqlen: int, temperature: float
) -> Tensor:
    """Generate token sequences, (rows, seqlen), that begin with some tokens."""
    begin_token = model.config.get_text_config().bos_token_id
    if before:
        first = torch.tensor([before]).expand(rows, -1)
    elif begin_token is not None:
        first = torch.full((rows, 1), begin_token)
    else:
        first = torch.randint(model.get_input_embeddings().num_embeddings, (rows, 1))
    ids = first.to(model.device)
    cache = None
    while ids.shape[1] < seqlen:
        new = ids if cache is None else ids[:, -1:]
        output = model(new, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        probabilities = (output.logits[:, -1].float() / temperature).softmax(-1)
        if not probabilities.isfinite().all():
            raise InputError("the model computes no probabilities (NaN): try --dtype float32")
        # On the CPU, so that a seed gives the same draws on every device.
        ids = torch.cat((ids, torch.multinomial(probabilities.cpu(), 1).to(ids)), dim=1)
    return ids
