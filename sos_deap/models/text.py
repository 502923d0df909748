"""Calibration text, as the functions that read activations see it: the examples of a task."""

from __future__ import annotations

from typing import Any, Protocol


class Text(Protocol):
    """The calibration text: the examples of a task."""

    def __len__(self) -> int:
        """The number of examples."""

    def score(self, model: Any, examples: slice, sub_models: int) -> Any:
        """Run the model on some examples; the returned value is not used here."""
