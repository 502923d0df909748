"""Random inputs of any size for any model, to time it, trace it or compare it on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sos_deap.errors import InputError


def random_inputs(model: Any, rows: int, tokens: int, decoder_tokens: int = 1) -> dict[str, Tensor]:
    """What a model takes, on its device; the same in every call.

    :param model: a model of token ids or of images.
    :param rows: sequences or images.
    :param tokens: tokens in a sequence; without effect on images.
    :param decoder_tokens: the same for the decoder of an encoder-decoder.
    :returns: ``input_ids`` and ``attention_mask`` of shape (rows, tokens) and where there is a
        decoder ``decoder_input_ids``, or ``pixel_values`` of shape (rows, channels, height, width).
    :raises InputError: for a model that takes something else.
    """
    config = model.config
    random = torch.Generator().manual_seed(rows)  # not the user's own random numbers
    if model.main_input_name == "pixel_values":
        size = config.image_size
        height, width = size if isinstance(size, list | tuple) else (size, size)
        pixels = torch.randn((rows, config.num_channels, height, width), generator=random)
        return {"pixel_values": pixels.to(model.device, model.dtype)}
    if model.main_input_name != "input_ids":
        raise InputError(
            f"a {type(model).__name__} takes {model.main_input_name}: only models of input_ids or "
            "pixel_values are served here"
        )
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.randint(vocabulary, (rows, tokens), generator=random)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if config.is_encoder_decoder:
        target = torch.randint(vocabulary, (rows, decoder_tokens), generator=random)
        batch["decoder_input_ids"] = target
    return {name: value.to(model.device) for name, value in batch.items()}
