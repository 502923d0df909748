"""The genes of a run by layer and kind, from its ``result.json``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

#: What one gene of each kind stands for, in the plural.
UNITS = {
    "heads": "attention heads",
    "groups": "key/value groups",
    "channels": "blocks of feed-forward channels",
    "experts": "experts",
    "attention": "attention sub-layers",
    "ffn": "feed-forward sub-layers",
    "layers": "layers",
}


@dataclass(frozen=True)
class Part:
    """Consecutive genes of one kind, of one attention or feed-forward module.

    :param layer: number of the layer.
    :param kind: kind of the genes, normally a key of :data:`UNITS`.
    :param genes: the genes, 0 or 1; 1 keeps what the gene stands for.
    """

    layer: int
    kind: str
    genes: tuple[int, ...]

    @property
    def removed(self) -> list[int]:
        """The indices of the removed genes, counted within the part."""
        return [index for index, gene in enumerate(self.genes) if not gene]


def parts_of(search: Mapping[str, Any], chromosome: Sequence[int]) -> list[Part]:
    """Cut a chromosome into its parts.

    :param search: the ``search`` part of a ``result.json``, with ``parts``, or with
        ``genes_per_layer`` if an earlier version wrote it.
    :param chromosome: one 0/1 gene for each gene of all parts.
    :raises ValueError: if the numbers of genes differ.
    """
    rows = search.get("parts")
    if rows is None:  # earlier versions had genes of attention heads only
        sizes = enumerate(search["genes_per_layer"])
        rows = [{"layer": layer, "kind": "heads", "size": size} for layer, size in sizes]
    ends = list(accumulate(row["size"] for row in rows))
    if not ends or ends[-1] != len(chromosome) or min(row["size"] for row in rows) < 0:
        total = ends[-1] if ends else 0
        raise ValueError(f"{len(chromosome)} genes for parts of {total:,} genes")
    return [
        Part(row["layer"], row["kind"], tuple(chromosome[end - row["size"] : end]))
        for row, end in zip(rows, ends, strict=True)
    ]


def by_kind(parts: Sequence[Part]) -> dict[str, tuple[int, int]]:
    """Return for each kind of gene how many are removed, and how many there are."""
    counts: dict[str, tuple[int, int]] = {}
    for part in parts:
        removed, total = counts.get(part.kind, (0, 0))
        counts[part.kind] = removed + len(part.removed), total + len(part.genes)
    return counts


def unit(kind: str) -> str:
    """Return what the genes of a kind stand for, in the plural."""
    return UNITS.get(kind, kind)


def listed(parts: Sequence[Part]) -> str:
    """Return the genes of a model, such as ``"144 attention heads in 12 layers"``."""
    units = " and ".join(f"{total:,} {unit(kind)}" for kind, (_, total) in by_kind(parts).items())
    layers = len({part.layer for part in parts})
    return units if set(by_kind(parts)) == {"layers"} else f"{units} in {layers:,} layers"


def removal(parts: Sequence[Part]) -> str:
    """Return what is removed, such as ``"12 of 144 attention heads"``."""
    return " and ".join(
        f"{removed:,} of {total:,} {unit(kind)}"
        for kind, (removed, total) in by_kind(parts).items()
    )


def columns(parts: Sequence[Part]) -> Iterator[tuple[str, dict[int, Part]]]:
    """Yield the parts of each kind by layer, in the order in which the kinds first appear.

    A layer may have several parts of a kind, such as self-attention and cross-attention: the first
    parts of all layers are one column, the second parts another.

    :returns: kind, and part by layer.
    """
    found: dict[tuple[str, int], dict[int, Part]] = {}
    for part in parts:
        place = 0
        while part.layer in found.setdefault((part.kind, place), {}):
            place += 1
        found[part.kind, place][part.layer] = part
    kinds = list(by_kind(parts))
    for kind, place in sorted(found, key=lambda key: (kinds.index(key[0]), key[1])):
        yield kind, found[kind, place]
