"""The rows and columns of the modules of a site, and copies of modules with some of them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sos_deap.models.empty import EMPTY, NoExperts, NoRouter, empty_attention
from sos_deap.models.family import Family
from sos_deap.models.sites import ATTENTION, EXPERTS, FEED_FORWARD, Site, features, has_module
from sos_deap.models.sizes import SelectOutputs


@dataclass(frozen=True)
class SiteSlice:
    """The rows or columns of a module that belong to the kept units of its site.

    :param path: path of the module in the model.
    :param module: the module.
    :param axis: 0 if units are outputs (rows) of the module, 1 if they are its inputs (columns).
    :param kept: indices of the kept rows or columns, in rising order.
    :param projection: whether the module multiplies all tokens by a matrix; otherwise it is a norm
        with one row per head, or has one row per expert.
    :param whole: whether the module keeps its weights, and only its output is sliced.
    :param outputs: indices of the module's outputs (of the sliced module, unless it is whole) in
        the order in which they are read, some perhaps repeatedly; ``None`` for all as they are.
    """

    path: str
    module: nn.Module
    axis: int
    kept: list[int]
    projection: bool = True
    whole: bool = False
    outputs: list[int] | None = None


def site_slices(
    model: nn.Module, family: Family, site: Site, keep: Sequence[int]
) -> Iterator[SiteSlice]:
    """Yield every module of a site whose size depends on its units.

    The first one is the consumer. The others are the producers, as far as the model has them: of a
    feed-forward its first projections; of a mixture the router; of an attention module the query,
    key and value projections, the family's further projections, its norms with one row per head,
    and its norms over all heads. A key/value head is kept if at least one of its query heads is. An
    attention module without heads has no producers.

    :param model: the model, not pruned.
    :param family: its architecture.
    :param site: the site.
    :param keep: indices of the kept units, in rising order.
    """
    consumer = model.get_submodule(site.consumer)
    if site.kind == EXPERTS:
        for path in (site.consumer, site.router):
            yield SiteSlice(path, model.get_submodule(path), 0, list(keep), projection=False)
        return
    yield SiteSlice(site.consumer, consumer, 1, _indices(keep, site.width))
    if site.kind == ATTENTION and not keep:
        return
    module = model.get_submodule(site.module)
    for part, rows in _producer_rows(model, family, site, keep).items():
        if has_module(module, part):
            path, own = f"{site.module}.{part}", module.get_submodule(part)
            yield SiteSlice(path, own, 0, rows, outputs=_repeated(family, site, keep))
    if site.kind == FEED_FORWARD:
        return
    kept = _kept_heads(site, keep)
    for part, which in family.per_head:
        if has_module(module, part):
            own = module.get_submodule(part)
            axis = int(isinstance(own, nn.Embedding))
            yield SiteSlice(f"{site.module}.{part}", own, axis, kept[which], projection=False)
    for part, _, which in family.spanning:
        if has_module(module, part):
            path, rows = f"{site.module}.{part}", _indices(kept[which], site.width)
            own = module.get_submodule(part)
            yield SiteSlice(path, own, 0, rows, projection=False, whole=True, outputs=rows)


def _repeated(family: Family, site: Site, keep: Sequence[int]) -> list[int] | None:
    """The outputs of an interleaved projection with a key and a value for each query head.

    :returns: their indices among the kept ones; ``None`` if the stock order is read.
    """
    counts = list(site.group_counts(keep).values()) if family.one_each else []
    if len(set(counts)) < 2:
        return None
    order, start = list[int](), 0
    for count in counts:
        key = start + count
        order += [index for query in range(start, key) for index in (query, key, key + 1)]
        start = key + 2
    return _indices(order, site.width)


def _kept_heads(site: Site, keep: Sequence[int]) -> dict[str, list[int]]:
    return {"heads": list(keep), "kv_heads": list(site.group_counts(keep))}


def head_parameters(
    model: nn.Module, family: Family, site: Site, keep: Sequence[int]
) -> dict[str, nn.Parameter]:
    """Return an attention module's own parameters with one row per head, without removed heads.

    :param model: the model, not pruned.
    :param family: its architecture.
    :param site: the site.
    :param keep: indices of the kept units, in rising order.
    :returns: new parameters by name; empty for an attention module without heads.
    """
    if site.kind != ATTENTION or not keep:
        return {}
    own, kept = model.get_submodule(site.module)._parameters, _kept_heads(site, keep)
    heads = _kept_heads(site, range(site.units))
    smaller = {}
    for name, which in family.per_head:
        if (parameter := own.get(name)) is not None:
            rows = _indices(kept[which], len(parameter) // len(heads[which]))
            index = torch.tensor(rows, dtype=torch.long, device=parameter.device)
            smaller[name] = _smaller(parameter, 0, index)
    return smaller


def _producer_rows(
    model: nn.Module, family: Family, site: Site, keep: Sequence[int]
) -> dict[str, list[int]]:
    """The kept output rows of each projection that produces units, by its path."""
    if site.kind == FEED_FORWARD:
        forward = family.feed_forward
        assert forward is not None
        rows = [part * site.units + unit for part in range(forward.fused) for unit in keep]
        return dict.fromkeys(forward.producers, rows)
    more = dict.fromkeys(family.more, _indices(keep, site.width))
    if family.interleaved:
        each, kept = site.units // site.groups, set(keep)
        heads = [  # of each group the queries, the key and the value
            group * (each + 2) + index
            for group in site.group_counts(keep)
            for index in range(each + 2)
            if index >= each or group * each + index in kept
        ]
        return {family.query: _indices(heads, site.width)} | more
    key_value = _indices(site.group_counts(keep), site.width)
    if not family.fused:
        # A query projection may compute more than the query of each head, such as a gate.
        outputs, _ = features(model.get_submodule(f"{site.module}.{family.query}"))
        query = _indices(keep, outputs // site.units)
        projections = {family.query: query, family.key: key_value, family.value: key_value, **more}
        whole = {projection for _, projection, _ in family.spanning}
        return {part: rows for part, rows in projections.items() if part not in whole}
    key_start = site.units * site.width
    value_start = key_start + site.groups * site.width
    keys, values = ([start + row for row in key_value] for start in (key_start, value_start))
    return {family.query: _indices(keep, site.width) + keys + values} | more


def _indices(units: Iterable[int], width: int) -> list[int]:
    """The indices of the rows or columns of some units, ``width`` each."""
    return [unit * width + i for unit in units for i in range(width)]


def smaller_modules(
    model: nn.Module, family: Family, sites: Sequence[Site], kept: Sequence[Sequence[int]]
) -> dict[str, nn.Module]:
    """Build the sliced modules of all sites that lose units; the model itself is not changed.

    :param model: the model, not pruned.
    :param family: its architecture.
    :param sites: its sites.
    :param kept: for each of them the indices of the units to keep, in rising order.
    :returns: new modules by the paths of the modules that they replace.
    """
    new = dict[str, nn.Module]()
    for site, keep in zip(sites, kept, strict=True):
        if len(keep) == site.units:
            continue
        if site.kind == EXPERTS and not keep:
            new[site.router] = NoRouter(model.get_submodule(site.router))
            new[site.consumer] = NoExperts()
            continue
        for part in site_slices(model, family, site, keep):
            new[part.path] = (
                copy.deepcopy(part.module)
                if part.whole
                else sliced(part.module, part.axis, part.kept)
            )
            if part.outputs is not None:
                new[part.path].register_forward_hook(SelectOutputs(part.outputs))
            if not keep and (empty := EMPTY.get(type(new[part.path]))):
                new[part.path].__class__ = empty
        if not keep and site.kind == ATTENTION:
            output = new.pop(site.consumer) if family.output_inside else None
            attention = copy.deepcopy(_without_projections(model, family, site))
            new[site.module] = empty_attention(attention, family, output)
    return new


def _without_projections(model: nn.Module, family: Family, site: Site) -> nn.Module:
    """A shallow copy of an attention module without its projections."""
    attention = copy.copy(model.get_submodule(site.module))
    attention._modules = dict(attention._modules)
    for part in (family.query, family.key, family.value, family.output, *family.more):
        attention._modules.pop(part, None)
    return attention


def sliced(module: nn.Module, axis: int, kept: list[int]) -> nn.Module:
    """A copy of a projection, a norm or experts with some of its rows or columns.

    :param module: the module; of a list of modules, some are copied.
    :param axis: 0 to select outputs (rows) or experts, 1 to select inputs (columns).
    :param kept: indices of the rows, columns or experts to keep.
    """
    if isinstance(module, nn.ModuleList):
        return nn.ModuleList(copy.deepcopy(module[number]) for number in kept)
    weight: Any = getattr(module, "weight", None)
    if weight is None:
        return _fewer_experts(module, kept)
    index = torch.tensor(kept, dtype=torch.long, device=weight.device)
    stored_axis = 1 - axis if isinstance(module, Conv1D) else axis  # Conv1D stores (in, out)
    memo: dict[int, Any] = {id(weight): _smaller(weight, stored_axis, index)}
    bias: Any = getattr(module, "bias", None)
    if axis == 0 and bias is not None:
        memo[id(bias)] = _smaller(bias, 0, index)
    new: Any = copy.deepcopy(module, memo)
    names = ("nf", "nx") if isinstance(module, Conv1D) else ("out_features", "in_features")
    if hasattr(new, names[axis]):
        setattr(new, names[axis], len(kept))
    smaller: nn.Module = new
    return smaller


def _fewer_experts(module: nn.Module, kept: list[int]) -> nn.Module:
    memo: dict[int, Any] = {}
    for parameter in module.parameters(recurse=False):
        index = torch.tensor(kept, dtype=torch.long, device=parameter.device)
        memo[id(parameter)] = _smaller(parameter, 0, index)
    return copy.deepcopy(module, memo)


def _smaller(parameter: Tensor, axis: int, index: Tensor) -> nn.Parameter:
    return nn.Parameter(selected(parameter.detach(), axis, index), parameter.requires_grad)


def selected(weight: Any, axis: int, index: Tensor) -> Tensor:
    """Select rows or columns of a weight, of int8 weights without a change of any value.

    :param weight: the weight; one of torchao's class ``Int8Tensor`` has an integer for each element
        and a scale for each row.
    :param axis: 0 for rows, 1 for columns.
    :param index: their indices.
    """
    if not hasattr(weight, "qdata"):
        selection: Tensor = weight.index_select(axis, index)
        return selection
    if not len(index):  # Int8Tensor fails without elements
        shape = [size if axis != own else 0 for own, size in enumerate(weight.shape)]
        return torch.empty(shape, dtype=weight.dtype, device=weight.device)
    parts = {name: getattr(weight, name) for name in weight.__tensor_flatten__()[0]}
    for name in parts if axis == 0 else ["qdata"]:  # each row keeps its scale
        parts[name] = parts[name].index_select(axis, index)
    block = [1, parts["qdata"].shape[1]]
    int8: Tensor = type(weight)(**parts, block_size=block, dtype=weight.dtype)
    return int8
