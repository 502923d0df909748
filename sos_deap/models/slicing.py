"""Attention with heads cut out: sliced projections, layers without heads, unequal groups.

Needs only torch and transformers: when sos_deap saves a pruned model, a copy of this file goes
beside the weights, with that model's classes at its end, so that transformers can load the folder
(``trust_remote_code=True``) where sos_deap is not installed.
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
    """Where one architecture keeps its attention heads.

    :param block: path of a layer, with ``*`` for its number; what stands before it is a prefix.
    :param attention: path in the layer of each module whose ``forward`` computes attention.
    :param query: path in that module of the query projection.
    :param output: the same for the output projection, whose input is the heads' outputs side by
        side; a leading ``../`` leads out of the attention module.
    :param key: the same for the keys; empty where the query projection is fused with them.
    :param value: the same for the values.
    :param interleaved: whether a fused projection gives each head's query, key and value in turn;
        else it gives all the queries, then all the keys, then all the values.
    :param more: further projections whose outputs belong to the query heads.
    :param per_head: modules whose weight has a row for each head, such as norms with a scale of
        their own for each, and which heads: ``"heads"`` or ``"kv_heads"``. A model may lack them.
    :param head_dim: attribute of the attention module that holds the width of a head.
    :param attributes: attributes of the attention module that ``forward`` reads besides the
        weights, each with what it counts: ``"heads"``, ``"kv_heads"`` or ``"width"``, which is
        heads * head_dim. ``config.`` before a name means the module's view of the config.
    :param requires: values of the config for which the row tells how to slice.
    :param unsliceable: why slicing would change what the kept heads compute; masking still works.
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
        """Whether one projection makes queries, keys and values."""
        return not self.key

    @property
    def output_inside(self) -> bool:
        """Whether the attention module applies the output projection itself."""
        return not self.output.startswith("../")


