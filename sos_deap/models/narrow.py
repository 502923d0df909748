"""Compute one site without the weights of its removed units, inside a context."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sos_deap.models.empty import EmptyConv1D, empty_attention
from sos_deap.models.family import Family
from sos_deap.models.mixtures import without_experts
from sos_deap.models.sites import ATTENTION, EXPERTS, Site
from sos_deap.models.sizes import SelectOutputs, set_attention_sizes
from sos_deap.models.slices import head_parameters, selected, site_slices
from sos_deap.models.temporary import replaced, with_parameters


@contextmanager
def narrowed(
    model: Any,
    family: Family,
    site: Site,
    keep: Sequence[int],
    fitted: tuple[Tensor, Tensor | None] | None = None,
) -> Iterator[None]:
    """Make a site compute with some of its units only, inside the context.

    :param model: the model; its weights are read, not changed.
    :param family: its architecture.
    :param site: the site.
    :param keep: indices of the units to keep, in rising order.
    :param fitted: weight and bias of the consumer with the inputs of these units alone; default:
        its own.
    """
    if site.kind == EXPERTS:  # removed ones cost no operations, as no token is sent to them
        mask = torch.zeros(1, site.units)
        mask[0, list(keep)] = 1
        with without_experts(model, site, mask):
            yield
        return
    with ExitStack() as stack:
        if site.kind == ATTENTION:
            attention = model.get_submodule(site.module)
            if keep:
                stack.callback(_restore, attention, dict(vars(attention)))
                set_attention_sizes(model, family, site, keep)
            else:
                output = model.get_submodule(site.consumer) if family.output_inside else None
                empty = empty_attention(attention, family, output)
                empty.layer_idx = None  # key/value caches are not filled
                stack.enter_context(replaced(attention, forward=empty.forward))
            own = head_parameters(model, family, site, keep)
            stack.enter_context(with_parameters(attention, **own))
        for part in site_slices(model, family, site, keep):
            if part.outputs is not None:
                hook = part.module.register_forward_hook(SelectOutputs(part.outputs))
                stack.callback(hook.remove)
            if not part.whole:
                stack.enter_context(_selected(part.module, part.axis, part.kept))
        if fitted is not None:
            weight, bias = fitted
            both = {"weight": weight} | ({} if bias is None else {"bias": bias})
            stack.enter_context(with_parameters(model.get_submodule(site.consumer), **both))
        yield


def _restore(module: nn.Module, before: dict[str, Any]) -> None:
    own = vars(module)
    own.clear()
    own.update(before)


@contextmanager
def _selected(module: Any, axis: int, kept: list[int]) -> Iterator[None]:
    """Give a module some of its outputs (axis 0) or inputs (axis 1) only, inside the context."""
    if isinstance(module, nn.ModuleList):
        with replaced(module, _modules={str(n): module[i] for n, i in enumerate(kept)}):
            yield
        return
    conv = isinstance(module, Conv1D)
    weight, bias = module.weight, getattr(module, "bias", None)
    index = torch.tensor(kept, dtype=torch.long, device=weight.device)
    parameters: dict[str, Tensor | None] = module._parameters
    own: dict[str, Any] = {"nf": len(kept)} if conv and axis == 0 else {}
    if conv and not kept:
        own["forward"] = functools.partial(EmptyConv1D.forward, module)
    try:
        stored_axis = 1 - axis if conv else axis  # Conv1D stores (in, out)
        parameters["weight"] = selected(weight, stored_axis, index)
        if axis == 0 and bias is not None:
            parameters["bias"] = bias.index_select(0, index)
        with replaced(module, **own):
            yield
    finally:
        parameters["weight"] = weight
        if bias is not None:
            parameters["bias"] = bias
