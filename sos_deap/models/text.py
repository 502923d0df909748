"""Calibration text, as functions that read activations or fit weights use it."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

#: Of this many batches of examples, one is kept to choose the damping.
FOLDS = 5


class Text(Protocol):
    """The calibration text: the examples of a task."""

    def __len__(self) -> int:
        """The number of examples."""

    @property
    def seqlen(self) -> int:
        """Number of tokens in the longest example."""

    def score(self, model: Any, examples: slice, sub_models: int) -> Any:
        """Run the model on some examples; the returned value is not used here."""


@runtime_checkable
class TextWithLayers(Protocol):
    """Calibration text on which the layers of a model can run without its head."""

    def read(self, model: Any, examples: slice, sub_models: int) -> Any:
        """Run the layers on some examples; return the hidden states."""


class RefitText(Text, Protocol):
    """Calibration text for a refit."""

    @property
    def one_pass(self) -> bool:
        """Whether ``score`` runs the model once per example."""


class DescribedText(RefitText, Protocol):
    """Calibration text that describes itself, as a task does."""

    def describe(self) -> dict[str, Any]:
        """Return the source, number and hash of the examples, as plain JSON."""


def run_layers(model: Any, text: Text, examples: slice, sub_models: int = 1) -> Any:
    """Run a model on some examples of a text, without its head where the text allows it.

    The head of a large vocabulary may take longer than the layers.

    :param model: the model.
    :param text: the text.
    :param examples: the examples.
    :param sub_models: number of sub-models that the model computes.
    :returns: the hidden states, or what ``text.score`` returns.
    """
    run = text.read if isinstance(text, TextWithLayers) else text.score
    return run(model, examples, sub_models)


def batches_of(text: RefitText) -> list[slice]:
    """Cut the text into batches of at most 4,096 tokens, at least :data:`FOLDS` if it has them."""
    examples = len(text)
    size = max(1, min(4096 // text.seqlen, examples // FOLDS))
    return [slice(start, min(start + size, examples)) for start in range(0, examples, size)]
