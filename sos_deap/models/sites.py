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

from sos_deap.models.family import Experts, Family, FeedForward

ATTENTION, FEED_FORWARD, EXPERTS = "attention", "ffn", "experts"


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

    @property
    def part(self) -> str:
        """Path of the layer, or of the module if this is in another list than the layers."""
        inside = f"{self.module}.".startswith(f"{self.block}.")
        return self.block if inside else self.module

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
        # Other modules may have the names of a layer.
        if forward is not None and (attention or family.hybrid):
            modules = (_resolved(block, path) for path in forward.modules)
            found += [
                _feed_forward_site(model, forward, block, module)
                for module in modules
                if has_module(model, _joined(module, forward.consumer))
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


def _feed_forward_site(model: nn.Module, forward: FeedForward, block: str, module: str) -> Site:
    consumer = _joined(module, forward.consumer)
    channels = features(model.get_submodule(consumer))[1]
    return Site(
        kind=FEED_FORWARD,
        block=block,
        module=module,
        consumer=consumer,
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


def _resolved(block: str, path: str) -> str:
    """The path in the model of a path in a layer."""
    parent, number = block, block.rpartition(".")[2]
    while path.startswith("../"):
        parent, path = parent.rpartition(".")[0], path[3:]
    return _joined(parent, path.replace("*", number))


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

    For the experts of a mixture, their number and that of the parameters of each; a list with one
    module per head has as many outputs as modules.
    """
    if isinstance(module, Conv1D):
        return module.nf, module.nx
    if isinstance(module, nn.ModuleList):
        return len(module), 0
    if not hasattr(module, "weight"):
        own = list(module.parameters(recurse=False))
        return len(own[0]), sum(parameter[0].numel() for parameter in own)
    if not hasattr(module, "out_features"):
        return len(module.weight), module.weight[0].numel()
    return module.out_features, module.in_features
