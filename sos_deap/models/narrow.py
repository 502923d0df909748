"""One attention module with the weights of its removed heads left out, for one forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sos_deap.models.heads import HeadMap
from sos_deap.models.slicing import (
    AttentionLayer,
    EmptyAttention,
    rows_to_keep,
    set_sizes,
)


@contextmanager
def replaced(owner: Any, **attributes: Any) -> Iterator[None]:
    """Give an object attributes of its own, and put back what was there."""
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
    model: Any, heads: HeadMap, layer: AttentionLayer, keep: tuple[int, ...]
) -> Iterator[None]:
    """Let an attention module compute with some of its heads only.

    :param model: the model; its weights are read, not changed.
    :param heads: the model's head map.
    :param layer: the attention module.
    :param keep: the numbers of the query heads it keeps, in rising order.
    """
    attention, output = (model.get_submodule(p) for p in (layer.attention, layer.output))
    with ExitStack() as stack:
        stack.enter_context(_selected(output, 1, _rows(keep, layer.head_dim)))
        if keep:
            before = dict(vars(attention))
            stack.callback(_restore, attention, before)
            set_sizes(model, heads.family, layer, keep)
            for part, rows in rows_to_keep(heads.family, layer, keep).items():
                if hasattr(attention, part):
                    stack.enter_context(_selected(attention.get_submodule(part), 0, rows))
        else:
            own = {heads.family.output: output} if heads.family.output_inside else {}
            nothing = EmptyAttention(own, None)
            stack.enter_context(replaced(attention, forward=nothing.forward))
        yield


def _restore(module: nn.Module, before: dict[str, Any]) -> None:
    own = vars(module)
    own.clear()
    own.update(before)


@contextmanager
def _selected(projection: Any, axis: int, rows: list[int]) -> Iterator[None]:
    """Let a projection have some of its outputs (axis 0) or inputs (axis 1) only."""
    conv = isinstance(projection, Conv1D)
    weight, bias = projection.weight, getattr(projection, "bias", None)
    index = torch.tensor(rows, dtype=torch.long, device=weight.device)
    parameters: dict[str, Tensor | None] = projection._parameters
    width = {"nf": len(rows)} if conv and axis == 0 else {}
    try:
        stored_axis = 1 - axis if conv else axis  # Conv1D stores (in, out)
        parameters["weight"] = weight.index_select(stored_axis, index)
        if axis == 0 and bias is not None:
            parameters["bias"] = bias.index_select(0, index)
        with replaced(projection, **width):
            yield
    finally:
        parameters["weight"] = weight
        if bias is not None:
            parameters["bias"] = bias


def _rows(heads: Sequence[int], width: int) -> list[int]:
    return [head * width + i for head in heads for i in range(width)]
