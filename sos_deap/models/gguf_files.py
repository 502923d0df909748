"""GGUF files as models: read by transformers, dequantised, and kept as a folder of transformers."""

from __future__ import annotations

import logging
from functools import lru_cache, reduce
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import xxhash
from huggingface_hub.constants import HF_HOME
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as logging_of_transformers

from sos_deap.errors import InputError, first_line
from sos_deap.files.atomic import whole_folder

_log = logging.getLogger(__name__)

_MAGIC = b"GGUF"
_READ = 2**24  # bytes of a file that are hashed at a time

#: Floating-point types of tensors by their names in GGUF; all others are quantised.
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def is_gguf(name: str) -> bool:
    """Return whether the name of a model is that of a GGUF file."""
    return name.lower().endswith(".gguf")


def folder_of(name: str) -> Path:
    """Return a folder of transformers with the model and the tokenizer of a GGUF file.

    transformers reads and dequantises the file, which takes minutes for a large vocabulary. The
    folder is kept in the cache of the Hugging Face libraries (``HF_HOME``), under a hash of the
    file, so that each file is read once.

    :param name: the path of the file.
    :raises InputError: if the file is missing, damaged or of an unknown architecture, and if the
        package gguf is not installed.
    """
    path = Path(name).expanduser()
    if find_spec("gguf") is None:
        raise InputError(f"{name} needs the package gguf: pip install 'sos_deap[gguf]'")
    try:
        state = path.stat()
        key = _hash(path, state.st_size, state.st_mtime_ns)
    except FileNotFoundError as error:
        raise InputError(f"model file {name} does not exist") from error
    except OSError as error:
        raise InputError(f"model file {name} cannot be read: {error.strerror}") from error
    folder = Path(HF_HOME, "sos_deap", "gguf", key)
    if not _is_complete(folder):
        _log.warning("reading %s once, which may take minutes; kept in %s", name, folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        bars = logging_of_transformers.is_progress_bar_enabled()
        logging_of_transformers.disable_progress_bar()
        try:
            model, tokenizer = _read(path)
        except Exception as error:  # damaged files cause errors of many types
            raise InputError(f"cannot read the GGUF file {name}: {first_line(error)}") from error
        finally:
            if bars:
                logging_of_transformers.enable_progress_bar()
        try:
            with whole_folder(folder) as part:
                model.save_pretrained(part)
                tokenizer.save_pretrained(part)
        except (OSError, InputError):
            if not _is_complete(folder):  # else another process was faster
                raise
    return folder


def _is_complete(folder: Path) -> bool:
    return (folder / "config.json").is_file()


@lru_cache
def _hash(path: Path, size: int, modified: int) -> str:
    """Return a hash of a file's content, after a check of its first bytes.

    :param path: the file.
    :param size: its bytes.
    :param modified: when it was changed; a file that has not is read once.
    """
    with path.open("rb") as file:
        if (magic := file.read(len(_MAGIC))) != _MAGIC:
            raise InputError(f"{path} is not a GGUF file: it begins with {magic!r}")
        found = xxhash.xxh3_128(magic)
        while block := file.read(_READ):
            found.update(block)
    return found.hexdigest()


def _read(path: Path) -> tuple[Any, Any]:
    """Return the model, in the dtype to store it in, and the tokenizer."""
    folder, file, dtype = path.parent, path.name, _dtype(path)
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, dtype=torch.float32, trust_remote_code=False
    )
    if hasattr(model, "hf_quantizer"):  # its weights are not quantised any more
        model.hf_quantizer.remove_quantization_config(model)
    model._weight_conversions = []  # it is saved under the names of its own class
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file, trust_remote_code=False)
    return model.to(dtype), tokenizer


def _dtype(path: Path) -> torch.dtype:
    """Return the dtype of a file's matrices; bfloat16 if one is quantised.

    The values of quantised matrices need more digits than bfloat16 has, but its rounding error is
    below that of the quantisation, and its range is that of float32.
    """
    from gguf import GGUFReader  # noqa: PLC0415, an extra

    kinds = {t.tensor_type.name for t in GGUFReader(path).tensors if len(t.shape) > 1}
    if not kinds <= _DTYPES.keys():
        return torch.bfloat16
    return reduce(torch.promote_types, [_DTYPES[kind] for kind in kinds], torch.float16)