@dataclass(frozen=True)
class AttentionLayer:
    """One attention module; a decoder layer with cross-attention has two.

    :param attention: the attention module's path in the model.
    :param output: the output projection's path in the model.
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
        """The key/value heads that the kept query heads use, each with how many use it."""
        return dict(sorted(Counter(head * self.kv_heads // self.heads for head in keep).items()))


def attention_layers(model: nn.Module, family: Family) -> Iterator[AttentionLayer]:
    """Find the attention modules of a full-size model, in the order of its layers."""
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
    """Cut a full-size model down to its kept heads, in place.

    :param model: the model; on the meta device nothing is computed.
    :param family: the names of its parts.
    :param kept: the numbers of the query heads to keep, in rising order, for each attention module.
    :raises ValueError: for numbers that do not fit the model.
    """
    layers = list(attention_layers(model, family))
    check_kept(layers, kept)
    for path, module in smaller_modules(model, family, layers, kept).items():
        model.set_submodule(path, module)
    finish(model, family, layers, kept)


def check_kept(layers: Sequence[AttentionLayer], kept: Any) -> None:
    """Raise ``ValueError`` unless ``kept`` lists rising head numbers for every layer."""

    def fits(keep: Any, layer: AttentionLayer) -> bool:
        plain = isinstance(keep, list) and all(type(head) is int for head in keep)
        return plain and keep == sorted(set(keep) & set(range(layer.heads)))

    if not isinstance(kept, list) or len(kept) != len(layers) or not all(map(fits, kept, layers)):
        raise ValueError(
            "kept_heads in config.json must list, for each of the model's "
            f"{len(layers)} layers, the numbers of its kept heads in rising order"
        )


def smaller_modules(
    model: nn.Module,
    family: Family,
    layers: Sequence[AttentionLayer],
    kept: Sequence[Sequence[int]],
) -> dict[str, nn.Module]:
    """New modules, by path, for all that gets smaller; the model itself is not touched."""
    new = dict[str, nn.Module]()
    for layer, keep in zip(layers, kept, strict=True):
        if len(keep) == layer.heads:
            continue
        attention = model.get_submodule(layer.attention)
        output: Any = model.get_submodule(layer.output)
        narrow = sliced(output, 1, _rows(keep, layer.head_dim))
        if keep:
            for part, rows in rows_to_keep(family, layer, keep).items():
                if hasattr(attention, part):
                    module = attention.get_submodule(part)
                    new[f"{layer.attention}.{part}"] = sliced(module, 0, rows)
        else:
            if type(narrow) is nn.Linear:
                narrow.__class__ = LinearWithoutInputs
            own = {family.output: narrow} if family.output_inside else {}
            new[layer.attention] = EmptyAttention(own, getattr(attention, "layer_idx", None))
        if keep or not family.output_inside:
            new[layer.output] = narrow
    return new


def finish(
    model: Any,
    family: Family,
    layers: Sequence[AttentionLayer],
    kept: Sequence[Sequence[int]],
) -> None:
    """Set what the attention code of the sliced layers reads besides the weights."""
    pairs = [(layer, keep) for layer, keep in zip(layers, kept, strict=True) if keep]
    for layer, keep in pairs:
        if len(keep) < layer.heads:
            set_sizes(model, family, layer, keep)


def set_sizes(model: Any, family: Family, layer: AttentionLayer, keep: Sequence[int]) -> None:
    """The same for one layer."""
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
    """A layer's view of the model's config, with values of its own; all else stays shared.

    :param config: the model's config.
    :param own: the layer's values.
    :param ragged: the layer's numbers of query heads per key/value head, where they differ.
    """

    def __init__(self, config: Any, own: dict[str, Any], ragged: list[int] | None) -> None:
        self.__dict__.update(own, shared=config, ragged=ragged)

    @property
    def _attn_implementation(self) -> str:
        """The model's, whichever is set at the time, for groups of the layer's sizes."""
        inner: str = self.shared._attn_implementation
        return inner if self.ragged is None else _ragged(inner)

    def __getattr__(self, name: str) -> Any:
        if name == "shared":  # not there yet while this is being copied
            raise AttributeError(name)
        return getattr(self.shared, name)


class LinearWithoutInputs(nn.Linear):
    """The output projection of a layer without heads: its bias.

    A class of its own, as dynamic quantisation cannot convert it and looks for ``nn.Linear`` alone.
    """


class EmptyAttention(nn.Module):
    """The attention of a layer that lost all its heads: nothing, or its output projection's bias.

    :param output: the output projection by its name, with no inputs left; empty where it lies
        outside the attention module and still follows. Its weight is stored, empty as it is, for
        the stock class to see that it does not fit.
    :param layer: the layer's place in the key/value cache; ``None`` where there is none.
    """

    def __init__(self, output: dict[str, nn.Module], layer: int | None) -> None:
        super().__init__()
        self.layer_idx = layer
        for name, projection in output.items():
            self.add_module(name, projection)

    def forward(
        self, hidden_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Return ``(output, no attention weights)``, as the stock attention does."""
        cross = any(
            kwargs.get(name) is not None for name in ("key_value_states", "encoder_hidden_states")
        )
        for cache in (value for value in kwargs.values() if isinstance(value, Cache)):
            if self.layer_idx is not None and not cross:
                # The cache counts its tokens by what a layer stores: one number per token will do.
                own = getattr(cache, "self_attention_cache", cache)
                token = hidden_states.new_zeros(len(hidden_states), 1, hidden_states.shape[1], 1)
                own.update(token, token, self.layer_idx)
        projection: Any = next(self.children(), None)
        width = 0 if projection is None else features(projection)[0]
        output = hidden_states.new_zeros(*hidden_states.shape[:-1], width)
        bias = None if projection is None else projection.bias
        return (output if bias is None else output + bias), None


