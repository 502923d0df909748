"""What the evaluator needs of a task: a metric over examples, for many sub-models at once."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from sos_deap.errors import unknown


class Task(Protocol):
    """A metric over examples.

    A task scores some of its examples for several sub-models at once, as sums that add up over
    examples, and turns the sums of all examples into metrics.
    """

    @property
    def name(self) -> str:
        """The metric that counts, one of those in :meth:`metrics`."""

    @property
    def greater_is_better(self) -> bool:
        """Whether a larger value of that metric is a better one."""

    @property
    def seqlen(self) -> int:
        """Most tokens in an example."""

    @property
    def tokens(self) -> int:
        """Tokens in all examples together, padding left out."""

    @property
    def reference_tokens(self) -> int:
        """Tokens that the dense model had to read for the task to be made; 0 for most."""

    @property
    def one_pass(self) -> bool:
        """Whether the model reads each example once, from its embeddings to its output."""

    @property
    def shares_passes(self) -> bool:
        """Whether one forward pass can score several sub-models."""

    def __len__(self) -> int:
        """Number of examples."""

    def describe(self) -> dict[str, Any]:
        """Where the examples are from and how many, for the report."""

    def score(self, model: Any, examples: slice, sub_models: int) -> Tensor:
        """Sums for the given examples, (sub-models, k), float64.

        The model reads a batch of ``sub_models`` times the examples, block after block.
        """

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """The metrics by name, from one sub-model's sums over all examples."""


def checked_metric(metric: str | None, known: tuple[str, ...]) -> str:
    """The metric of that name, or the first; raises :class:`InputError` for another name."""
    if metric is not None and metric not in known:
        raise unknown("metric of this task", metric, known)
    return metric or known[0]


class Tasks(NamedTuple):
    """The same task on examples for different purposes, which share none.

    :param calibration: what a search sees.
    :param heldout: what its result is reported on.
    :param validation: what chooses the winner among its finalists, if there is any.
    """

    calibration: Task
    heldout: Task
    validation: Task | None = None
