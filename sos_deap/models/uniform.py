"""The layout of pruned models that stock classes load: the same numbers of units in every layer."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from sos_deap.errors import InputError, first_line
from sos_deap.models.genes import GeneMap
from sos_deap.models.sites import EXPERTS, FEED_FORWARD, find_sites

Kept = list[list[int]]  # for each site the indices of the units that it keeps


def uniform_counts(model: PreTrainedModel, genes: GeneMap) -> dict[str, list[int]]:
    """Return the numbers of genes of each kind that every layer can keep in the uniform layout.

    Not all numbers are possible: some stock configs require a hidden size that is a multiple of the
    number of heads.

    :param model: the model, not pruned.
    :param genes: its gene map.
    :returns: for each kind numbers of genes per layer, in rising order; the last one is that of the
        dense model.
    :raises InputError: if the model's stock config cannot have fewer units.
    """
    if whole := set(genes.kinds) & {"attention", "ffn", "layers"}:
        raise InputError(
            f"the uniform layout keeps every sub-layer: the genes {sorted(whole)[0]} remove whole "
            "ones; use the genes heads, groups, channels or experts, or the layout sliced"
        )
    grouped = any(1 < site.groups < site.units for site in genes.attention)
    if grouped and "heads" in genes.kinds:
        raise InputError(
            "the uniform layout of a model with grouped-query attention needs whole groups: "
            "use the genes groups"
        )
    if "channels" in genes.kinds:
        _check_blocks(genes)
    counts = {kind: _counts(model, genes, kind) for kind in genes.kinds}
    if genes.removes_heads and genes.family.needs_dense_heads:
        raise InputError(
            f"the uniform layout cannot remove heads of a {model.config.model_type} model: its "
            "position bias or its norms depend on all heads of the dense model; use the layout "
            "sliced or zeroed"
        )
    return counts


def _check_blocks(genes: GeneMap) -> None:
    """Raise :class:`InputError` if equally many blocks can be different numbers of channels."""
    for site in genes.feed_forward:
        if site.units % genes.channel_blocks:
            raise InputError(
                f"the uniform layout needs blocks of equally many channels: {site.units} channels "
                f"cannot be divided into {genes.channel_blocks} blocks; use a channel_blocks that "
                f"divides {site.units}"
            )


def _counts(model: PreTrainedModel, genes: GeneMap, kind: str) -> list[int]:
    sizes = {part.size for part in genes.parts if part.kind == kind}
    if len(sizes) > 1:
        raise InputError(
            f"the uniform layout needs equally many {kind} in all layers, and this model's layers "
            "differ: use the layout sliced or zeroed"
        )
    size, counts, why = sizes.pop(), [], "each layer has one gene only"
    for count in range(1, size):
        chromosome = [
            int(part.kind != kind or gene < count)
            for part in genes.parts
            for gene in range(part.size)
        ]
        kept = genes.kept(chromosome)
        try:
            possible = uniform_config(model, genes, kept), kept
            counts.append(count)
        except InputError as error:
            why = str(error)
    if not counts:
        raise _not_uniform(model, kind, why)
    _check_shapes(model, genes, kind, *possible)
    return [*counts, size]


def uniform_config(model: PreTrainedModel, genes: GeneMap, kept: Kept) -> Any:
    """A copy of the model's config with the numbers of units that every layer keeps.

    :param model: the model, not pruned.
    :param genes: its gene map.
    :param kept: for each site the indices of the units that it keeps.
    :raises InputError: if the numbers differ between layers, or if the config class does not accept
        them.
    """
    config = copy.deepcopy(model.config)
    try:
        if genes.removes_heads:
            _set_heads(config, genes, kept)
        if "channels" in genes.kinds:
            _set_channels(config, genes, kept)
        if "experts" in genes.kinds:
            _set_experts(config, genes, kept)
        config.validate()
    except InputError:
        raise
    except Exception as error:  # config classes raise errors of many types
        why = first_line(error.__cause__ or error).rstrip(".")
        raise InputError(f"{why}: use another number or another layout") from error
    return config


def _set_heads(config: Any, genes: GeneMap, kept: Kept) -> None:
    attention = [
        (site, keep)
        for site, keep in zip(genes.sites, kept, strict=True)
        if site in genes.attention
    ]
    sizes = {
        (len(keep), *set(site.group_counts(keep).values()), len(site.group_counts(keep)))
        for site, keep in attention
    }
    size = min(sizes)
    if len(sizes) > 1 or len(size) != 3 or size[0] == 0:  # (heads, heads per group, groups)
        raise InputError(
            "the uniform layout needs equally many heads, at least one, in every layer and in "
            f"every group: the layers keep {', '.join(str(len(keep)) for _, keep in attention)}"
        )
    config.num_attention_heads, config.head_dim = size[0], genes.attention[0].width
    if hasattr(config, "num_key_value_heads"):
        config.num_key_value_heads = size[2]


def _set_channels(config: Any, genes: GeneMap, kept: Kept) -> None:
    count = _equal(genes.of_kind(FEED_FORWARD, kept), "feed-forward channels")
    forward = genes.family.feed_forward
    assert forward is not None
    if not forward.sizes:
        raise InputError("the model class computes the number of channels from other sizes")
    for name in forward.sizes:
        setattr(config, name, count)


def _set_experts(config: Any, genes: GeneMap, kept: Kept) -> None:
    count = _equal(genes.of_kind(EXPERTS, kept), "experts")
    experts = genes.family.experts
    assert experts is not None
    for name in experts.sizes:
        setattr(config, name, count)
    config.num_experts_per_tok = min(count, config.num_experts_per_tok)


def _equal(kept: Sequence[Sequence[int]], units: str) -> int:
    """Return the number of units of every layer; raise :class:`InputError` if they differ."""
    counts = list(map(len, kept))
    if len(set(counts)) > 1 or counts[0] == 0:
        raise InputError(
            f"the uniform layout needs equally many {units}, at least one, in every layer: the "
            f"layers keep {', '.join(map(str, counts))}"
        )
    return counts[0]


def _check_shapes(
    model: PreTrainedModel, genes: GeneMap, kind: str, config: Any, kept: Kept
) -> None:
    """Raise :class:`InputError` if the stock class computes other shapes from the config."""
    try:
        with torch.device("meta"):
            built = find_sites(type(model)(config), genes.family)
    except Exception as error:  # model classes raise errors of many types
        raise _not_uniform(model, kind, first_line(error)) from error
    for site, before, keep in zip(built, genes.sites, kept, strict=True):
        if (site.units, site.width) != (len(keep), before.width):
            raise _not_uniform(
                model, kind, "the model class computes the width of a head from their number"
            )


def _not_uniform(model: PreTrainedModel, kind: str, why: str) -> InputError:
    return InputError(
        f"the stock {model.config.model_type} config cannot have fewer {kind} ({why}): "
        "use the layout sliced or zeroed"
    )
