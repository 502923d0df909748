"""Rotary position embeddings on a CPU, computed on contiguous copies of the heads.

Models rotate views whose heads are interleaved token by token, and PyTorch's elementwise kernels
process such a view half a head at a time. A contiguous copy is processed at once, which takes as
little as half the time and gives the same result bit for bit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sos_deap.models.genes import GeneMap
from sos_deap.models.temporary import replaced

NAME = "apply_rotary_pos_emb"  # in the module of transformers that defines the attention


def rotations(model: Any, genes: GeneMap, run: Callable[[], Tensor]) -> list[ModuleType]:
    """Find the Python modules in which :func:`fast_rotary` can replace the rotation of a model.

    A forward pass of each kind is compared, since a model may depend on the memory layout of the
    rotated tensors.

    :param model: the model.
    :param genes: its gene map.
    :param run: runs a forward pass and returns its result.
    :returns: the modules; empty if the results differ, or if the model is not on a CPU or has no
        rotary embeddings.
    """
    classes = {type(model.get_submodule(site.module)) for site in genes.attention}
    code = {sys.modules[each.__module__] for each in classes}
    found = [module for module in code if hasattr(module, NAME)]
    if not found or model.device.type != "cpu":
        return []
    try:
        expected = run()
        with fast_rotary(found):
            return found if torch.equal(run(), expected) else []
    except Exception:  # the model's code may fail in any way; then nothing is replaced
        return []


@contextmanager
def fast_rotary(modules: Sequence[ModuleType]) -> Iterator[None]:
    """Rotate contiguous copies inside the context.

    :param modules: Python modules that define a model's attention; they are restored at the end,
        also after an exception.
    """
    with ExitStack() as stack:
        for module in modules:
            on_copies = _on_copies(getattr(module, NAME))
            stack.enter_context(replaced(module, **{NAME: on_copies}))
        yield


def _on_copies(rotate: Callable[..., Any]) -> Callable[..., Any]:
    def on_copies(*args: Any, **kwargs: Any) -> Any:
        return rotate(*(a.contiguous() if isinstance(a, Tensor) else a for a in args), **kwargs)

    return on_copies
