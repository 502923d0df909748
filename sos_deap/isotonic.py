"""Isotonic regression: the monotone sequence that is nearest to noisy values."""

from __future__ import annotations

from collections.abc import Iterable


def falling(values: Iterable[float]) -> list[float]:
    """Return the non-increasing sequence nearest to the values, in least squares.

    Computed by pool adjacent violators (Barlow et al., 1972).
    """
    pools: list[tuple[float, int]] = []  # mean and number of neighbouring values
    for value in values:
        pools.append((value, 1))
        while len(pools) > 1 and pools[-2][0] < pools[-1][0]:
            (last, n), (before, m) = pools.pop(), pools.pop()
            pools.append(((last * n + before * m) / (n + m), n + m))
    return [mean for mean, count in pools for _ in range(count)]
