"""Tell models apart: a chromosome fits the weights it was found for, and no others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import torch
import xxhash
from torch import Tensor

#: Fields of a configuration that do not change what a model computes: names, versions, and what its
#: forward pass returns beside the logits. The dtype is that of the weights; token numbers are the
#: task's (an evaluator's scope has the padding token).
_NOT_COMPUTING = frozenset(
    [
        *("architectures", "auto_map", "dtype", "torch_dtype", "transformers_version"),
        *("id2label", "label2id", "problem_type", "task_specific_params"),
        *("output_attentions", "output_hidden_states", "return_dict", "use_cache"),
    ]
)

#: Stands before a fingerprint, so that one which was made in another way is not compared with it.
FORMAT = "v2-"


def fingerprint(model: Any) -> str:
    """A hash of all that a model computes with: configuration, weights and their dtypes.

    Every value counts, as it is stored: a model that was rounded to another dtype is another one.
    What transformers derives from the configuration (such as rotary frequencies) counts through it.

    :param model: a transformers model, or any module without a configuration.
    :returns: :data:`FORMAT` and 32 hexadecimal digits of XXH3, which reads memory about as fast as
        it can be copied. It is no protection against somebody who makes two models alike on
        purpose.
    """
    found = xxhash.xxh3_128()
    config = getattr(model, "config", None)
    settings = _computing(config.to_dict()) if config is not None else {}
    found.update(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in _weights(model):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        found.update(values.numpy().data)
    return f"{FORMAT}{found.hexdigest()}"


def state(model: Any) -> tuple[Any, ...]:
    """What changes whenever a model's weights do; cheap, for comparison within a process.

    PyTorch counts the changes of each tensor in place. It does not see those through ``.data``.

    :param model: a module.
    :returns: a tuple to compare with an earlier one of the same model.
    """
    return tuple(
        (name, tensor.data_ptr(), tensor.dtype, 0 if tensor.is_inference() else tensor._version)
        for name, tensor in _weights(model)
    )


def _weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Parameters, those that are shared once, and the buffers that are saved with them."""
    yield from model.named_parameters()
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(prefix, recurse=False):
            if name.rpartition(".")[2] not in module._non_persistent_buffers_set:
                yield name, buffer


def _computing(value: Any) -> Any:
    """The fields of a configuration that count, as JSON has them; nested ones, too."""
    if isinstance(value, dict):
        return {str(key): _computing(inner) for key, inner in value.items() if _counts(str(key))}
    if isinstance(value, list | tuple):
        return [_computing(inner) for inner in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _counts(name: str) -> bool:
    return not (name in _NOT_COMPUTING or name.startswith("_") or name.endswith("_token_id"))
