"""The interface between an evaluator and what computes its sub-models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

#: A task's sums over some examples: a row for each sub-model, or for each group of examples.
Sums = list[list[float]]

#: Sub-models (a byte 0 or 1 for each gene) with their sums.
Chunk = tuple[Sequence[bytes], Sums]

#: Computes the sums of sub-models over a slice of the task's examples; yields them in order, a
#: chunk at a time.
Compute = Callable[[Sequence[bytes], slice], Iterable[Chunk]]


class ComputeEngine(Protocol):
    """Workers that compute sub-models in place of the evaluator's own process."""

    def compute(self, pending: Sequence[bytes], part: slice) -> Iterable[Chunk]:
        """Compute the sums of sub-models; see :data:`Compute`."""

    def close(self, at_once: bool = False) -> None:
        """Release the workers, after their current work or at once."""
