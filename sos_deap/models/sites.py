"""Remove heads and channels from a model's weights: sliced projections and empty sub-layers.

A site is one attention module or one feed-forward module: the place where removable units (query
heads, channels) enter a consumer projection side by side.

This file imports only torch and transformers. When sos_deap saves a pruned model, it writes a copy
of this file, followed by the model's classes, into the folder of the weights, so that transformers
can load the folder with ``trust_remote_code=True`` where sos_deap is not installed.
"""

from __future__ import annotations

import copy
import functools
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

ATTENTION, FEED_FORWARD = "attention", "ffn"


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
        then all keys, then all values.
    :param more: paths of further projections whose outputs belong to the query heads.
    :param per_head: modules whose weight has one row per head, such as norms with a scale for each
        head, and which heads these are: ``"heads"`` or ``"kv_heads"``. A model may lack them.
    :param head_dim: attribute of the attention module that holds the width of a head.
    :param attributes: attributes of the attention module that ``forward`` reads besides the
        weights, and what each counts: ``"heads"``, ``"kv_heads"`` or ``"width"`` (heads *
        head_dim). A name that starts with ``config.`` is an attribute of the module's config.
    :param requires: config values without which the architecture cannot be sliced by this row.
    :param unsliceable: why slicing heads would change what the kept heads compute; empty if it
        would not. Masking works in either case, and so does slicing channels.
    :param feed_forward: the feed-forward; ``None`` if its channels cannot be removed, as in a
        mixture of experts.
    """

    block: str
    attention: tuple[str, ...]
    query: str
    output: str
    key: str = ""
    value: str = ""
    interleaved: bool = False
    more: tuple[str, ...] = ()
    per_head: tuple[tuple[str, str], ...] = ()
    head_dim: str = "head_dim"
    attributes: tuple[tuple[str, str], ...] = ()
    requires: tuple[tuple[str, Any], ...] = ()
    unsliceable: str = ""
    feed_forward: FeedForward | None = None

    @property
    def fused(self) -> bool:
        """Whether one projection computes queries, keys and values."""
        return not self.key

    @property
    def output_inside(self) -> bool:
        """Whether the attention module applies the output projection itself."""
        return not self.output.startswith("../")


@dataclass(frozen=True)
class Site:
    """Paths and sizes of one attention module or one feed-forward module.

    A decoder layer with cross-attention has two attention sites.

    :param kind: :data:`ATTENTION`, whose units are query heads, or :data:`FEED_FORWARD`, whose
        units are channels.
    :param block: path in the model of the layer.
    :param module: path in the model of the module whose ``forward`` computes the site; that of the
        layer if the layer does so itself.
    :param consumer: path in the model of the projection that the units enter.
    :param units: number of query heads or channels.
    :param width: number of the consumer's inputs that belong to one unit: the width of a head, or
        1 for a channel.
    :param groups: number of key/value heads, smaller than ``units`` with grouped-query attention;
        for a feed-forward the number of channels.
    """

    kind: str
    block: str
    module: str
    consumer: str
    units: int
    width: int
    groups: int

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
    return found


def _attention_site(layer: nn.Module, family: Family, block: str, path: str) -> Site:
    attention = layer.get_submodule(path)
    parent = path.rpartition(".")[0]
    output = (
        f"{path}.{family.output}" if family.output_inside else _joined(parent, family.output[3:])
    )
    head_dim: Any = getattr(attention, family.head_dim)
    heads = features(layer.get_submodule(output))[1] // head_dim
    keys = features(attention.get_submodule(family.key or family.query))[0] // head_dim
    return Site(
        kind=ATTENTION,
        block=block,
        module=f"{block}.{path}",
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


def _joined(*parts: str) -> str:
    return ".".join(filter(None, parts))


def _has(module: nn.Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True


def slice_model(model: Any, family: Family, heads: Any, channels: Any = None) -> None:
    """Remove heads and channels from a model, in place.

    :param model: the model, not pruned; on the meta device nothing is computed.
    :param family: its architecture.
    :param heads: for each attention site the indices of the query heads to keep, in rising order.
    :param channels: for each feed-forward site the number of channels to keep; the weights of the
        first ones stay. Default: all channels.
    :raises ValueError: for values that do not fit the model.
    """
    sites = find_sites(model, family)
    kept = _checked_kept(sites, heads, channels)
    for path, module in smaller_modules(model, family, sites, kept).items():
        model.set_submodule(path, module)
    set_sizes(model, family, sites, kept)


def _checked_kept(sites: Sequence[Site], heads: Any, channels: Any) -> list[list[int]]:
    """Return the kept units of each site, from the values in a ``config.json``.

    :raises ValueError: for values that do not fit the sites.
    """
    attention = [site for site in sites if site.kind == ATTENTION]
    forward = [site for site in sites if site.kind == FEED_FORWARD]
    channels = [site.units for site in forward] if channels is None else channels

    def fits(keep: Any, site: Site) -> bool:
        plain = isinstance(keep, list) and all(type(head) is int for head in keep)
        return plain and keep == sorted(set(keep) & set(range(site.units)))

    if not _is_list(heads, len(attention)) or not all(map(fits, heads, attention)):
        raise ValueError(
            "kept_heads in config.json must list, for each of the model's "
            f"{len(attention)} attention modules, the indices of its kept heads in rising order"
        )
    if not _is_list(channels, len(forward)) or not all(
        type(count) is int and 0 <= count <= site.units
        for count, site in zip(channels, forward, strict=True)
    ):
        raise ValueError(
            "kept_channels in config.json must list, for each of the model's "
            f"{len(forward)} feed-forward modules, its number of kept channels"
        )
    left = {ATTENTION: iter(heads), FEED_FORWARD: (list(range(count)) for count in channels)}
    return [next(left[site.kind]) for site in sites]


def _is_list(value: Any, length: int) -> bool:
    return isinstance(value, list) and len(value) == length


@dataclass(frozen=True)
class SiteSlice:
    """The rows or columns of a module that belong to the kept units of its site.

    :param path: path of the module in the model.
    :param module: the module.
    :param axis: 0 if units are outputs (rows) of the module, 1 if they are its inputs (columns).
    :param kept: indices of the kept rows or columns, in rising order.
    :param projection: whether the module multiplies by a matrix; otherwise it is a norm with one
        row per head.
    """

    path: str
    module: nn.Module
    axis: int
    kept: list[int]
    projection: bool = True


def site_slices(
    model: nn.Module, family: Family, site: Site, keep: Sequence[int]
) -> Iterator[SiteSlice]:
    """Yield every module of a site whose size depends on its units.

    The first one is the consumer. The others are the producers, as far as the model has them: of a
    feed-forward its first projections; of an attention module the query, key and value projections,
    the family's further projections, and its norms with one row per head. A key/value head is kept
    if at least one of its query heads is. An attention module without heads has no producers.

    :param model: the model, not pruned.
    :param family: its architecture.
    :param site: the site.
    :param keep: indices of the kept units, in rising order.
    """
    consumer = model.get_submodule(site.consumer)
    yield SiteSlice(site.consumer, consumer, 1, _indices(keep, site.width))
    if site.kind == ATTENTION and not keep:
        return
    module = model.get_submodule(site.module)
    kept = {"heads": list(keep), "kv_heads": list(site.group_counts(keep))}
    norms = {part: kept[which] for part, which in family.per_head if site.kind == ATTENTION}
    for part, rows in (_producer_rows(family, site, keep) | norms).items():
        if _has(module, part):
            path = f"{site.module}.{part}"
            yield SiteSlice(path, module.get_submodule(part), 0, rows, part not in norms)


def _producer_rows(family: Family, site: Site, keep: Sequence[int]) -> dict[str, list[int]]:
    """The kept output rows of each projection that produces units, by its path."""
    if site.kind == FEED_FORWARD:
        forward = family.feed_forward
        assert forward is not None
        rows = [part * site.units + unit for part in range(forward.fused) for unit in keep]
        return dict.fromkeys(forward.producers, rows)
    query = _indices(keep, site.width)
    if family.interleaved:
        return {family.query: _indices(keep, 3 * site.width)}
    key_value = _indices(site.group_counts(keep), site.width)
    if not family.fused:
        projections = {family.query: query, family.key: key_value, family.value: key_value}
        return projections | dict.fromkeys(family.more, query)
    key_start = site.units * site.width
    value_start = key_start + site.groups * site.width
    keys, values = ([start + row for row in key_value] for start in (key_start, value_start))
    return {family.query: query + keys + values}


def _indices(units: Iterable[int], width: int) -> list[int]:
    """The indices of the rows or columns of some units, ``width`` each."""
    return [unit * width + i for unit in units for i in range(width)]


def features(module: Any) -> tuple[int, int]:
    """The numbers of outputs and inputs of a projection; for a norm, the shape of its weight."""
    if isinstance(module, Conv1D):
        return module.nf, module.nx
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
        for part in site_slices(model, family, site, keep):
            new[part.path] = sliced(part.module, part.axis, part.kept)
            if not keep and (empty := _EMPTY.get(type(new[part.path]))):
                new[part.path].__class__ = empty
        if not keep and site.kind == ATTENTION:
            own = {family.output: new.pop(site.consumer)} if family.output_inside else {}
            attention = model.get_submodule(site.module)
            new[site.module] = EmptyAttention(own, getattr(attention, "layer_idx", None))
    return new


def sliced(module: nn.Module, axis: int, kept: list[int]) -> nn.Module:
    """A copy of a projection or of a norm with some of its rows or columns.

    :param module: the module.
    :param axis: 0 to select outputs (rows), 1 to select inputs (columns).
    :param kept: indices of the rows or columns to keep.
    """
    weight: Any = module.weight
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
    if own or ragged:
        attention.config = LayerConfig(model.config, own, counts if ragged else None)


class LayerConfig:
    """A layer's view of the model's config: some values are the layer's, all others are shared.

    :param config: the model's config.
    :param own: the layer's values by name.
    :param ragged: the number of query heads of each of the layer's key/value heads; ``None`` if
        all are equal.
    """

    def __init__(self, config: Any, own: dict[str, Any], ragged: list[int] | None) -> None:
        self.__dict__.update(own, shared=config, ragged=ragged)

    @property
    def _attn_implementation(self) -> str:
        """The model's current attention function, wrapped if the layer's groups are unequal."""
        inner: str = self.shared._attn_implementation
        return inner if self.ragged is None else _ragged(inner)

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
    """

    def __init__(self, output: dict[str, nn.Module], layer: int | None) -> None:
        super().__init__()
        self.layer_idx = layer
        for name, projection in output.items():
            self.add_module(name, projection)

    def forward(
        self, hidden_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
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
        for projection in self.children():
            output = projection(output)
        return output, None


def _ragged(inner: str) -> str:
    """Register ``inner`` on repeated key/value heads as an attention function; return its name."""
    name = f"ragged_{inner}"
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, functools.partial(_ragged_attention, inner))
    return name


