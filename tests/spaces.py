"""Spaces for tests of searches without a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sos_deap.search.space import Part, Space


def heads(sizes: Sequence[int], share: float, **fields: Any) -> Space:
    """Return a space of layers with heads of equal costs."""
    parts = tuple(Part(layer, "heads", size) for layer, size in enumerate(sizes))
    return Space(parts, share, **fields)
