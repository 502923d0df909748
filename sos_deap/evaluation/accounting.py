"""The cost of evaluations: counts, operations and seconds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(slots=True)
class ForwardCost:
    """The cost of forward passes.

    :param seconds: wall-clock time of the process that waited for them.
    :param out_of_memory: how often memory ran out.
    :param layer_examples: attention layers run, each counted once per example.
    :param flops: floating-point operations, two for a multiplication with its addition; ``None``
        where they are not counted.
    """

    seconds: float = 0.0
    out_of_memory: int = 0
    layer_examples: int = 0
    flops: float | None = 0.0

    def since(self, before: ForwardCost) -> ForwardCost:
        """The difference to an earlier cost."""
        counted = self.flops is not None and before.flops is not None
        return ForwardCost(
            self.seconds - before.seconds,
            self.out_of_memory - before.out_of_memory,
            self.layer_examples - before.layer_examples,
            (self.flops or 0.0) - (before.flops or 0.0) if counted else None,
        )

    def add(self, more: ForwardCost) -> None:
        """Add another cost to this one."""
        counted = self.flops is not None and more.flops is not None
        self.seconds += more.seconds
        self.out_of_memory += more.out_of_memory
        self.layer_examples += more.layer_examples
        self.flops = (self.flops or 0.0) + (more.flops or 0.0) if counted else None

    def copy(self) -> ForwardCost:
        """A copy, which stays as it is when more is added to this cost."""
        return replace(self)

    def reset(self, before: ForwardCost) -> None:
        """Set this cost to an earlier one."""
        self.seconds, self.out_of_memory = before.seconds, before.out_of_memory
        self.layer_examples, self.flops = before.layer_examples, before.flops


@dataclass(slots=True)
class Accounting:
    """The cost of the evaluations so far.

    ``evaluations`` requested = ``forward_evaluations`` (computed, each chromosome once) +
    ``cache_hits`` (computed earlier in this search) + ``store_hits`` (computed by another run, read
    from the store) + ``infeasible`` (above the maximum sparsity; not computed). ``non_finite``
    counts metrics that are NaN or infinite. ``tokens`` counts the tokens of the examples that the
    computed sub-models were scored on, and those which the dense model reads beforehand for a task
    that compares with it; ``store_tokens`` counts those of the store hits. ``layers`` counts the
    attention layers of the computed sub-models, each on all calibration examples; one on some of
    the examples counts as their share of all.

    :param examples: calibration examples of the task.
    :param forward: the cost of the forward passes, which :class:`ForwardRunner` adds to.
    """

    examples: int
    evaluations: int = 0
    forward_evaluations: int = 0
    cache_hits: int = 0
    store_hits: int = 0
    infeasible: int = 0
    non_finite: int = 0
    tokens: int = 0
    store_tokens: int = 0
    layers: float = 0
    seconds_store: float = 0.0
    seconds_outside: float = 0.0
    forward: ForwardCost = field(default_factory=ForwardCost)

    @property
    def out_of_memory(self) -> int:
        """How often memory ran out in a forward pass, which was then repeated with less in it."""
        return self.forward.out_of_memory

    @property
    def layers_computed(self) -> float:
        """Attention layers that were run, each on all calibration examples.

        Fewer than ``layers`` where sub-models share layers; 0 where they were computed in masked
        batches.
        """
        return self.forward.layer_examples / self.examples

    @property
    def flops(self) -> float | None:
        """Floating-point operations of the forward passes, two for a multiply-add.

        ``None`` for a task that generates text, and for a user's own metric.
        """
        return self.forward.flops

    @property
    def seconds_forward(self) -> float:
        """Wall-clock seconds in forward passes."""
        return self.forward.seconds

    def asdict(self) -> dict[str, Any]:
        """The counts by name, without ``examples``."""
        return {name: getattr(self, name) for name in _COUNTS}


_COUNTS = (
    *("evaluations", "forward_evaluations", "cache_hits", "store_hits", "infeasible"),
    *("non_finite", "out_of_memory", "tokens", "store_tokens", "layers", "layers_computed"),
    *("flops", "seconds_forward", "seconds_store", "seconds_outside"),
)
