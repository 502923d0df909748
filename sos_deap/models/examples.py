"""Random inputs of any size for any model, for timing, tracing and comparison."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sos_deap.errors import InputError


def random_inputs(model: Any, rows: int, tokens: int, decoder_tokens: int = 1) -> dict[str, Tensor]:
    """Return random inputs for a model, on its device; equal arguments give equal inputs.

    :param model: a model of token ids, of images, of both, or of sound.
    :param rows: number of sequences, images or sounds.
    :param tokens: tokens per sequence, or vectors that a model of waveforms makes of a sound;
        without effect on images and spectrograms, whose sizes are in the config.
    :param decoder_tokens: tokens per sequence for the decoder of an encoder-decoder.
    :returns: ``input_ids`` and ``attention_mask`` of shape (rows, tokens); or ``pixel_values`` of
        shape (rows, channels, height, width); both of them for a model that compares texts with
        images; or the ``input_values`` or ``input_features`` of a model of sound: waveforms of
        shape (rows, samples) or spectrograms with ``num_mel_bins`` values for each of a number of
        times. For an encoder-decoder also ``decoder_input_ids`` of shape (rows, decoder_tokens).
    :raises InputError: for a model with another kind of input.
    """
    config, name = model.config, model.main_input_name
    random = torch.Generator().manual_seed(rows)  # torch's global generator is not used
    batch = {}
    if name == "input_ids":
        batch["input_ids"] = _ids(model, (rows, tokens), random)
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        if hasattr(model, "get_text_features") and hasattr(config, "vision_config"):
            batch["pixel_values"] = _numbers(model, (rows, *_image(config.vision_config)), random)
    else:
        batch[name] = _numbers(model, (rows, *_size(model, name, tokens)), random)
    if config.is_encoder_decoder:
        batch["decoder_input_ids"] = _ids(model, (rows, decoder_tokens), random)
    return {name: value.to(model.device) for name, value in batch.items()}


def _ids(model: Any, shape: tuple[int, int], random: torch.Generator) -> Tensor:
    return torch.randint(model.config.get_text_config().vocab_size, shape, generator=random)


def _numbers(model: Any, shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=random).to(model.dtype)


def _size(model: Any, name: str, tokens: int) -> tuple[int, ...]:
    """The shape of one image or sound.

    :param name: the name of the input.
    :param tokens: number of vectors that convolutions make of a waveform.
    """
    config = model.config
    if name == "pixel_values":
        return _image(config)
    if name == "input_values" and hasattr(config, "conv_stride"):  # such as Wav2Vec2
        for kernel, stride in zip(config.conv_kernel[::-1], config.conv_stride[::-1], strict=True):
            tokens = (tokens - 1) * stride + kernel
        return (tokens,)
    if hasattr(config, "num_mel_bins") and name == "input_values":
        return config.max_length, config.num_mel_bins  # the Audio Spectrogram Transformer
    if hasattr(config, "num_mel_bins") and name == "input_features" and config.is_encoder_decoder:
        return config.num_mel_bins, 2 * config.max_source_positions  # Whisper halves the length
    raise InputError(
        f"a {type(model).__name__} takes {name}: give a model of input_ids, of pixel_values, or of "
        "the sound that Wav2Vec2, Whisper or the Audio Spectrogram Transformer takes"
    )


def _image(config: Any) -> tuple[int, int, int]:
    size = config.image_size
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return config.num_channels, height, width
