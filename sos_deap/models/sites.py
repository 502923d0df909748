"""Remove heads, channels and experts from a model's weights: sliced modules, empty sub-layers.

A site is one attention module, one feed-forward module or one mixture of experts: the place where
removable units lie side by side. Query heads and channels enter a consumer projection; experts are
chosen by a router.

This file imports only torch and transformers. When sos_deap saves a pruned model, it writes a copy
of this file, followed by the model's classes, into the folder of the weights, so that transformers
can load the folder with ``trust_remote_code=True`` where sos_deap is not installed.
"""

from __future__ import annotations

import copy
import functools
import inspect
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

ATTENTION, FEED_FORWARD, EXPERTS = "attention", "ffn", "experts"


@dataclass(frozen=True)
class FeedForward:
    """Names of the feed-forward projections of one architecture.

    :param modules: paths in a layer of the modules whose ``forward`` computes the feed-forward; an
        empty path if the layer does so itself.
    :param consumer: path in that module of the projection whose inputs are the channels.
    :param producers: paths in that module of the projections whose outputs are the channels, such
        as the gate and the value of a gated feed-forward. A model may lack some.
    :param fused: number of projections that each producer computes, one after the other: 2 where
        one projection computes the gate and the value.
    :param sizes: attributes of the stock config that set the number of channels; empty if the
        model's class computes it from other sizes.
    """

    modules: tuple[str, ...]
    consumer: str
    producers: tuple[str, ...]
    fused: int = 1
    sizes: tuple[str, ...] = ("intermediate_size",)


@dataclass(frozen=True)
class Experts:
    """Names in the mixture of experts of one architecture.

    The router has a ``weight`` with one row per expert, perhaps a ``bias``, and an attribute
    ``top_k``, the number of experts that each token is sent to; it returns logits, the weights of
    the chosen experts, and their indices. It may compute the weights from the logits in any way in
    which an expert whose logit is very low has the weight 0.

    :param module: path in a layer of the module whose ``forward`` computes the mixture.
    :param router: path in that module of the router.
    :param experts: path in that module of the module that computes the experts. Each of its
        parameters has one entry per expert along its first axis.
    :param sizes: attributes of the stock config that set the number of experts.
    """

    module: str = "mlp"
    router: str = "gate"
    experts: str = "experts"
    sizes: tuple[str, ...] = ("num_experts",)


@dataclass(frozen=True)
class Family:
    """Names and layout of the attention and feed-forward modules of one architecture.

    :param block: path of a layer, with ``*`` for its number, without the model's prefix.
    :param attention: paths in the layer of the modules whose ``forward`` computes attention.
    :param query: path in the attention module of the query projection, or of the projection that
        computes queries, keys and values at once.
    :param output: path in the attention module of the output projection, whose input is the
        concatenation of the heads' outputs; a leading ``../`` refers to the module's parent.
    :param key: path of the key projection; empty if ``query`` computes the keys.
    :param value: path of the value projection; empty if ``query`` computes the values.
    :param interleaved: whether the outputs of a fused projection are ordered by head (query, key
        and value of the first head, then of the second, ...); otherwise all queries come first,
        then all keys, then all values. Or the name of a config value: ordered by head if it is
        false.
    :param more: paths of further projections whose outputs belong to the query heads.
    :param per_head: modules and parameters of the attention module with one row per head, such as
        norms with a scale for each head or attention sinks, and which heads these are: ``"heads"``
        or ``"kv_heads"``. An embedding has one column per head. A model may lack them.
    :param spanning: norms over the outputs of all heads of a projection, with their projection and
        which heads these are. Both keep all heads, since the norm of a kept head depends on the
        removed ones; only their result is sliced.
    :param by_head: arguments of the attention module's ``forward`` with one value per query head of
        the dense model, such as a position bias; their first or second axis is that of the heads.
    :param bias_by_head: the same for arguments of the attention function that ``forward`` calls.
    :param whole: tensors of the model that a sliced model needs for all heads, such as the table of
        a position bias that all layers read; a part of their names.
    :param head_dim: attribute of the attention module that holds the width of a head.
    :param attributes: attributes of the attention module that ``forward`` reads besides the
        weights, and what each counts: ``"heads"``, ``"kv_heads"`` or ``"width"`` (heads *
        head_dim). A name that starts with ``config.`` is an attribute of the module's config.
    :param requires: config values without which the architecture cannot be sliced by this row.
    :param adds_residual: whether the attention module adds its second argument to its output.
    :param returns_bias: whether the attention module returns the position bias for later layers.
    :param norm: path in the attention module of a norm of the sum of its input and its output, if
        the module applies one.
    :param unsliceable: why slicing heads would change what the kept heads compute; empty if it
        would not. Masking works in either case, and so does slicing channels.
    :param feed_forward: the feed-forward; ``None`` if its channels cannot be removed, as in a
        mixture of experts.
    :param experts: the mixture of experts; ``None`` if there is none or its experts cannot be
        removed.
    """

    block: str
    attention: tuple[str, ...]
    query: str
    output: str
    key: str = ""
    value: str = ""
    interleaved: bool | str = False
    more: tuple[str, ...] = ()
    per_head: tuple[tuple[str, str], ...] = ()
    spanning: tuple[tuple[str, str, str], ...] = ()
    by_head: tuple[str, ...] = ()
    bias_by_head: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    head_dim: str = "head_dim"
    attributes: tuple[tuple[str, str], ...] = ()
    requires: tuple[tuple[str, Any], ...] = ()
    adds_residual: bool = False
    returns_bias: bool = False
    norm: str = ""
    unsliceable: str = ""
    feed_forward: FeedForward | None = None
    experts: Experts | None = None

    @property
    def fused(self) -> bool:
        """Whether one projection computes queries, keys and values."""
        return not self.key

    @property
    def needs_dense_heads(self) -> bool:
        """Whether a stock model with fewer heads would not compute what a sliced model does."""
        return bool(self.spanning or self.by_head or self.bias_by_head)

    @property
    def output_inside(self) -> bool:
        """Whether the attention module applies the output projection itself."""
        return not self.output.startswith("../")


