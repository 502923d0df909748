"""Repairs: decorators that make the individuals feasible that an operator returns, in place."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from sos_deap.errors import InputError
from sos_deap.search.chromosome import sparsity, within
from sos_deap.search.prior import drawn
from sos_deap.search.space import Part, Space


def limit_sparsity(
    max_sparsity: float,
    measure: Callable[[Sequence[int]], float] = sparsity,
    weights: Sequence[float] | None = None,
    costs: Sequence[float] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator for ``toolbox.decorate`` that keeps an operator's children feasible.

    In a child above the maximum sparsity, genes drawn at random among the removed ones are
    restored.

    :param max_sparsity: largest share removed, from 0 to 1.
    :param measure: function from genes to the share that they remove; it must not grow when a gene
        is restored.
    :param weights: for each gene, a removal weight w from 0 to below 2; removed genes are restored
        with weight 2 - w. Default: equal weights.
    :param costs: for each gene, an estimate of the share that it removes. Genes are restored in
        steps: at each step no more than the excess requires if all of them cost as much as the
        dearest removed one. Default: the mean cost of the removed genes is used instead.
    :returns: the decorator, for ``individual``, ``mate`` and ``mutate``.
    """

    def restore(child: Any) -> None:
        while not within(share := measure(child), max_sparsity):
            removed = [i for i, gene in enumerate(child) if not gene]
            # The exact number if all genes cost the same.
            cost = share / len(removed)
            if costs is not None:
                cost = max(costs[i] for i in removed) or cost
            count = min(len(removed), max(1, math.ceil((share - max_sparsity) / cost - 1e-9)))
            if weights is None:
                restored = random.sample(removed, count)
            else:
                restored = drawn(removed, [2 - weight for weight in weights], count)
            for i in restored:
                child[i] = 1

    return _repaired_by(restore)


def uniform_layers(
    parts: Sequence[Part],
    counts: Mapping[str, Sequence[int]],
    fits: Callable[[Sequence[int]], bool] = lambda genes: True,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator for ``toolbox.decorate`` that keeps equally many genes in every layer.

    For each kind of genes, the number is one of the two permitted counts around the mean over its
    parts, drawn so that its expectation is that mean. Within a part, the genes to remove or to
    restore are drawn at random.

    :param parts: the parts of a chromosome, of which those of one kind have the same size.
    :param counts: for each kind of genes, the numbers of them that a part may keep. Kinds that it
        lacks are not changed.
    :param fits: whether genes are within the maximum sparsity. If they are not, kinds drawn at
        random keep their next larger count. Default: all genes fit.
    :returns: the decorator, for ``mate`` and ``mutate``.
    :raises InputError: if parts of one kind have different sizes.
    """
    spans: dict[str, list[range]] = {kind: [] for kind in counts}
    ends = accumulate(part.size for part in parts)
    for part, end in zip(parts, ends, strict=True):
        if part.kind in spans:
            spans[part.kind].append(range(end - part.size, end))
    for kind, ranges in spans.items():
        if len(sizes := {len(span) for span in ranges}) > 1:
            raise InputError(
                f"parts of kind {kind} have {', '.join(map(str, sorted(sizes)))} genes: layers of "
                "different sizes cannot keep equally many"
            )

    def even_out(child: Any) -> None:
        kept = {
            kind: _permitted_count(child, ranges, sorted(counts[kind]))
            for kind, ranges in spans.items()
            if ranges
        }
        for kind, count in kept.items():
            _keep(child, spans[kind], count)
        while not fits(child):
            larger = {kind: [n for n in counts[kind] if n > kept[kind]] for kind in kept}
            if not any(larger.values()):
                return
            kind = random.choice([kind for kind in kept if larger[kind]])
            kept[kind] = min(larger[kind])
            _keep(child, spans[kind], kept[kind])

    return _repaired_by(even_out)


def uniform_within(
    space: Space, counts: Mapping[str, Sequence[int]]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return :func:`uniform_layers` for the counts that the maximum sparsity of a space permits.

    :param space: the space.
    :param counts: for each kind, the numbers of genes that a part may keep.
    :returns: the decorator, for ``mate`` and ``mutate``.
    :raises InputError: if the maximum sparsity permits no count below the size of the parts.
    """

    def fits(genes: Sequence[int]) -> bool:
        return within(space.sparsity(genes), space.max_sparsity)

    def keeping(kind: str, count: int) -> list[int]:
        pairs = zip(space.parts, space.spans, strict=True)
        return [
            int(part.kind != kind or gene - span[0] < count)
            for part, span in pairs
            for gene in span
        ]

    feasible = {
        kind: [count for count in permitted if fits(keeping(kind, count))]
        for kind, permitted in counts.items()
    }
    sizes = {part.kind: part.size for part in space.parts}
    if all(set(feasible[kind]) <= {sizes[kind]} for kind in counts):
        possible = "; ".join(
            f"{', '.join(str(n) for n in permitted if n < sizes[kind])} of {sizes[kind]} {kind}"
            for kind, permitted in counts.items()
        )
        raise InputError(
            f"with max_sparsity {space.max_sparsity} a uniform layer keeps all its genes: with a "
            f"larger max_sparsity it can keep {possible}; give one, or another layout"
        )
    counts = {kind: permitted or [sizes[kind]] for kind, permitted in feasible.items()}
    return uniform_layers(space.parts, counts, fits)


def _permitted_count(child: Sequence[int], ranges: Sequence[range], counts: Sequence[int]) -> int:
    """Return one of the sorted counts next to the mean number of kept genes in a part."""
    genes = [child[i] for span in ranges for i in span]
    mean = sum(genes) / len(genes) * len(ranges[0])
    below = max((count for count in counts if count <= mean), default=counts[0])
    above = min((count for count in counts if count >= mean), default=counts[-1])
    return above if random.random() * (above - below) < mean - below else below


def _keep(child: Any, ranges: Sequence[range], count: int) -> None:
    """Remove or restore random genes, in place, so that each part keeps ``count`` of them."""
    for span in ranges:
        removed, kept = ([i for i in span if bool(child[i]) == gene] for gene in (False, True))
        for i in random.sample(kept, max(0, len(kept) - count)):
            child[i] = 0
        for i in random.sample(removed, max(0, count - len(kept))):
            child[i] = 1


def _repaired_by(
    repair: Callable[[Any], None],
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that repairs, in place, every individual that an operator returns."""

    def decorate(operator: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(operator)
        def feasible(*individuals: Any, **parameters: Any) -> Any:
            children = operator(*individuals, **parameters)
            for child in children:
                repair(child)
            return children

        return feasible

    return decorate
