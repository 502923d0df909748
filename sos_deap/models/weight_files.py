"""Find a model's safetensors files, and read the dtypes and number of their tensors.

Only headers are read, which takes milliseconds for a model of any size.
"""

from __future__ import annotations

import json
import re
from functools import reduce
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from safetensors import safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

from sos_deap.errors import InputError

#: Floating-point dtypes of weights by their names in a safetensors header.
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}

#: Attributes of configs that hold numbers of layers.
_LAYERS = ("num_hidden_layers", "encoder_layers", "decoder_layers", "num_decoder_layers")


def stored_dtype(source: str, config: Any) -> torch.dtype | None:
    """Return the dtype that represents every stored weight exactly.

    It is read from the files, since a config may lack the dtype, as those of old checkpoints do, or
    state another one.

    :param source: a folder or a Hub name.
    :param config: the model's config.
    :returns: the dtype; ``None`` if there are no safetensors files.
    :raises InputError: if the weights are in files outside the folder, or if the config states more
        layers than there are tensors.
    """
    tensors = _tensors(source, config)
    if not tensors:
        return None
    layers = max((n for n in (getattr(config, k, 0) for k in _LAYERS) if type(n) is int), default=0)
    if layers > len(tensors):  # building such a model would take too long
        raise InputError(
            f"the weights of {source} do not fit its config.json: {layers} layers, and "
            f"{len(tensors)} tensors; save or download the model again"
        )
    # Old checkpoints contain the frequencies of rotary embeddings, which are not weights. The
    # scales of int8 weights are float32, whatever dtype the others have.
    others = ("inv_freq", "._weight_scale")
    weights = {dtype for name, dtype in tensors.items() if not name.endswith(others)}
    found = [_DTYPES[dtype] for dtype in weights if dtype in _DTYPES]
    return reduce(torch.promote_types, found) if found else None


def key_mapping(source: str, config: Any) -> dict[str, str] | None:
    """Return what maps the names of stored weights to those of a language model's own class.

    :param source: a folder or a Hub name.
    :param config: the config of the language model.
    :returns: regular expressions with their replacements, for ``from_pretrained``; ``None`` unless
        the files are of a multimodal model, in which the language model has a prefix.
    """
    if not any(re.match(r"(model\.)?language_model\.", name) for name in _tensors(source, config)):
        return None
    return {
        r"^language_model\.lm_head\.": "lm_head.",
        r"^(model\.)?language_model\.(model\.)?": "model.",
    }


def _tensors(source: str, config: Any) -> dict[str, str]:
    """Return the names of the stored tensors, with their dtypes."""
    return {name: dtype for file in _files(source, config) for name, dtype in _header(file)}


def _files(source: str, config: Any) -> list[str]:
    own = getattr(config, "transformers_weights", None)
    for name in [own] if own else [SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME]:
        file = _file(source, name)
        if file is not None:
            if not name.endswith(".index.json"):
                return [file]
            shards = set(json.loads(Path(file).read_text(encoding="utf-8"))["weight_map"].values())
            return [shard for name in sorted(shards) if (shard := _file(source, name))]
    return []


def _file(source: str, name: str) -> str | None:
    """The path of a model's file, downloaded if necessary; ``None`` if it does not exist."""
    for path in (PurePosixPath(name), PureWindowsPath(name)):
        if path.is_absolute() or ".." in path.parts:
            raise InputError(
                f"the weights of {source} name {name!r}, a file outside of its folder: save or "
                "download the model again"
            )
    file: str | None = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    return file


def _header(file: str) -> list[tuple[str, str]]:
    with safe_open(file, framework="pt") as tensors:
        return [(name, tensors.get_slice(name).get_dtype()) for name in tensors.keys()]  # noqa: SIM118