def _ragged_attention(
    inner: str, module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> Any:
    """Compute attention with unequal numbers of query heads per key/value head.

    The key/value heads are repeated as often as ``module.config.ragged`` states. These counts are
    integers, not a buffer, so nothing has to be loaded, moved between devices or initialised.

    :param inner: name of the attention function that computes the result.
    :param module: the attention module.
    :param query: (batch, heads, tokens, head_dim).
    :param key: (batch, key/value heads, tokens, head_dim).
    :param value: (batch, key/value heads, tokens, head_dim).
    :returns: what ``inner`` returns.
    """
    key, value = (_repeat_heads(states, module.config.ragged) for states in (key, value))
    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(inner, eager)
    return attend(module, query, key, value, *args, **kwargs)


def _repeat_heads(states: Tensor, counts: list[int]) -> Tensor:
    parts = [states[:, i : i + 1].expand(-1, n, -1, -1) for i, n in enumerate(counts)]
    return torch.cat(parts, dim=1)


def pruned_class(stock: type, family: Family) -> Any:
    """Make a model class that is sliced by its config before its weights are loaded.

    The config lists ``kept_heads`` for each attention module and, unless all channels are kept,
    the numbers ``kept_channels`` for each feed-forward module.

    :param stock: the class in transformers; the new class has its name, since saved configs refer
        to a class by name.
    :param family: its architecture.
    """

    class Pruned(stock):  # type: ignore[misc]
        def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
            # Only other programs read it; if set, config.num_attention_heads raises an error.
            config.per_layer_config = None
            super().__init__(config, *args, **kwargs)
            slice_model(self, family, config.kept_heads, getattr(config, "kept_channels", None))

    Pruned.__name__ = Pruned.__qualname__ = stock.__name__
    Pruned.__doc__ = stock.__doc__
    return Pruned