def projection_rows(
    family: Family, layer: AttentionLayer, keep: Sequence[int]
) -> dict[str, list[int]]:
    """The output rows to keep of each projection in an attention module."""
    query = _rows(keep, layer.head_dim)
    if family.interleaved:
        return {family.query: _rows(keep, 3 * layer.head_dim)}
    key_value = _rows(layer.kv_counts(keep), layer.head_dim)
    if not family.fused:
        rows = {family.query: query, family.key: key_value, family.value: key_value}
        return rows | dict.fromkeys(family.more, query)
    key_start = layer.heads * layer.head_dim
    value_start = key_start + layer.kv_heads * layer.head_dim
    keys, values = ([start + row for row in key_value] for start in (key_start, value_start))
    return {family.query: query + keys + values}


def rows_to_keep(
    family: Family, layer: AttentionLayer, keep: Sequence[int]
) -> dict[str, list[int]]:
    """The same, with the rows of the modules that have one for each head."""
    kept = {"heads": list(keep), "kv_heads": list(layer.kv_counts(keep))}
    own = {part: kept[which] for part, which in family.per_head}
    return projection_rows(family, layer, keep) | own


def _rows(heads: Iterable[int], width: int) -> list[int]:
    return [head * width + i for head in heads for i in range(width)]


def features(projection: Any) -> tuple[int, int]:
    """The numbers of outputs and inputs of a projection; of a norm the shape of its weight."""
    if isinstance(projection, Conv1D):
        return projection.nf, projection.nx
    if not hasattr(projection, "out_features"):
        return len(projection.weight), projection.weight[0].numel()
    return projection.out_features, projection.in_features


def sliced(projection: nn.Module, axis: int, rows: list[int]) -> nn.Module:
    """A copy of a projection with some of its outputs (axis 0) or inputs (axis 1).

    Of a norm with a row for each head: with some of these rows.
    """
    weight: Any = projection.weight
    index = torch.tensor(rows, dtype=torch.long, device=weight.device)
    stored_axis = 1 - axis if isinstance(projection, Conv1D) else axis  # Conv1D stores (in, out)
    memo: dict[int, Any] = {id(weight): _selected(weight, stored_axis, index)}
    bias: Any = getattr(projection, "bias", None)
    if axis == 0 and bias is not None:
        memo[id(bias)] = _selected(bias, 0, index)
    new: Any = copy.deepcopy(projection, memo)
    names = ("nf", "nx") if isinstance(projection, Conv1D) else ("out_features", "in_features")
    if hasattr(new, names[axis]):
        setattr(new, names[axis], len(rows))
    smaller: nn.Module = new
    return smaller


def _selected(parameter: Tensor, axis: int, index: Tensor) -> nn.Parameter:
    return nn.Parameter(parameter.detach().index_select(axis, index), parameter.requires_grad)


def _ragged(inner: str) -> str:
    """The name of an attention function that lets ``inner`` see equal groups."""
    name = f"ragged_{inner}"
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, functools.partial(_ragged_attention, inner))
    return name


def _ragged_attention(
    inner: str, module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> Any:
    """Attention with unequal numbers of query heads per key/value head.

    Shapes are (batch, heads, tokens, head_dim), as transformers' attention functions have them. The
    counts are plain integers: nothing to load, to move between devices or to initialise.
    """
    key, value = (_repeat_heads(states, module.config.ragged) for states in (key, value))
    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(inner, eager)
    return attend(module, query, key, value, *args, **kwargs)


def _repeat_heads(states: Tensor, counts: list[int]) -> Tensor:
    parts = [states[:, i : i + 1].expand(-1, n, -1, -1) for i, n in enumerate(counts)]
    return torch.cat(parts, dim=1)


def pruned_class(stock: type, family: Family) -> Any:
    """A model class that is sliced to ``config.kept_heads`` before its weights are loaded.

    It bears the stock class's name, which is what a saved config names.
    """

    class Pruned(stock):  # type: ignore[misc]
        def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
            # For readers of the folder only: a set one makes config.num_attention_heads raise.
            config.per_layer_config = None
            super().__init__(config, *args, **kwargs)
            slice_heads(self, family, config.kept_heads)

    Pruned.__name__ = Pruned.__qualname__ = stock.__name__
    Pruned.__doc__ = stock.__doc__
    return Pruned