@dataclass(frozen=True)
class Site:
    """Paths and sizes of one attention module, one feed-forward module or one mixture of experts.

    A decoder layer with cross-attention has two attention sites.

    :param kind: :data:`ATTENTION`, whose units are query heads, :data:`FEED_FORWARD`, whose units
        are channels, or :data:`EXPERTS`, whose units are experts.
    :param block: path in the model of the layer.
    :param module: path in the model of the module whose ``forward`` computes the site; that of the
        layer if the layer does so itself.
    :param consumer: path in the model of the projection that the units enter; of a mixture that of
        the module that computes the experts.
    :param units: number of query heads, channels or experts.
    :param width: number of the consumer's inputs that belong to one unit: the width of a head, or
        1 for a channel; 1 for an expert.
    :param groups: number of key/value heads, smaller than ``units`` with grouped-query attention;
        otherwise the number of units.
    :param router: path in the model of a mixture's router; empty for other sites.
    """

    kind: str
    block: str
    module: str
    consumer: str
    units: int
    width: int
    groups: int
    router: str = ""

    def group_counts(self, keep: Iterable[int]) -> dict[int, int]:
        """Count the query heads that use each key/value head.

        :param keep: indices of the kept query heads.
        :returns: from the index of each key/value head that is used to its number of query heads,
            in rising order of the index.
        """
        return dict(sorted(Counter(unit * self.groups // self.units for unit in keep).items()))


def find_sites(model: nn.Module, family: Family) -> list[Site]:
    """Return the sites of a model, layer by layer, in each layer the attention first.

    :param model: the model, not pruned.
    :param family: its architecture.
    """
    name = re.escape(family.block).replace(r"\*", r"\d+")
    pattern = re.compile(rf"(?:.*\.)?{name}")
    found = []
    for block, layer in model.named_modules():
        if not pattern.fullmatch(block):
            continue
        attention = [path for path in family.attention if _has(layer, path)]
        found += [_attention_site(layer, family, block, path) for path in attention]
        forward = family.feed_forward
        if attention and forward is not None:  # other modules may have the names of a layer
            found += [
                _feed_forward_site(layer, forward, block, path)
                for path in forward.modules
                if _has(layer, _joined(path, forward.consumer))
            ]
        experts = family.experts
        if attention and experts is not None:
            paths = [_joined(experts.module, path) for path in (experts.router, experts.experts)]
            if all(_has(layer, path) for path in paths):  # other layers may have a feed-forward
                found.append(_experts_site(layer, experts, block, *paths))
    return found


def _attention_site(layer: nn.Module, family: Family, block: str, path: str) -> Site:
    attention = layer.get_submodule(path)
    parent = path.rpartition(".")[0]
    output = (
        _joined(path, family.output) if family.output_inside else _joined(parent, family.output[3:])
    )
    head_dim: Any = getattr(attention, family.head_dim)
    heads = features(layer.get_submodule(output))[1] // head_dim
    keys = features(attention.get_submodule(family.key or family.query))[0] // head_dim
    return Site(
        kind=ATTENTION,
        block=block,
        module=_joined(block, path),
        consumer=f"{block}.{output}",
        units=heads,
        width=head_dim,
        groups=(keys - heads) // 2 if family.fused else keys,
    )


def _feed_forward_site(layer: nn.Module, forward: FeedForward, block: str, path: str) -> Site:
    consumer = _joined(path, forward.consumer)
    channels = features(layer.get_submodule(consumer))[1]
    return Site(
        kind=FEED_FORWARD,
        block=block,
        module=_joined(block, path),
        consumer=f"{block}.{consumer}",
        units=channels,
        width=1,
        groups=channels,
    )


def _experts_site(
    layer: nn.Module, experts: Experts, block: str, router: str, consumer: str
) -> Site:
    count = features(layer.get_submodule(router))[0]
    return Site(
        kind=EXPERTS,
        block=block,
        module=_joined(block, experts.module),
        consumer=f"{block}.{consumer}",
        units=count,
        width=1,
        groups=count,
        router=f"{block}.{router}",
    )


def _joined(*parts: str) -> str:
    return ".".join(filter(None, parts))


def _has(module: nn.Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True


def slice_model(
    model: Any, family: Family, heads: Any, channels: Any = None, experts: Any = None
) -> None:
    """Remove heads, channels and experts from a model, in place.

    :param model: the model, not pruned; on the meta device nothing is computed.
    :param family: its architecture.
    :param heads: for each attention site the indices of the query heads to keep, in rising order.
    :param channels: for each feed-forward site the number of channels to keep; the weights of the
        first ones stay. Default: all channels.
    :param experts: the same for each mixture of experts.
    :raises ValueError: for values that do not fit the model.
    """
    sites = find_sites(model, family)
    kept = _checked_kept(sites, heads, channels, experts)
    for site, keep in zip(sites, kept, strict=True):
        for name, parameter in head_parameters(model, family, site, keep).items():
            setattr(model.get_submodule(site.module), name, parameter)
    for path, module in smaller_modules(model, family, sites, kept).items():
        model.set_submodule(path, module)
    set_sizes(model, family, sites, kept)


def _checked_kept(
    sites: Sequence[Site], heads: Any, channels: Any, experts: Any
) -> list[list[int]]:
    """Return the kept units of each site, from the values in a ``config.json``.

    :raises ValueError: for values that do not fit the sites.
    """
    attention = [site for site in sites if site.kind == ATTENTION]

    def fits(keep: Any, site: Site) -> bool:
        plain = isinstance(keep, list) and all(type(head) is int for head in keep)
        return plain and keep == sorted(set(keep) & set(range(site.units)))

    if not _is_list(heads, len(attention)) or not all(map(fits, heads, attention)):
        raise ValueError(
            "kept_heads in config.json must list, for each of the model's "
            f"{len(attention)} attention modules, the indices of its kept heads in rising order"
        )
    left = {
        ATTENTION: iter(heads),
        FEED_FORWARD: _first_units(sites, FEED_FORWARD, channels, "feed-forward modules"),
        EXPERTS: _first_units(sites, EXPERTS, experts, "mixtures of experts"),
    }
    return [next(left[site.kind]) for site in sites]


def _first_units(
    sites: Sequence[Site], kind: str, counts: Any, modules: str
) -> Iterator[list[int]]:
    """Return the kept units of each site of a kind, from their numbers in a ``config.json``."""
    own = [site for site in sites if site.kind == kind]
    if counts is None:
        counts = [site.units for site in own]
    if not _is_list(counts, len(own)) or not all(
        type(count) is int and 0 <= count <= site.units
        for count, site in zip(counts, own, strict=True)
    ):
        units = "experts" if kind == EXPERTS else "channels"
        raise ValueError(
            f"kept_{units} in config.json must list, for each of the model's "
            f"{len(own)} {modules}, its number of kept {units}"
        )
    return iter([list(range(count)) for count in counts])


def _is_list(value: Any, length: int) -> bool:
    return isinstance(value, list) and len(value) == length


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
    """

    path: str
    module: nn.Module
    axis: int
    kept: list[int]
    projection: bool = True
    whole: bool = False


def site_slices(
    model: nn.Module, family: Family, site: Site, keep: Sequence[int]
) -> Iterator[SiteSlice]:
    """Yield every module of a site whose size depends on its units.

    The first one is the consumer. The others are the producers, as far as the model has them: of a
    feed-forward its first projections; of a mixture the router; of an attention module the query,
    key and value projections, the family's further projections, its norms with one row per head,
    and its norms over all heads. A key/value head is kept if at least one of its query heads is. An
    attention module without
    heads has no producers.

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
        if _has(module, part):
            yield SiteSlice(f"{site.module}.{part}", module.get_submodule(part), 0, rows)
    if site.kind == FEED_FORWARD:
        return
    kept = _kept_heads(site, keep)
    for part, which in family.per_head:
        if _has(module, part):
            own = module.get_submodule(part)
            axis = int(isinstance(own, nn.Embedding))
            yield SiteSlice(f"{site.module}.{part}", own, axis, kept[which], projection=False)
    for part, _, which in family.spanning:
        if _has(module, part):
            path, rows = f"{site.module}.{part}", _indices(kept[which], site.width)
            yield SiteSlice(path, module.get_submodule(part), 0, rows, projection=False, whole=True)


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
    smaller = {}
    for name, which in family.per_head:
        if (parameter := own.get(name)) is not None:
            index = torch.tensor(kept[which], dtype=torch.long, device=parameter.device)
            smaller[name] = _smaller(parameter, 0, index)
    return smaller


def _producer_rows(
    model: Any, family: Family, site: Site, keep: Sequence[int]
) -> dict[str, list[int]]:
    """The kept output rows of each projection that produces units, by its path."""
    if site.kind == FEED_FORWARD:
        forward = family.feed_forward
        assert forward is not None
        rows = [part * site.units + unit for part in range(forward.fused) for unit in keep]
        return dict.fromkeys(forward.producers, rows)
    query = _indices(keep, site.width)
    interleaved = family.interleaved
    if isinstance(interleaved, str):
        interleaved = not getattr(model.config, interleaved)
    if interleaved:
        return {family.query: _indices(keep, 3 * site.width)}
    key_value = _indices(site.group_counts(keep), site.width)
    if not family.fused:
        projections = {family.query: query, family.key: key_value, family.value: key_value}
        projections |= dict.fromkeys(family.more, query)
        whole = {projection for _, projection, _ in family.spanning}
        return {part: rows for part, rows in projections.items() if part not in whole}
    key_start = site.units * site.width
    value_start = key_start + site.groups * site.width
    keys, values = ([start + row for row in key_value] for start in (key_start, value_start))
    return {family.query: query + keys + values}


def _indices(units: Iterable[int], width: int) -> list[int]:
    """The indices of the rows or columns of some units, ``width`` each."""
    return [unit * width + i for unit in units for i in range(width)]


def features(module: Any) -> tuple[int, int]:
    """The numbers of outputs and inputs of a projection; for a norm, the shape of its weight.

    For the experts of a mixture, their number and that of the parameters of each.
    """
    if isinstance(module, Conv1D):
        return module.nf, module.nx
    if not hasattr(module, "weight"):
        own = list(module.parameters(recurse=False))
        return len(own[0]), sum(parameter[0].numel() for parameter in own)
    if not hasattr(module, "out_features"):
        return len(module.weight), module.weight[0].numel()
    return module.out_features, module.in_features


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
            if part.whole:
                new[part.path] = copy.deepcopy(part.module)
                new[part.path].register_forward_hook(SelectOutputs(part.kept))
                continue
            new[part.path] = sliced(part.module, part.axis, part.kept)
            if not keep and (empty := _EMPTY.get(type(new[part.path]))):
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

    :param module: the module.
    :param axis: 0 to select outputs (rows) or experts, 1 to select inputs (columns).
    :param kept: indices of the rows, columns or experts to keep.
    """
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


def set_sizes(
    model: Any,
    family: Family,
    sites: Sequence[Site],
    kept: Sequence[Sequence[int]],
) -> None:
    """Set the attributes that the code of sliced attention modules reads besides the weights.

    :param model: the sliced model.
    :param family: its architecture.
    :param sites: its sites, as they were before slicing.
    :param kept: for each of them the indices of the kept units, in rising order.
    """
    for site, keep in zip(sites, kept, strict=True):
        if site.kind == ATTENTION and 0 < len(keep) < site.units:
            set_attention_sizes(model, family, site, keep)
        if site.kind == EXPERTS and 0 < len(keep) < site.units:
            router: Any = model.get_submodule(site.router)
            experts: Any = model.get_submodule(site.consumer)
            router.num_experts = experts.num_experts = len(keep)
            router.top_k = min(router.top_k, len(keep))


def set_attention_sizes(model: Any, family: Family, site: Site, keep: Sequence[int]) -> None:
    """Set the attributes that the code of one sliced attention module reads besides the weights.

    :param model: the sliced model.
    :param family: its architecture.
    :param site: the attention site, as it was before slicing.
    :param keep: indices of its kept query heads, at least one, in rising order.
    """
    attention: Any = model.get_submodule(site.module)
    counts = list(site.group_counts(keep).values())
    sizes = {"heads": len(keep), "kv_heads": len(counts), "width": len(keep) * site.width}
    own = dict[str, int]()
    for name, what in family.attributes:
        if name.startswith("config."):
            own[name[7:]] = sizes[what]
        else:
            setattr(attention, name, sizes[what])
    ragged = len(set(counts)) > 1
    if site.groups < site.units:
        attention.num_key_value_groups = 1 if ragged else counts[0]
    if own or ragged or family.bias_by_head:
        shared = getattr(attention, "config", model.config)
        biases = {name: list(keep) for name in family.bias_by_head}
        attention.config = LayerConfig(shared, own, counts if ragged else None, biases)
    if family.by_head:
        # Copies, since narrowed() restores an attention module by restoring its attributes.
        for hooks in ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"):
            setattr(attention, hooks, copy.copy(getattr(attention, hooks)))
        names = {
            name: number
            for number, name in enumerate(inspect.signature(attention.forward).parameters)
            if name in family.by_head
        }
        select = SelectArguments(names, site.units, list(keep))
        attention.register_forward_pre_hook(select, with_kwargs=True)


def _of_heads(value: Tensor, heads: int, kept: Sequence[int]) -> Tensor:
    """Select heads of a tensor of shape (batch, heads, ...) or (batch * heads, ...)."""
    index = torch.tensor(kept, dtype=torch.long, device=value.device)
    if value.dim() == 4:
        return value if value.shape[1] == 1 else value.index_select(1, index)
    by_head: Tensor = value.unflatten(0, (-1, heads))
    return by_head.index_select(1, index).flatten(0, 1)


class SelectArguments:
    """A forward pre-hook that selects the kept heads of arguments with one value per head.

    :param names: the arguments by name, each with its number among all.
    :param heads: number of query heads of the dense model.
    :param kept: indices of the kept ones.
    """

    def __init__(self, names: dict[str, int], heads: int, kept: list[int]) -> None:
        self.names, self.heads, self.kept = names, heads, kept

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of ``forward`` with kept heads only."""
        given, named = list(args), dict(kwargs)
        for name, number in self.names.items():
            if number < len(given):
                given[number] = self._selected(given[number])
            elif name in named:
                named[name] = self._selected(named[name])
        return tuple(given), named

    def _selected(self, value: Any) -> Any:
        return _of_heads(value, self.heads, self.kept) if isinstance(value, Tensor) else value


class SelectOutputs:
    """A forward hook that selects some features of a module's output.

    :param kept: indices of the features.
    """

    def __init__(self, kept: list[int]) -> None:
        self.kept = kept

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """Return the selected features of the output, (..., features)."""
        return output.index_select(-1, torch.tensor(self.kept, device=output.device))


class LayerConfig:
    """A layer's view of the model's config: some values are the layer's, all others are shared.

    :param config: the model's config.
    :param own: the layer's values by name.
    :param ragged: the number of query heads of each of the layer's key/value heads; ``None`` if
        all are equal.
    :param biases: arguments of the attention function with one value per head of the dense model,
        with the indices of the kept heads.
    """

    def __init__(
        self,
        config: Any,
        own: dict[str, Any],
        ragged: list[int] | None,
        biases: dict[str, list[int]],
    ) -> None:
        self.__dict__.update(own, shared=config, ragged=ragged, biases=biases)

    @property
    def _attn_implementation(self) -> str:
        """The model's current attention function, wrapped if what it gets has to be changed."""
        inner: str = self.shared._attn_implementation
        return inner if self.ragged is None and not self.biases else _wrapped(inner)

    def __getattr__(self, name: str) -> Any:
        if name == "shared":  # not yet set while the object is being copied
            raise AttributeError(name)
        return getattr(self.shared, name)


class EmptyLinear(nn.Linear):
    """A projection of a site without units: without inputs (only its bias remains), or outputs.

    It is a subclass because dynamic quantisation converts exactly the type ``nn.Linear`` and fails
    on a projection without inputs or outputs.
    """


class EmptyConv1D(Conv1D):
    """A ``Conv1D`` of a site without units: without inputs (only its bias remains), or outputs.

    The stock class fails without inputs.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the bias for each token.

        :param x: (batch, tokens, inputs), with no inputs or for a projection without outputs.
        :returns: (batch, tokens, outputs).
        """
        return nn.functional.linear(x, self.weight.T, self.bias)


_EMPTY: dict[type, type[nn.Module]] = {nn.Linear: EmptyLinear, Conv1D: EmptyConv1D}


class EmptyAttention(nn.Module):
    """Attention without heads: returns zeros, or the bias of the output projection.

    :param output: the output projection, without inputs, by its name; empty if the output
        projection is outside the attention module. Its empty weight is saved, so that the stock
        class finds a mismatch instead of loading the model.
    :param layer: index of the layer in the key/value cache; ``None`` without a cache.
    :param adds_residual: whether the second argument is added to the output.
    :param norm: the norm of the sum of input and output, by its name, if there is one.
    """

    def __init__(
        self,
        output: dict[str, nn.Module],
        layer: int | None,
        adds_residual: bool = False,
        norm: dict[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.layer_idx, self.adds_residual = layer, adds_residual
        self._output, self._norm = tuple(output), tuple(norm or ())
        for name, module in (output | (norm or {})).items():
            self.add_module(name, module)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Return the output and ``None`` for the attention weights, as stock attention does.

        :param hidden_states: (batch, tokens, hidden size).
        :returns: the output, (batch, tokens, hidden size), or (batch, tokens, 0) if the output
            projection follows; and ``None``.
        """
        cross = any(
            kwargs.get(name) is not None for name in ("key_value_states", "encoder_hidden_states")
        )
        for cache in (value for value in kwargs.values() if isinstance(value, Cache)):
            if self.layer_idx is not None and not cross:
                # The cache counts tokens by what a layer stores: one number per token suffices.
                own = getattr(cache, "self_attention_cache", cache)
                token = hidden_states.new_zeros(len(hidden_states), 1, hidden_states.shape[1], 1)
                own.update(token, token, self.layer_idx)
        # The output depends on the input, so that the parameters before it have gradients (of 0):
        # distributed training fails for parameters without one.
        output = hidden_states[..., :0]
        for name in self._output:
            output = getattr(self, name)(output)
        for name in self._norm:
            output = getattr(self, name)(hidden_states + output)
        return output + args[0] if self.adds_residual else output, None


class EmptyBiasedAttention(EmptyAttention):
    """Attention without heads that returns the position bias that later layers read, as T5's does.

    :param attention: the stock attention module, without projections, which computes the bias.
    """

    def __init__(self, attention: Any, output: dict[str, nn.Module], layer: int | None) -> None:
        super().__init__(output, layer)
        plain = (name for name, value in vars(attention).items() if type(value) in (bool, int))
        for name in (*plain, "_relative_position_bucket"):
            if name not in vars(self):
                setattr(self, name, getattr(attention, name))
        self._bias_of = type(attention).compute_bias
        for name, module in attention.named_children():
            self.add_module(name, module)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Return the output, the position bias, and ``None`` for the attention weights.

        :param hidden_states: (batch, tokens, hidden size).
        """
        bias, cache = kwargs.get("position_bias"), kwargs.get("past_key_values")
        if bias is None and self.has_relative_attention_bias:
            tokens, seen = hidden_states.shape[1], 0
            if cache is not None and self.layer_idx is not None:
                seen = cache.get_seq_length(self.layer_idx)
            bias = self._bias_of(
                self, tokens, tokens + seen, device=hidden_states.device, past_seen_tokens=seen
            )
        output, weights = super().forward(hidden_states, *args, **kwargs)
        return output, bias, weights


class NoRouter(nn.Module):
    """The router of a mixture without experts: it chooses none for each token.

    :param router: the stock router; an empty weight is saved, so that the stock class finds a
        mismatch instead of loading the model.
    """

    def __init__(self, router: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(router.weight.detach()[:0].clone(), router.weight.requires_grad)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, weights and indices of no experts, each of shape (tokens, 0).

        :param hidden_states: (..., hidden size).
        """
        none = nn.functional.linear(hidden_states.flatten(0, -2), self.weight)
        return none, none, none.long()


class NoExperts(nn.Module):
    """The experts of a mixture without experts: it returns zeros."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return zeros in the shape of the hidden states."""
        return torch.zeros_like(hidden_states)


def empty_attention(attention: Any, family: Family, output: nn.Module | None) -> EmptyAttention:
    """Return what replaces an attention module that keeps no head.

    :param attention: the attention module.
    :param family: its architecture.
    :param output: the output projection without inputs; ``None`` if it is outside the module.
    """
    own = {} if output is None else {family.output: output}
    layer = getattr(attention, "layer_idx", getattr(attention, "layer_id", None))
    if family.returns_bias:
        return EmptyBiasedAttention(attention, own, layer)
    norm = {family.norm: attention.get_submodule(family.norm)} if family.norm else {}
    return EmptyAttention(own, layer, family.adds_residual, norm)


def _wrapped(inner: str) -> str:
    """Register ``inner`` on changed inputs as an attention function; return its name."""
    name = f"sliced_{inner}"
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, functools.partial(_sliced_attention, inner))
    return name


def _sliced_attention(
    inner: str, module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> Any:
    """Compute attention of a layer that has lost heads.

    If the numbers of query heads per key/value head are unequal, key/value heads are repeated as
    often as ``module.config.ragged`` states. Biases with a value for each head of the dense model
    are reduced to the kept heads. All these numbers are integers, not buffers, so nothing has to be
    loaded, moved between devices or initialised.

    :param inner: name of the attention function that computes the result.
    :param module: the attention module.
    :param query: (batch, heads, tokens, head_dim).
    :param key: (batch, key/value heads, tokens, head_dim).
    :param value: (batch, key/value heads, tokens, head_dim).
    :returns: what ``inner`` returns.
    """
    config = module.config
    if config.ragged is not None:
        key, value = (_repeat_heads(states, config.ragged) for states in (key, value))
    for name, kept in config.biases.items():
        bias = kwargs.get(name)
        if bias is not None and bias.shape[1] not in (1, len(kept)):
            kwargs[name] = _of_heads(bias, 0, kept)
    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(inner, eager)
    return attend(module, query, key, value, *args, **kwargs)


def _repeat_heads(states: Tensor, counts: list[int]) -> Tensor:
    parts = [states[:, i : i + 1].expand(-1, n, -1, -1) for i, n in enumerate(counts)]
    return torch.cat(parts, dim=1)


def pruned_class(stock: type, family: Family) -> Any:
    """Make a model class that is sliced by its config before its weights are loaded.

    The config lists ``kept_heads`` for each attention module and, unless all are kept, the numbers
    ``kept_channels`` for each feed-forward module and ``kept_experts`` for each mixture.

    :param stock: the class in transformers; the new class has its name, since saved configs refer
        to a class by name.
    :param family: its architecture.
    """

    class Pruned(stock):  # type: ignore[misc]
        def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
            # Only other programs read it; if set, config.num_attention_heads raises an error.
            config.per_layer_config = None
            super().__init__(config, *args, **kwargs)
            others = (getattr(config, f"kept_{units}", None) for units in ("channels", "experts"))
            slice_model(self, family, config.kept_heads, *others)

    Pruned.__name__ = Pruned.__qualname__ = stock.__name__
    Pruned.__doc__ = stock.__doc__
    return Pruned
