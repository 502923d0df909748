"""Compute many sub-models with one model: removed heads are multiplied by zero."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sos_deap.errors import InputError
from sos_deap.models.genes import HeadMap, head_map
from sos_deap.models.guard import exclusive
from sos_deap.models.slicing import AttentionLayer


def masked(
    model: nn.Module, chromosomes: Sequence[Sequence[int]], heads: HeadMap | None = None
) -> AbstractContextManager[nn.Module]:
    """Return a context in which one model computes many sub-models at once.

    Inside the context, a batch of ``len(chromosomes) * B`` rows is read as consecutive blocks of
    ``B`` rows, one block per sub-model. The output of a removed head is multiplied by zero where it
    enters the output projection, which gives the same result as removing the head. Other threads
    that mask or evaluate the model wait until the context ends.

    :param model: the model; it is restored at the end, also after an exception.
    :param chromosomes: one chromosome per sub-model.
    :param heads: the model's :func:`head_map`; default: one gene per query head.
    :returns: a context manager that can be entered once.
    :raises InputError: for a chromosome that does not fit the model; inside the context for a batch
        whose rows cannot be divided equally among the sub-models; and if the context is entered
        twice.
    """
    return _Once(_masked(model, chromosomes, heads))


class _Once(AbstractContextManager[nn.Module]):
    def __init__(self, context: AbstractContextManager[nn.Module]) -> None:
        self._context, self._entered = context, False

    def __enter__(self) -> nn.Module:
        if self._entered:
            raise InputError("a context of masked() can be entered once: call masked() again")
        self._entered = True
        return self._context.__enter__()

    def __exit__(self, *error: Any) -> bool | None:
        return self._context.__exit__(*error)


@contextmanager
def _masked(
    model: nn.Module, chromosomes: Sequence[Sequence[int]], heads: HeadMap | None
) -> Iterator[nn.Module]:
    mapping = heads or head_map(model)
    if not hasattr(chromosomes, "__len__"):
        kind = type(chromosomes).__name__
        raise InputError(f"masked() was given a value of type {kind}: give a list of chromosomes")
    if len(chromosomes) == 0:
        raise InputError("masked() was given no chromosome: give at least one")
    per_chromosome = [mapping.head_genes(chromosome) for chromosome in chromosomes]
    with ExitStack() as stack:
        stack.enter_context(exclusive(model))
        for layer, genes in zip(mapping.layers, zip(*per_chromosome, strict=True), strict=True):
            if not all(map(all, genes)):  # otherwise every sub-model keeps all heads of this layer
                stack.enter_context(masked_layer(model, layer, genes))
        yield model


@contextmanager
def masked_layer(
    model: nn.Module, layer: AttentionLayer, genes: Sequence[Sequence[int]]
) -> Iterator[None]:
    """Mask the heads of one attention layer for several sub-models, inside the context.

    :param model: the model; it is restored at the end, also after an exception.
    :param layer: the attention layer.
    :param genes: for each sub-model one value per query head: 1 to keep the head, 0 to mask it.
    """
    hook = _Mask(torch.tensor(genes).repeat_interleave(layer.head_dim, dim=1))
    handle = model.get_submodule(layer.output).register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def is_masked(model: nn.Module, head_map: HeadMap) -> bool:
    """Whether a model is inside the context of :func:`masked`.

    :param model: the model.
    :param head_map: its head map.
    """
    outputs = (model.get_submodule(layer.output) for layer in head_map.layers)
    hooks = (hook for output in outputs for hook in output._forward_pre_hooks.values())
    return any(isinstance(hook, _Mask) and hook.scales for hook in hooks)


class _Mask:
    """A forward pre-hook that multiplies the input of an output projection by a mask.

    A copy of the hook has no mask: a model that is copied inside the context and used after its end
    computes with all heads.

    :param mask: (sub-models, heads * head_dim); ``None`` for no mask.
    """

    def __init__(self, mask: Tensor | None) -> None:
        self._mask = mask if mask is None else mask[:, None, :]

    @property
    def scales(self) -> bool:
        """Whether the hook has a mask."""
        return self._mask is not None

    def __reduce__(self) -> Any:
        return _Mask, (None,)

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self._mask is None:
            return inputs
        context, *rest = inputs  # (sub-models * rows, tokens, heads * head_dim)
        # The mask is converted in the first call; later calls find device and dtype right.
        mask = self._mask = self._mask.to(context)
        if len(context) % len(mask):
            raise InputError(
                f"the batch has {len(context)} rows for {len(mask)} sub-models: "
                "give the same number of rows for each"
            )
        blocks = context.reshape(len(mask), -1, context.shape[-1])
        return ((blocks * mask).view_as(context), *rest)
