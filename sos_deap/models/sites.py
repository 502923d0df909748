"""The sites of a model: where heads, channels and experts are, by the row of its architecture.

A site is one attention module, one feed-forward module or one mixture of experts: the place where
removable units lie side by side. Query heads and channels enter a consumer projection; experts are
chosen by a router.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
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
        attention = [path for path in family.attention if has_module(layer, path)]
        found += [_attention_site(layer, family, block, path) for path in attention]
        forward = family.feed_forward
        if attention and forward is not None:  # other modules may have the names of a layer
            found += [
                _feed_forward_site(layer, forward, block, path)
                for path in forward.modules
                if has_module(layer, _joined(path, forward.consumer))
            ]
        experts = family.experts
        if attention and experts is not None:
            paths = [_joined(experts.module, path) for path in (experts.router, experts.experts)]
            # Some layers may have a feed-forward instead.
            if all(has_module(layer, path) for path in paths):
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


def has_module(module: nn.Module, path: str) -> bool:
    """Whether a module has a module at a path.

    :param module: the module.
    :param path: names joined by dots.
    """
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True


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
