"""Recognise errors that mean that memory ran out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from sos_deap.errors import InputError

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


@contextmanager
def fits_in_memory(message: str) -> Iterator[None]:
    """Raise :class:`InputError` if memory runs out inside the context.

    :param message: message of the error.
    """
    try:
        yield
    except MEMORY_ERRORS as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(message) from error


def one_example_fits(tokens: int, purpose: str) -> AbstractContextManager[None]:
    """Return a context that raises :class:`InputError` if memory runs out for one example.

    :param tokens: length of the example that is computed.
    :param purpose: what it is computed for, for the error message.
    """
    return fits_in_memory(
        f"one example of {tokens} tokens does not fit in memory for {purpose}: give a smaller "
        "--seqlen, or use another importance"
    )
