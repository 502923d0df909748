"""Write a causal language model, pruned or not, as a GGUF file for unmodified llama.cpp."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sos_deap.errors import InputError, first_line
from sos_deap.export.gguf_architectures import (
    FILE_TYPES,
    FUSED,
    Architecture,
    Sizes,
    add_metadata,
    checked_architecture,
    read_rotary,
)
from sos_deap.export.gguf_tensors import fuse, tensors_of
from sos_deap.export.gguf_tokenizer import add_tokenizer, read_vocabulary
from sos_deap.files.atomic import whole_file


def write_gguf(model: PreTrainedModel, tokenizer: Any, path: Path) -> list[int]:
    """Write a model and its tokenizer as one GGUF file.

    The architectures are those of :data:`~sos_deap.export.gguf_architectures.ARCHITECTURES`. If all
    layers have the same sizes, the file has the model's architecture (``llama`` for Llama, Mistral
    and Qwen 2), which most programs support. Otherwise it has one with numbers of heads and
    feed-forward channels per layer: ``deci`` for Llama, Mistral and Qwen 2, ``openelm`` for Qwen 3
    with a tied embedding, and none for Gemma. Matrices are stored in the model's dtype, vectors in
    float32.

    llama.cpp skips a layer of ``deci`` without feed-forward channels, its attention included, and
    aborts if the last layer has none. A feed-forward without channels is therefore written with 32
    channels whose weights are 0 if the layer has attention or the feed-forward has a bias, and in
    the first and the last layer; for the other architectures, in all layers.

    The file's tokenizer gives the same tokens as the Hugging Face tokenizer, with two exceptions.
    For a Metaspace pre-tokenizer (Llama 2 in transformers 5), llama.cpp also inserts a space before
    text that starts with a space and, with ``prepend_scheme="first"``, before text that follows a
    special token. And it does not normalise text to NFC, as Qwen's tokenizers do.

    :param model: a causal language model in float32, float16 or bfloat16.
    :param tokenizer: its fast tokenizer.
    :param path: the file; it is written under a temporary name, then renamed.
    :returns: the numbers of the layers that were written with a feed-forward of zeros, from 0.
    :raises InputError: for a model or a tokenizer that llama.cpp cannot represent, for a path that
        cannot be written, and if the package ``gguf`` is not installed.
    """
    gguf = _package()
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}")
    row = checked_architecture(model)
    config: Any = model.config
    vocabulary = read_vocabulary(tokenizer, config.vocab_size)
    rotary = read_rotary(config, row)
    sizes, tensors = tensors_of(model, row, _names(gguf, row, config.num_hidden_layers))
    name = _name(config, row, sizes)
    if name in FUSED:
        tensors = fuse(tensors)
    if rotary.divisors is not None:
        tensors["rope_freqs.weight"] = rotary.divisors
    writer = gguf.GGUFWriter(None, name)
    add_metadata(writer, config, row, sizes, rotary)
    writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[model.dtype]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_tokenizer(writer, vocabulary, tokenizer)
    for tensor_name, tensor in tensors.items():
        _add_tensor(writer, tensor_name, tensor, gguf.GGMLQuantizationType.BF16)
    _write(writer, path)
    layers: Any = model.model.layers
    channels = [layer.mlp.down_proj.in_features for layer in layers]
    return [i for i, size in enumerate(sizes) if size.channels and not channels[i]]


def _names(gguf: Any, row: Architecture, layers: int) -> Any:
    """Return the table from transformers' names of tensors to llama.cpp's."""
    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    return gguf.get_tensor_name_map(numbers[row.equal], layers)


def _name(config: Any, row: Architecture, sizes: list[Sizes]) -> str:
    """Return llama.cpp's name of the architecture, which must support the sizes of the layers."""
    if len(set(sizes)) == 1:
        return row.equal
    if not row.unequal:
        raise InputError(
            f"the layers of this {config.model_type} model have different sizes, and llama.cpp "
            "reads them from the first layer: prune it with --layout uniform, or a Llama, Mistral, "
            "Qwen 2 or Qwen 3 model with any genes"
        )
    if row.unequal in FUSED and not config.tie_word_embeddings:
        raise InputError(
            f"the layers of this {config.model_type} model have different sizes, which llama.cpp "
            "supports with tie_word_embeddings only: prune it with --layout uniform"
        )
    return row.unequal


def _package() -> Any:
    try:
        return importlib.import_module("gguf")
    except ImportError as error:
        raise InputError(
            "writing a GGUF file needs the package gguf: pip install 'sos_deap[gguf]'"
        ) from error


def _write(writer: Any, path: Path) -> None:
    try:
        with whole_file(path) as part:
            try:
                writer.write_header_to_file(part)
                writer.write_kv_data_to_file()
                writer.write_tensors_to_file()
            finally:
                writer.close()
    except OSError as error:
        why = error.strerror or first_line(error)  # numpy's errors have no strerror
        raise InputError(f"cannot write {path}: {why}") from error


def _add_tensor(writer: Any, name: str, tensor: Tensor, bfloat16: Any) -> None:
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dim() == 1:  # llama.cpp adds and multiplies vectors in float32
        writer.add_tensor(name, tensor.float().numpy())
    elif tensor.dtype == torch.bfloat16:  # numpy has no such dtype
        writer.add_tensor(name, tensor.view(torch.uint8).numpy(), raw_dtype=bfloat16)
    else:
        writer.add_tensor(name, tensor.numpy())
