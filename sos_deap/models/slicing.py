"""Remove attention heads from a model's weights: sliced projections, empty layers, unequal groups.

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


@dataclass(frozen=True)
class Family:
    """Names and layout of the attention modules of one architecture.

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
    :param unsliceable: why slicing would change what the kept heads compute; empty if it would
        not. Masking works in either case.
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

    @property
    def fused(self) -> bool:
        """Whether one projection computes queries, keys and values."""
        return not self.key

    @property
    def output_inside(self) -> bool:
        """Whether the attention module applies the output projection itself."""
        return not self.output.startswith("../")


@dataclass(frozen=True)
class AttentionLayer:
    """Paths and sizes of one attention module; a decoder layer with cross-attention has two.

    :param attention: path in the model of the attention module.
    :param output: path in the model of the output projection.
    :param heads: number of query heads.
    :param kv_heads: number of key/value heads; smaller than ``heads`` with grouped-query attention.
    :param head_dim: width of a head.
    """

    attention: str
    output: str
    heads: int
    kv_heads: int
    head_dim: int

    def kv_counts(self, keep: Iterable[int]) -> dict[int, int]:
        """Count the query heads that use each key/value head.

        :param keep: indices of the kept query heads.
        :returns: from the index of each key/value head that is used to its number of query heads,
            in rising order of the index.
        """
        return dict(sorted(Counter(head * self.kv_heads // self.heads for head in keep).items()))


def attention_layers(model: nn.Module, family: Family) -> Iterator[AttentionLayer]:
    """Yield the attention modules of a model, in the order of its layers.

    :param model: the model, not pruned.
    :param family: its architecture.
    """
    block = re.escape(family.block).replace(r"\*", r"\d+")
    pattern = re.compile(rf"(?:.*\.)?{block}\.(?:{'|'.join(map(re.escape, family.attention))})")
    for name, attention in model.named_modules():
        if not pattern.fullmatch(name):
            continue
        parent = name.rpartition(".")[0]
        inside = family.output_inside
        output = f"{name}.{family.output}" if inside else f"{parent}.{family.output[3:]}"
        head_dim = getattr(attention, family.head_dim)
        heads = features(model.get_submodule(output))[1] // head_dim
        keys = features(attention.get_submodule(family.key or family.query))[0] // head_dim
        yield AttentionLayer(
            attention=name,
            output=output,
            heads=heads,
            kv_heads=(keys - heads) // 2 if family.fused else keys,
            head_dim=head_dim,
        )


def slice_heads(model: Any, family: Family, kept: Sequence[Sequence[int]]) -> None:
    """Remove all but some heads from a model, in place.

    :param model: the model, not pruned; on the meta device nothing is computed.
    :param family: its architecture.
    :param kept: for each attention module the indices of the query heads to keep, in rising order.
    :raises ValueError: for indices that do not fit the model.
    """
    layers = list(attention_layers(model, family))
    check_kept(layers, kept)
    for path, module in smaller_modules(model, family, layers, kept).items():
        model.set_submodule(path, module)
    set_sizes(model, family, layers, kept)


def check_kept(layers: Sequence[AttentionLayer], kept: Any) -> None:
    """Raise ``ValueError`` unless ``kept`` is a list of rising head indices for each layer."""

    def fits(keep: Any, layer: AttentionLayer) -> bool:
        plain = isinstance(keep, list) and all(type(head) is int for head in keep)
        return plain and keep == sorted(set(keep) & set(range(layer.heads)))

    if not isinstance(kept, list) or len(kept) != len(layers) or not all(map(fits, kept, layers)):
        raise ValueError(
            "kept_heads in config.json must list, for each of the model's "
            f"{len(layers)} layers, the indices of its kept heads in rising order"
        )


@dataclass(frozen=True)
class HeadSlice:
    """The rows or columns of a module that belong to the kept heads of its attention layer.

    :param path: path of the module in the model.
    :param module: the module.
    :param axis: 0 if heads are outputs (rows) of the module, 1 if they are its inputs (columns).
    :param kept: indices of the kept rows or columns, in rising order.
    :param projection: whether the module multiplies by a matrix; otherwise it is a norm with one
        row per head.
    """

    path: str
    module: nn.Module
    axis: int
    kept: list[int]
    projection: bool = True


def head_slices(
    model: nn.Module, family: Family, layer: AttentionLayer, keep: Sequence[int]
) -> Iterator[HeadSlice]:
    """Yield every module of an attention layer whose size depends on its heads.

    The first one is the output projection, which consumes the heads' outputs. The others produce
    the heads: the query, key and value projections, the family's further projections, and its
    norms with one row per head, as far as the model has them. A key/value head is kept if at least
    one of its query heads is. A layer that keeps no head has no producers.

    :param model: the model, not pruned.
    :param family: its architecture.
    :param layer: the attention layer.
    :param keep: indices of the kept query heads, in rising order.
    """
    output = model.get_submodule(layer.output)
    yield HeadSlice(layer.output, output, 1, _indices(keep, layer.head_dim))
    if not keep:
        return
    attention = model.get_submodule(layer.attention)
    kept = {"heads": list(keep), "kv_heads": list(layer.kv_counts(keep))}
    norms = {part: kept[which] for part, which in family.per_head}
    for part, rows in (_projection_rows(family, layer, keep) | norms).items():
        if hasattr(attention, part):
            path, module = f"{layer.attention}.{part}", attention.get_submodule(part)
            yield HeadSlice(path, module, 0, rows, part not in norms)


def _projection_rows(
    family: Family, layer: AttentionLayer, keep: Sequence[int]
) -> dict[str, list[int]]:
    """The kept output rows of each projection that produces heads, by its path."""
    query = _indices(keep, layer.head_dim)
    if family.interleaved:
        return {family.query: _indices(keep, 3 * layer.head_dim)}
    key_value = _indices(layer.kv_counts(keep), layer.head_dim)
    if not family.fused:
        rows = {family.query: query, family.key: key_value, family.value: key_value}
        return rows | dict.fromkeys(family.more, query)
    key_start = layer.heads * layer.head_dim
    value_start = key_start + layer.kv_heads * layer.head_dim
    keys, values = ([start + row for row in key_value] for start in (key_start, value_start))
    return {family.query: query + keys + values}


def _indices(heads: Iterable[int], width: int) -> list[int]:
    """The indices of the rows or columns of some heads, ``width`` each."""
    return [head * width + i for head in heads for i in range(width)]


def features(module: Any) -> tuple[int, int]:
    """The numbers of outputs and inputs of a projection; for a norm, the shape of its weight."""
    if isinstance(module, Conv1D):
        return module.nf, module.nx
    if not hasattr(module, "out_features"):
        return len(module.weight), module.weight[0].numel()
    return module.out_features, module.in_features


def smaller_modules(
    model: nn.Module,
    family: Family,
    layers: Sequence[AttentionLayer],
    kept: Sequence[Sequence[int]],
) -> dict[str, nn.Module]:
    """Build the sliced modules of all layers that lose heads; the model itself is not changed.

    :param model: the model, not pruned.
    :param family: its architecture.
    :param layers: its attention layers.
    :param kept: for each of them the indices of the query heads to keep, in rising order.
    :returns: new modules by the paths of the modules that they replace.
    """
    new = dict[str, nn.Module]()
    for layer, keep in zip(layers, kept, strict=True):
        if len(keep) == layer.heads:
            continue
        for part in head_slices(model, family, layer, keep):
            new[part.path] = sliced(part.module, part.axis, part.kept)
        if not keep:
            if type(new[layer.output]) is nn.Linear:
                new[layer.output].__class__ = LinearWithoutInputs
            own = {family.output: new.pop(layer.output)} if family.output_inside else {}
            attention = model.get_submodule(layer.attention)
            new[layer.attention] = EmptyAttention(own, getattr(attention, "layer_idx", None))
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
    memo: dict[int, Any] = {id(weight): _selected(weight, stored_axis, index)}
    bias: Any = getattr(module, "bias", None)
    if axis == 0 and bias is not None:
        memo[id(bias)] = _selected(bias, 0, index)
    new: Any = copy.deepcopy(module, memo)
    names = ("nf", "nx") if isinstance(module, Conv1D) else ("out_features", "in_features")
    if hasattr(new, names[axis]):
        setattr(new, names[axis], len(kept))
    smaller: nn.Module = new
    return smaller


def _selected(parameter: Tensor, axis: int, index: Tensor) -> nn.Parameter:
    return nn.Parameter(parameter.detach().index_select(axis, index), parameter.requires_grad)


def set_sizes(
    model: Any,
    family: Family,
    layers: Sequence[AttentionLayer],
    kept: Sequence[Sequence[int]],
) -> None:
    """Set the attributes that the attention code of sliced layers reads besides the weights.

    :param model: the sliced model.
    :param family: its architecture.
    :param layers: its attention layers, as they were before slicing.
    :param kept: for each of them the indices of the kept query heads, in rising order.
    """
    for layer, keep in zip(layers, kept, strict=True):
        if 0 < len(keep) < layer.heads:
            set_layer_sizes(model, family, layer, keep)


def set_layer_sizes(model: Any, family: Family, layer: AttentionLayer, keep: Sequence[int]) -> None:
    """Set the attributes that the attention code of one sliced layer reads besides the weights.

    :param model: the sliced model.
    :param family: its architecture.
    :param layer: the attention layer, as it was before slicing.
    :param keep: indices of its kept query heads, at least one, in rising order.
    """
    attention: Any = model.get_submodule(layer.attention)
    counts = list(layer.kv_counts(keep).values())
    sizes = {"heads": len(keep), "kv_heads": len(counts), "width": len(keep) * layer.head_dim}
    own = dict[str, int]()
    for name, what in family.attributes:
        if name.startswith("config."):
            own[name[7:]] = sizes[what]
        else:
            setattr(attention, name, sizes[what])
    ragged = len(set(counts)) > 1
    if layer.kv_heads < layer.heads:
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


class LinearWithoutInputs(nn.Linear):
    """The output projection of a layer without heads, of which only the bias has any effect.

    It is a subclass because dynamic quantisation converts exactly the type ``nn.Linear`` and fails
    on a layer without inputs.
    """


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
        projection: Any = next(self.children(), None)
        width = 0 if projection is None else features(projection)[0]
        output = hidden_states.new_zeros(*hidden_states.shape[:-1], width)
        bias = None if projection is None else projection.bias
        return (output if bias is None else output + bias), None


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
    """Make a model class that is sliced to ``config.kept_heads`` before its weights are loaded.

    :param stock: the class in transformers; the new class has its name, since saved configs refer
        to a class by name.
    :param family: its architecture.
    """

    class Pruned(stock):  # type: ignore[misc]
        def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
            # Only other programs read it; if set, config.num_attention_heads raises an error.
            config.per_layer_config = None
            super().__init__(config, *args, **kwargs)
            slice_heads(self, family, config.kept_heads)

    Pruned.__name__ = Pruned.__qualname__ = stock.__name__
    Pruned.__doc__ = stock.__doc__
    return Pruned
