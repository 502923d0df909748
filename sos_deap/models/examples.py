"""Random inputs of any size for any model, for timing, tracing and comparison."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sos_deap.errors import InputError


def random_inputs(model: Any, rows: int, tokens: int, decoder_tokens: int = 1) -> dict[str, Tensor]:
    """Return random inputs for a model, on its device; equal arguments give equal inputs.

    :param model: a model of token ids or of images.
    :param rows: number of sequences or images.
    :param tokens: tokens per sequence; without effect on images.
    :param decoder_tokens: tokens per sequence for the decoder of an encoder-decoder.
    :returns: ``input_ids`` and ``attention_mask`` of shape (rows, tokens), with
        ``decoder_input_ids`` of shape (rows, decoder_tokens) for an encoder-decoder; or
        ``pixel_values`` of shape (rows, channels, height, width).
    :raises InputError: for a model with another kind of input.
    """
    config = model.config
    random = torch.Generator().manual_seed(rows)  # torch's global generator is not used
    if model.main_input_name == "pixel_values":
        size = config.image_size
        height, width = size if isinstance(size, list | tuple) else (size, size)
        pixels = torch.randn((rows, config.num_channels, height, width), generator=random)
        return {"pixel_values": pixels.to(model.device, model.dtype)}
    if model.main_input_name != "input_ids":
        raise InputError(
            f"a {type(model).__name__} takes {model.main_input_name}: give a model of input_ids or "
            "pixel_values"
        )
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.randint(vocabulary, (rows, tokens), generator=random)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if config.is_encoder_decoder:
        target = torch.randint(vocabulary, (rows, decoder_tokens), generator=random)
        batch["decoder_input_ids"] = target
    return {name: value.to(model.device) for name, value in batch.items()}
