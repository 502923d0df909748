"""Compute one attention module without the weights of its removed heads, inside a context."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sos_deap.models.genes import HeadMap
from sos_deap.models.slicing import (
    AttentionLayer,
    EmptyAttention,
    head_slices,
    set_layer_sizes,
)


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
def narrowed(
    model: Any, head_map: HeadMap, layer: AttentionLayer, keep: tuple[int, ...]
) -> Iterator[None]:
    """Make an attention module compute with some of its heads only, inside the context.

    :param model: the model; its weights are read, not changed.
    :param head_map: the model's head map.
    :param layer: the attention layer.
    :param keep: indices of the query heads to keep, in rising order.
    """
    attention, family = model.get_submodule(layer.attention), head_map.family
    with ExitStack() as stack:
        if keep:
            stack.callback(_restore, attention, dict(vars(attention)))
            set_layer_sizes(model, family, layer, keep)
        else:
            output = model.get_submodule(layer.output)
            empty = EmptyAttention({family.output: output} if family.output_inside else {}, None)
            stack.enter_context(replaced(attention, forward=empty.forward))
        for part in head_slices(model, family, layer, keep):
            stack.enter_context(_selected(part.module, part.axis, part.kept))
        yield


def _restore(module: nn.Module, before: dict[str, Any]) -> None:
    own = vars(module)
    own.clear()
    own.update(before)


@contextmanager
def _selected(module: Any, axis: int, kept: list[int]) -> Iterator[None]:
    """Give a module some of its outputs (axis 0) or inputs (axis 1) only, inside the context."""
    conv = isinstance(module, Conv1D)
    weight, bias = module.weight, getattr(module, "bias", None)
    index = torch.tensor(kept, dtype=torch.long, device=weight.device)
    parameters: dict[str, Tensor | None] = module._parameters
    width = {"nf": len(kept)} if conv and axis == 0 else {}
    try:
        stored_axis = 1 - axis if conv else axis  # Conv1D stores (in, out)
        parameters["weight"] = weight.index_select(stored_axis, index)
        if axis == 0 and bias is not None:
            parameters["bias"] = bias.index_select(0, index)
        with replaced(module, **width):
            yield
    finally:
        parameters["weight"] = weight
        if bias is not None:
            parameters["bias"] = bias
