"""Recognise errors that mean that memory ran out."""

from __future__ import annotations

import torch

#: Types of the errors that allocators raise; a ``RuntimeError`` may have other causes.
MEMORY_ERRORS = (RuntimeError, MemoryError)

#: Parts of the messages of plain runtime errors: torch's on a CPU under Linux and Windows, C++'s,
#: and those of a GPU's libraries.
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "std::bad_alloc",
    "CUDA error: out of memory",
    "MPS backend out of memory",
    "STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the cause of an error is that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in _OUT_OF_MEMORY)
