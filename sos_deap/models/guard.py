"""One model is used by one thread at a time, and computes in evaluation mode."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn

_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_making = threading.Lock()


@contextmanager
def exclusive(model: nn.Module) -> Iterator[None]:
    """Keep other threads from using a model; the same thread may enter again.

    Masks and narrowed layers are set on the model itself, so two threads would compute with each
    other's.

    :param model: the model.
    """
    with _making:
        lock = _locks.setdefault(model, threading.RLock())
    with lock:
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Use a model alone and in evaluation mode (without dropout); then put back each module's mode.

    :param model: the model.
    """
    with exclusive(model):
        training = [module for module in model.modules() if module.training]
        for module in training:
            module.training = False
        try:
            yield
        finally:
            for module in training:
                module.training = True
