"""What evaluations cost: counts, operations and seconds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(slots=True)
class Accounting:
    """What the evaluations have cost so far.

    ``evaluations`` asked for = ``forward_evaluations`` (computed, each chromosome once) +
    ``cache_hits`` (computed before) + ``store_hits`` (computed by another run, read from the store)
    + ``infeasible`` (over the maximum sparsity; not computed). ``dropped`` were computed in part,
    in a race. ``tokens`` are those that the computed sub-models are worth (and that the
    dense model reads beforehand, for a task that compares with it), and ``layers`` their
    layers; ``store_tokens`` are the same of the store's. ``layers_computed`` is less than
    ``layers`` where sub-models share some, 0 where they went through in a batch. ``flops`` are
    those of the passes, two for a multiplication with its addition; ``None`` for a task that
    generates, or a user's own.
    """

    evaluations: int = 0
    forward_evaluations: int = 0
    cache_hits: int = 0
    store_hits: int = 0
    infeasible: int = 0
    dropped: int = 0
    non_finite: int = 0
    out_of_memory: int = 0
    tokens: int = 0
    store_tokens: int = 0
    layers: int = 0
    layers_computed: int = 0
    flops: float | None = 0.0
    seconds_forward: float = 0.0
    seconds_store: float = 0.0
    seconds_outside: float = 0.0

    def asdict(self) -> dict[str, Any]:
        """The counts by name."""
        return asdict(self)
