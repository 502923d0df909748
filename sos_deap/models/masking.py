"""Compute many sub-models with one model: removed units are multiplied by zero."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from sos_deap.errors import InputError
from sos_deap.models.find_genes import gene_map
from sos_deap.models.genes import GeneMap
from sos_deap.models.guard import exclusive
from sos_deap.models.mixtures import ExpertsMask, without_experts
from sos_deap.models.rows import rows_each
from sos_deap.models.sites import EXPERTS, Site


def masked(
    model: nn.Module, chromosomes: Sequence[Sequence[int]], genes: GeneMap | None = None
) -> AbstractContextManager[nn.Module]:
    """Return a context in which one model computes many sub-models at once.

    Inside the context, a batch of ``len(chromosomes) * B`` rows is read as consecutive blocks of
    ``B`` rows, one block per sub-model. The output of a removed head or channel is multiplied by
    zero where it enters the projection that follows, and no token is sent to a removed expert,
    which gives the same result as removing it.
    Other threads that mask or evaluate the model wait until the context ends.

    :param model: the model; it is restored at the end, also after an exception.
    :param chromosomes: one chromosome per sub-model.
    :param genes: the model's :func:`~sos_deap.gene_map`; default: one gene per query head.
    :returns: a context manager that can be entered once.
    :raises InputError: for a chromosome that does not fit the model; inside the context for a batch
        whose rows cannot be divided equally among the sub-models; and if the context is entered
        twice.
    """
    return _Once(_masked(model, chromosomes, genes))


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
    model: nn.Module, chromosomes: Sequence[Sequence[int]], genes: GeneMap | None
) -> Iterator[nn.Module]:
    mapping = genes or gene_map(model)
    if not hasattr(chromosomes, "__len__"):
        kind = type(chromosomes).__name__
        raise InputError(f"masked() was given a value of type {kind}: give a list of chromosomes")
    if len(chromosomes) == 0:
        raise InputError("masked() was given no chromosome: give at least one")
    masks = mapping.masks(chromosomes)
    with ExitStack() as stack:
        stack.enter_context(exclusive(model))
        for site, mask in zip(mapping.sites, masks, strict=True):
            if not mask.all():  # otherwise every sub-model keeps all units of this site
                stack.enter_context(masked_site(model, site, mask))
        yield model


@contextmanager
def masked_site(model: nn.Module, site: Site, mask: Tensor) -> Iterator[None]:
    """Mask the units of one site for several sub-models, inside the context.

    :param model: the model; it is restored at the end, also after an exception.
    :param site: the site.
    :param mask: (sub-models, units): 1 to keep the unit, 0 to mask it.
    """
    if site.kind == EXPERTS:
        with without_experts(model, site, mask):
            yield
        return
    hook = _Mask(mask.repeat_interleave(site.width, dim=1))
    handle = model.get_submodule(site.consumer).register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def is_masked(model: nn.Module, genes: GeneMap) -> bool:
    """Whether a model is inside the context of :func:`masked`.

    :param model: the model.
    :param genes: its gene map.
    """
    modules = (model.get_submodule(site.router or site.consumer) for site in genes.sites)
    hooks = (hook for module in modules for hook in module._forward_pre_hooks.values())
    return any(isinstance(hook, _Mask | ExpertsMask) and hook.scales for hook in hooks)


class _Mask:
    """A forward pre-hook that multiplies the input of a projection by a mask.

    A copy of the hook has no mask: a model that is copied inside the context and used after its end
    computes with all units.

    :param mask: (sub-models, inputs); ``None`` for no mask.
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
        states, *rest = inputs  # (sub-models * rows, tokens, inputs)
        # The mask is converted in the first call; later calls find device and dtype right.
        mask = self._mask = self._mask.to(states)
        rows_each(len(states), len(mask))
        blocks = states.reshape(len(mask), -1, states.shape[-1])
        return ((blocks * mask).view_as(states), *rest)
