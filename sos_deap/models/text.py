"""Calibration text, as functions that read activations or fit weights use it."""

from __future__ import annotations

from typing import Any, Protocol

#: Of this many batches of examples, one is kept to choose the damping.
FOLDS = 5


class Text(Protocol):
    """The calibration text: the examples of a task."""

    def __len__(self) -> int:
        """The number of examples."""

    def score(self, model: Any, examples: slice, sub_models: int) -> Any:
        """Run the model on some examples; the returned value is not used here."""


class RefitText(Text, Protocol):
    """Calibration text whose examples have at most ``seqlen`` tokens."""

    @property
    def seqlen(self) -> int:
        """Number of tokens in the longest example."""

    @property
    def one_pass(self) -> bool:
        """Whether ``score`` runs the model once per example."""


class DescribedText(RefitText, Protocol):
    """Calibration text that describes itself, as a task does."""

    def describe(self) -> dict[str, Any]:
        """Return the source, number and hash of the examples, as plain JSON."""


def batches_of(text: RefitText) -> list[slice]:
    """Cut the text into batches of at most 4,096 tokens, at least :data:`FOLDS` if it has them."""
    examples = len(text)
    size = max(1, min(4096 // text.seqlen, examples // FOLDS))
    return [slice(start, min(start + size, examples)) for start in range(0, examples, size)]
