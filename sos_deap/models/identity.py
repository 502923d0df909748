"""Identify models: a chromosome is valid only for the weights for which it was found."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import torch
import xxhash
from torch import Tensor

from sos_deap.models.quantised import stored_parts

#: Fields of a config that do not change what a model computes: names, versions, and what its
#: forward pass returns besides the logits. The dtype is counted with the weights, and special
#: tokens with the task (the scope of an evaluator includes the padding token).
_NOT_COMPUTING = frozenset(
    [
        *("architectures", "auto_map", "dtype", "torch_dtype", "transformers_version"),
        *("id2label", "label2id", "problem_type", "task_specific_params"),
        *("output_attentions", "output_hidden_states", "return_dict", "use_cache"),
    ]
)

#: Prefix of fingerprints; it changes with the way they are computed, so that old ones never match.
FORMAT = "v2-"


def fingerprint(model: Any, dtype: torch.dtype | None = None) -> str:
    """Return a hash of everything that a model computes with: config, weights and their dtypes.

    Weights are hashed as they are stored, so a model in another dtype has another fingerprint. What
    transformers derives from the config, such as rotary frequencies, is included through the
    config.

    :param model: a transformers model, or any module without a config.
    :param dtype: the dtype of its weights as stored, if it was loaded in a wider one. Default: that
        of the model.
    :returns: :data:`FORMAT` and 32 hexadecimal digits of XXH3, which is about as fast as copying
        the weights. XXH3 is not cryptographic: models with equal fingerprints can be constructed.
    """
    found = xxhash.xxh3_128()
    config = getattr(model, "config", None)
    settings = _computing(config.to_dict()) if config is not None else {}
    found.update(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in _weights(model, dtype):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        found.update(values.numpy().data)
    return f"{FORMAT}{found.hexdigest()}"


def state(model: Any) -> tuple[Any, ...]:
    """Return a value that changes whenever a model's weights change, within one process.

    It is cheap, since no weights are read: PyTorch counts the in-place changes of each tensor.
    Changes through ``.data`` are not counted.

    :param model: a module.
    :returns: a tuple to compare with an earlier one of the same model.
    """
    return tuple(
        (name, tensor.data_ptr(), tensor.dtype, 0 if tensor.is_inference() else tensor._version)
        for name, tensor in _weights(model)
    )


def _weights(model: Any, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
    """The parameters, each shared one once, and the buffers that are saved with them.

    :param model: a module.
    :param dtype: dtype of floating-point numbers, except the scales of int8 weights.
    """
    for name, parameter in model.named_parameters():
        for part, tensor in stored_parts(parameter):
            yield f"{name}{part}", tensor if part else _in(dtype, tensor)
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(prefix, recurse=False):
            if name.rpartition(".")[2] not in module._non_persistent_buffers_set:
                yield name, _in(dtype, buffer)


def _in(dtype: torch.dtype | None, tensor: Tensor) -> Tensor:
    return tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)


def _computing(value: Any) -> Any:
    """The fields of a config that change what a model computes, nested ones included, as JSON."""
    if isinstance(value, dict):
        return {str(key): _computing(inner) for key, inner in value.items() if _counts(str(key))}
    if isinstance(value, list | tuple):
        return [_computing(inner) for inner in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _counts(name: str) -> bool:
    return not (name in _NOT_COMPUTING or name.startswith("_") or name.endswith("_token_id"))
