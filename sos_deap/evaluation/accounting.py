"""What evaluations cost: counts, operations and seconds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(slots=True)
class Accounting:
    """What the evaluations have cost so far.

    ``evaluations`` asked for = ``forward_evaluations`` (computed, each chromosome once) +
    ``cache_hits`` (computed before) + ``store_hits`` (computed by another run, read from the store)
    + ``infeasible`` (over the maximum sparsity; not computed). ``tokens`` counts the tokens of the
    examples that the computed sub-models were scored on (and those which the dense model reads
    beforehand, for a task that compares with it); ``store_tokens`` counts those of the store hits.
    ``layers`` counts the attention layers of the computed sub-models, each on all calibration
    examples; one on some of the examples counts as their share of all. ``layers_computed`` counts
    those that were run: fewer where sub-models share layers, 0 where sub-models went through in a
    masked batch. ``flops`` are the operations of the passes, two for a multiplication with its
    addition; ``None`` for a task that generates text, and for a user's own metric.
    """

    evaluations: int = 0
    forward_evaluations: int = 0
    cache_hits: int = 0
    store_hits: int = 0
    infeasible: int = 0
    non_finite: int = 0
    out_of_memory: int = 0
    tokens: int = 0
    store_tokens: int = 0
    layers: float = 0
    layers_computed: float = 0
    flops: float | None = 0.0
    seconds_forward: float = 0.0
    seconds_store: float = 0.0
    seconds_outside: float = 0.0

    def asdict(self) -> dict[str, Any]:
        """The counts by name."""
        return asdict(self)
