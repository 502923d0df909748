"""Contexts for exclusive use of a model by one thread, and for evaluation mode."""

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
    """Lock a model against use by other threads; the same thread may enter again.

    Masks and narrowed layers are set on the model itself, so two threads would affect each other's
    results.

    :param model: the model.
    """
    with _making:
        lock = _locks.setdefault(model, threading.RLock())
    with lock:
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Lock a model and set it to evaluation mode; at the end, restore the mode of each module.

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
