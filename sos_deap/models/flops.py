"""Floating-point operations of sub-models: the dense model's counted, less the removed heads'."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sos_deap.models.heads import HeadMap
from sos_deap.models.slicing import AttentionLayer, features, projection_rows


@contextmanager
def counting(model: Any) -> Iterator[FlopCounterMode]:
    """Count the floating-point operations of a model's forward passes.

    Inside the context no parameter requires a gradient: the counter hooks the gradient of those
    that modules are given as inputs, as DeBERTa's are, and without gradients there is none.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        # The maths backend shows attention as matrix products, which the counter knows.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            yield counter
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


class Flops:
    """What one forward pass of the dense model costs, in whole and layer by layer.

    :param model: the model.
    :param heads: its head map.
    :param blocks: the paths of its blocks, one for each attention module.
    :param run: the forward pass.
    :param tokens: that it reads.
    """

    def __init__(
        self,
        model: Any,
        heads: HeadMap,
        blocks: Sequence[str],
        run: Callable[[], Any],
        tokens: int,
    ) -> None:
        with counting(model) as counter:
            run()
        counts = counter.get_flop_counts()
        root = type(model).__name__

        def of(path: str) -> int:
            return sum(counts.get(f"{root}.{path}", {}).values())

        self.total: int = counter.get_total_flops()
        self.blocks = [of(path) for path in blocks]
        self._model, self._heads, self._tokens = model, heads, tokens
        self._attention = [
            sum(map(of, {layer.attention, layer.output} - _inside(layer))) for layer in heads.layers
        ]

    @property
    def outside(self) -> int:
        """Operations outside the layers: the head."""
        return self.total - sum(self.blocks)

    def layer(self, depth: int, keep: Sequence[int]) -> float:
        """A layer's operations with some of its query heads."""
        layer = self._heads.layers[depth]
        if len(keep) == layer.heads:
            return self.blocks[depth]
        projections = 2 * self._tokens * self._weights(layer, range(layer.heads))
        left = 2 * self._tokens * self._weights(layer, keep)
        scores = (self._attention[depth] - projections) * (1 - len(keep) / layer.heads)
        return self.blocks[depth] - (projections - left) - scores

    def _weights(self, layer: AttentionLayer, keep: Sequence[int]) -> int:
        """The numbers in a layer's projections, biases left out, for some of its heads."""
        attention = self._model.get_submodule(layer.attention)
        outputs, _ = features(self._model.get_submodule(layer.output))
        found = outputs * len(keep) * layer.head_dim
        for part, rows in projection_rows(self._heads.family, layer, keep).items():
            if hasattr(attention, part):
                found += len(rows) * features(attention.get_submodule(part))[1]
        return found


def _inside(layer: AttentionLayer) -> set[str]:
    """The output projection, where the attention module's count has it already."""
    return {layer.output} if layer.output.startswith(f"{layer.attention}.") else set()
