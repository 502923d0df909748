"""Remove heads, channels and experts from a model's weights, in one of three layouts."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sos_deap.errors import InputError, unknown
from sos_deap.models.families import why_unsliceable
from sos_deap.models.find_genes import gene_map
from sos_deap.models.genes import GeneMap
from sos_deap.models.quantised import is_int8
from sos_deap.models.saving import pruned_type
from sos_deap.models.sites import ATTENTION, EXPERTS, FEED_FORWARD, Site
from sos_deap.models.sizes import set_sizes
from sos_deap.models.slices import head_parameters, site_slices, smaller_modules
from sos_deap.models.uniform import Kept, uniform_config, uniform_counts

#: How removed units are represented: sliced out of the weights, with any number of units left per
#: layer; sliced out, with equally many left in every layer, so that the stock class can load the
#: model; or kept in place with zero weights.
LAYOUTS = ("sliced", "uniform", "zeroed")

# Attributes of configs that hold numbers of heads.
_HEADS = (
    *("num_attention_heads", "num_key_value_heads"),
    *("encoder_attention_heads", "decoder_attention_heads"),
)
_checked: WeakKeyDictionary[nn.Module, set[tuple[str, str]]] = WeakKeyDictionary()


def prune(
    model: PreTrainedModel,
    chromosome: Sequence[int],
    genes: GeneMap | None = None,
    layout: str = "sliced",
) -> PreTrainedModel:
    """Return a copy of a model without the heads, channels and experts that a chromosome removes.

    - ``"sliced"``: the projections of an attention module or a feed-forward lose the rows and
      columns of the removed heads and channels; a key/value head is removed with the last of its
      query heads, an expert with its row of the router. What is kept is written into the config,
      and ``save_pretrained(folder)`` also saves the code that transformers needs to load the model.
    - ``"uniform"``: the same, for a chromosome that keeps equally many heads, channels and experts
      in each layer; the result has the stock class and a stock config.
    - ``"zeroed"``: all sizes stay, and the weights by which removed units are multiplied are 0.
      Experts cannot be removed so, as no weight of the router keeps tokens from them.

    :param model: the model; it is not changed and shares no memory with the copy.
    :param chromosome: one gene for each in ``genes``, in layer order: 1 to keep it, 0 to remove it.
    :param genes: the model's :func:`~sos_deap.gene_map`; default: one gene per query head.
    :param layout: one of :data:`~sos_deap.models.prune.LAYOUTS`.
    :returns: the pruned model.
    :raises InputError: for a chromosome or a layout that does not fit the model.
    """
    mapping = genes or gene_map(model)
    kept = mapping.kept(chromosome)
    check_layout(model, mapping, layout)
    if layout == "zeroed":
        return _zeroed(model, mapping, kept)
    uniform = uniform_config(model, mapping, kept) if layout == "uniform" else None
    pruned = sliced_copy(model, mapping, kept)
    if uniform is not None:
        vars(pruned.config).update(vars(uniform))  # in place: the layers share it
    else:
        pruned.config.kept_heads = mapping.kept_heads(chromosome)
        for kind, name in ((FEED_FORWARD, "kept_channels"), (EXPERTS, "kept_experts")):
            counts = list(map(len, mapping.of_kind(kind, kept)))
            if counts != [site.units for site in mapping.sites if site.kind == kind]:
                setattr(pruned.config, name, counts)
        pruned.__class__ = pruned_type(type(model))
    return pruned


def sliced_copy(
    model: PreTrainedModel, genes: GeneMap, kept: Kept, shares: bool = False
) -> PreTrainedModel:
    """Return a copy of a model with some units of each site only; its config is unchanged.

    :param model: the model; it is not changed.
    :param genes: its gene map.
    :param kept: for each site the indices of the units to keep, in rising order.
    :param shares: whether the copy shares the weights of all modules that lose nothing, so that
        only sliced weights take memory; default: it shares no memory with the model.
    """
    # deepcopy takes what is in its memo as already copied: the full-size projections are never
    # copied, so the peak memory is that of the model and its pruned copy.
    memo: dict[int, Any] = {}
    if shares:
        memo = {id(t): t for t in itertools.chain(model.parameters(), model.buffers())}
    smaller = smaller_modules(model, genes.family, genes.sites, kept)
    memo |= {id(model.get_submodule(path)): new for path, new in smaller.items()}
    for site, keep in zip(genes.sites, kept, strict=True):
        module = model.get_submodule(site.module)
        for name, parameter in head_parameters(model, genes.family, site, keep).items():
            memo[id(module.get_parameter(name))] = parameter
    copied = copy.deepcopy(model, memo)
    set_sizes(copied, genes.family, genes.sites, kept)
    return copied


def check_layout(model: PreTrainedModel, genes: GeneMap, layout: str) -> None:
    """Check that a model can be pruned in a layout by at least one chromosome.

    :param model: the model, not pruned.
    :param genes: its gene map.
    :param layout: one of :data:`LAYOUTS`.
    :raises InputError: if the layout is unknown or does not fit the model.
    """
    if layout not in LAYOUTS:
        raise unknown("layout", layout, LAYOUTS)
    for site in _touched(genes):
        for part in site_slices(model, genes.family, site, range(site.units)):
            if part.projection:
                _check_projection(part.path, part.module)
    if layout == "zeroed":
        if any(site.kind == EXPERTS for site in _touched(genes)):
            raise InputError(
                "the layout zeroed cannot remove experts, as no weight of the router keeps tokens "
                "from them: use the layout sliced"
            )
        return
    if why := why_unsliceable(genes.family, model.config, genes.removes_heads):
        raise InputError(
            f"a {model.config.model_type} model cannot be sliced: {why}; use the layout zeroed"
        )
    if unnamed := _unnamed(model, genes, layout):
        raise InputError(
            f"a {model.config.model_type} model with {unnamed} cannot be sliced: its size depends "
            "on the number of heads or channels, and the table of architectures does not name "
            "it; use the layout zeroed"
        )
    if layout == "uniform":
        uniform_counts(model, genes)


def _touched(genes: GeneMap) -> list[Site]:
    """The sites that any gene removes units of."""
    return [site for site, own in zip(genes.sites, genes.site_genes, strict=True) if own]


def _unnamed(model: PreTrainedModel, genes: GeneMap, layout: str) -> str:
    """Find a tensor whose size depends on the number of units and that the family does not name.

    :returns: the tensor's name; empty if there is none.
    """
    # What was checked before is remembered: a model's class does not change.
    checked = _checked.setdefault(model, set())
    for kind in sorted({site.kind for site in _touched(genes)}):
        if (kind, layout) not in checked:
            if name := _unnamed_of(model, genes, kind, layout):
                return name
            checked.add((kind, layout))
    return ""


def _unnamed_of(model: PreTrainedModel, genes: GeneMap, kind: str, layout: str) -> str:
    named, family = _named(model, genes, kind), genes.family
    inside = tuple(f"{site.module}." for site in genes.sites if site.kind == kind)
    others = {
        name: tensor.shape
        for name, tensor in _tensors(model)
        if not name.startswith(named) and not any(part in name for part in family.whole)
    }
    if kind == ATTENTION:
        # With the hidden size, the width of a head stays, and without it that of all heads may.
        for name, shape in _with_twice(model, (*_HEADS, "hidden_size")).items():
            if name.startswith(inside) and others.get(name, shape) != shape:
                return name
    row = family.experts if kind == EXPERTS else family.feed_forward
    sizes = _HEADS if kind == ATTENTION else row.sizes if row else ()
    for name, shape in _with_twice(model, sizes).items():
        # Another module may have channels of its own, as many as a feed-forward in the config.
        own = kind == ATTENTION or layout == "uniform" or name.startswith(inside)
        pairs = zip(shape, others.get(name, ()), strict=False)
        if own and any(0 < 2 * before == after for after, before in pairs):
            return name
    return ""


def _named(model: PreTrainedModel, genes: GeneMap, kind: str) -> tuple[str, ...]:
    """What the names of the tensors begin with whose sizes the family accounts for."""
    family, named = genes.family, list[str]()
    for site in genes.sites:
        if site.kind == kind:
            every = range(site.units)
            named += [f"{part.path}." for part in site_slices(model, family, site, every)]
            own = [*head_parameters(model, family, site, every)]
            own += [f"{projection}." for _, projection, _ in family.spanning]
            own += [f"{family.norm}."] * bool(family.norm)
            named += [f"{site.module}.{name}" for name in own]
    return tuple(named)


def _with_twice(model: PreTrainedModel, sizes: Sequence[str]) -> dict[str, torch.Size]:
    """The shapes of a model's tensors if some sizes in its config were twice as large.

    Empty if the model's class cannot be built so.
    """
    config: Any = copy.deepcopy(model.config)
    for name in sizes:
        if isinstance(size := getattr(model.config, name, None), int):
            setattr(config, name, 2 * size)
    kind: Any = type(model)
    try:
        with torch.device("meta"):
            built = kind(config)
    except Exception:  # model classes raise errors of many types
        return {}
    return {name: tensor.shape for name, tensor in _tensors(built)}


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return itertools.chain(module.named_parameters(), module.named_buffers())


def _check_projection(path: str, projection: Any) -> None:
    weight = projection.weight
    plain = weight.is_floating_point() and not hasattr(weight, "__tensor_flatten__")
    if not isinstance(projection, nn.Linear | Conv1D) or not (plain or is_int8(weight)):
        raise InputError(
            f"{path} is a {type(projection).__name__} of {_kind(weight)}: pruning needs weights in "
            "floating point or of quantize int8; load the model without quantisation"
        )


def _kind(weight: Any) -> str:
    """Name what a weight consists of, for error messages."""
    return type(weight).__name__ if hasattr(weight, "__tensor_flatten__") else str(weight.dtype)


def _zeroed(model: PreTrainedModel, genes: GeneMap, kept: Kept) -> PreTrainedModel:
    pruned = copy.deepcopy(model)
    for site, keep in zip(genes.sites, kept, strict=True):
        consumer: Any = pruned.get_submodule(site.consumer)
        # Views of shape (units, width, outputs), so that the assignment changes the weights.
        numbers = getattr(consumer.weight, "qdata", consumer.weight)  # the integers of int8
        weight = numbers if isinstance(consumer, Conv1D) else numbers.T
        by_unit = weight.detach().unflatten(0, (site.units, site.width))
        by_unit[sorted(set(range(site.units)) - set(keep))] = 0
    return pruned
