"""Find the removable units of a model, and assign a gene to each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from sos_deap.errors import InputError, unknown
from sos_deap.files.chromosome_file import UNITS
from sos_deap.models.families import FALLBACK_FAMILIES, FAMILIES
from sos_deap.models.family import Family
from sos_deap.models.genes import CHANNEL_BLOCKS, KINDS, GeneMap, Part
from sos_deap.models.sites import ATTENTION, EXPERTS, FEED_FORWARD, Site, find_sites

ChannelOrder = Sequence[Sequence[int]]


def gene_map(
    model: nn.Module,
    genes: str = "heads",
    channel_blocks: int = CHANNEL_BLOCKS,
    channel_order: ChannelOrder | None = None,
) -> GeneMap:
    """Find the removable units of a transformers model, and assign a gene to each.

    :param model: any model class, with or without a task head, of an architecture in
        :data:`sos_deap.models.families.FAMILIES` or one whose modules have the names of Llama's or
        BART's.
    :param genes: what the genes stand for, joined by ``+``: ``heads`` (a query head each),
        ``groups`` (a key/value head with its query heads), ``channels`` (a block of a layer's
        feed-forward channels), ``experts`` (an expert of a mixture), ``attention`` and ``ffn`` (a
        whole sub-layer), or ``layers`` (both sub-layers).
    :param channel_blocks: number of genes of kind ``channels`` in each layer.
    :param channel_order: for each feed-forward module its channels by decreasing importance, which
        are cut into blocks in that order; default: in the order of the model's weights.
        :func:`sos_deap.models.importance.channel_order` measures it.
    :returns: the gene map; its ``len()`` is the number of genes.
    :raises InputError: if no attention module is found, if the model is already pruned, for unknown
        or overlapping kinds of genes or kinds that the architecture does not have, and for blocks
        or an order that do not fit the model.
    """
    kinds = checked_kinds(genes)
    family, sites = _family_and_sites(model)
    _check_kinds(model, kinds, {site.kind for site in sites})
    layers = list(dict.fromkeys(site.block for site in sites))
    order = _checked_order(sites, channel_order) if "channels" in kinds else None
    if order is not None:
        _check_blocks(sites, channel_blocks)
    parts, gene_of, start = list[Part](), list[tuple[int, ...]](), 0
    orders = iter(order or ())
    for site in sites:
        kind = next((kind for kind in kinds if site.kind in KINDS[kind][0]), None)
        own = next(orders, None) if site.kind == FEED_FORWARD else None
        layer = layers.index(site.block)
        if kind is None:
            gene_of.append((-1,) * site.units)
            continue
        if kind == "layers" and parts and parts[-1].layer == layer:
            gene_of.append((start - 1,) * site.units)
            continue
        offsets = _offsets(site, kind, channel_blocks, own)
        gene_of.append(tuple(start + offset for offset in offsets))
        parts.append(Part(layer, kind, max(offsets) + 1))
        start += parts[-1].size
    return GeneMap(
        family, sites, "+".join(kinds), tuple(parts), tuple(gene_of), channel_blocks, order
    )


def head_map(model: nn.Module, unit: str = "head") -> GeneMap:
    """Find the attention heads of a transformers model: the :func:`gene_map` of heads alone.

    :param model: a model as for :func:`gene_map`.
    :param unit: ``"head"`` for one gene per query head; ``"group"`` for one gene per key/value
        head, which stands for all query heads that share it.
    :raises InputError: as :func:`gene_map` does, and for an unknown unit.
    """
    if unit not in UNITS:
        raise unknown("unit", unit, UNITS)
    return gene_map(model, UNITS[unit])


def checked_kinds(genes: str) -> list[str]:
    """Return the kinds of genes that a text names, in the order of :data:`KINDS`.

    :param genes: kinds joined by ``+``.
    :raises InputError: for an unknown kind, and for two kinds that stand for the same units.
    """
    given = [kind.strip() for kind in genes.split("+")]
    for kind in given:
        if kind not in KINDS:
            raise unknown("kind of genes", kind, KINDS)
    for i, kind in enumerate(given):
        for other in given[:i]:
            if set(KINDS[kind][0]) & set(KINDS[other][0]):
                raise InputError(
                    f"the genes {other} and {kind} overlap: each unit belongs to one gene at most; "
                    "join kinds of attention genes (heads, groups, attention) with kinds of "
                    "feed-forward genes (channels, ffn), or give layers alone"
                )
    return [kind for kind in KINDS if kind in given]


def _family_and_sites(model: nn.Module) -> tuple[Family, tuple[Site, ...]]:
    config = getattr(model, "config", None)
    if getattr(config, "kept_heads", None) is not None:
        raise InputError("the model is already pruned: prune the original, with all genes at once")
    kind = getattr(config, "model_type", type(model).__name__)
    family = FAMILIES.get(kind)
    for candidate in [family] if family else FALLBACK_FAMILIES:
        if sites := _sites(model, candidate):
            return candidate, sites
    if family is None:
        raise unknown("architecture", kind, FAMILIES)
    raise InputError(
        f"no attention layer of the {kind} architecture in this {type(model).__name__}: "
        f"expected modules named ...{family.block}.{family.attention[0]}"
    )


def _sites(model: nn.Module, family: Family) -> tuple[Site, ...]:
    try:
        return tuple(find_sites(model, family))
    except AttributeError:  # modules with these names and another structure
        return ()


def _check_kinds(model: nn.Module, kinds: Iterable[str], found: set[str]) -> None:
    """Raise :class:`InputError` for a kind of genes without a site.

    :param model: the model.
    :param kinds: the kinds of genes.
    :param found: the kinds of the model's sites.
    """

    def exists(kind: str) -> bool:
        wanted = set(KINDS[kind][0])
        return bool(wanted & found) and not (kind == "layers" and found == {ATTENTION})

    for kind in kinds:
        if not exists(kind):
            name = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
            what = "experts" if kind == "experts" else "feed-forward"
            if kind == "channels" and EXPERTS in found:
                why = "its feed-forward is a mixture of experts"
            else:
                why = (
                    "the table of architectures (sos_deap/models/families.py) has no row for its "
                    f"{what}"
                )
            *others, last = filter(exists, KINDS)
            raise InputError(
                f"a {name} model has no genes of kind {kind}: {why}; use the genes "
                f"{', '.join(others)} or {last}"
            )


def _check_blocks(sites: Sequence[Site], blocks: int) -> None:
    least = min(site.units for site in sites if site.kind == FEED_FORWARD)
    if not 1 <= blocks <= least:
        raise InputError(
            f"channel_blocks is {blocks}: give a number from 1 to {least}, the channels of a "
            "feed-forward layer"
        )


def _checked_order(
    sites: Sequence[Site], order: ChannelOrder | None
) -> tuple[tuple[int, ...], ...]:
    counts = [site.units for site in sites if site.kind == FEED_FORWARD]
    if order is None:
        return tuple(tuple(range(count)) for count in counts)
    if len(order) != len(counts) or any(
        sorted(channels) != list(range(count))
        for channels, count in zip(order, counts, strict=True)
    ):
        raise InputError(
            "the channel_order must list, for each of the model's "
            f"{len(counts)} feed-forward layers, all its channels once"
        )
    return tuple(map(tuple, order))


def _offsets(
    site: Site, kind: str, channel_blocks: int, order: Sequence[int] | None
) -> Sequence[int]:
    """The index of each unit's gene within the site."""
    if kind in ("heads", "experts"):
        return range(site.units)
    if kind == "groups":
        return [unit * site.groups // site.units for unit in range(site.units)]
    if kind != "channels":
        return [0] * site.units
    assert order is not None
    offsets = [0] * site.units
    for rank, channel in enumerate(order):
        offsets[channel] = rank * channel_blocks // site.units
    return offsets
