"""Change attributes and parameters of a module for the duration of a context."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def replaced(owner: Any, **attributes: Any) -> Iterator[None]:
    """Set attributes of an object inside the context, and restore it at the end.

    :param owner: the object.
    :param attributes: values by name; they shadow attributes of the object's class.
    """
    own = vars(owner)
    before = {name: own[name] for name in attributes if name in own}
    own.update(attributes)
    try:
        yield
    finally:
        for name in attributes:
            del own[name]
        own.update(before)


@contextmanager
def with_parameters(module: nn.Module, **own: Tensor) -> Iterator[None]:
    """Give a module other parameters, inside the context.

    :param module: the module.
    :param own: parameters by name.
    """
    parameters: dict[str, Any] = module._parameters
    before = dict(parameters)
    parameters.update(own)
    try:
        yield
    finally:
        parameters.update(before)
