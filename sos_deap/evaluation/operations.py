"""Count the operations of forward passes of sub-models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sos_deap.evaluation.accounting import ForwardCost
from sos_deap.models.flops import Flops
from sos_deap.models.genes import GeneMap
from sos_deap.models.hidden_states import Kept
from sos_deap.models.sharing import blocks_of
from sos_deap.tasks.task import Task


class OperationCounter:
    """Adds the layers run and the floating-point operations to a cost.

    One example is counted with PyTorch's counter; the others count by their mean length.

    :param task: the task whose examples are computed.
    :param cost: the cost to add to; its ``flops`` become ``None`` if operations cannot be counted.
    """

    def __init__(self, task: Task, cost: ForwardCost) -> None:
        self._task, self._cost = task, cost
        self._dense: Flops | None = None
        if not task.one_pass:
            cost.flops = None

    def count_dense(self, model: Any, genes: GeneMap, one_example: Callable[[], Any]) -> None:
        """Count the operations of the dense model, of which those of sub-models are derived.

        :param one_example: computes the first example.
        """
        if self._cost.flops is None:
            return
        try:
            blocks = blocks_of(model, genes) or []
            self._dense = Flops(model, genes, blocks, one_example)
        except Exception:  # out of memory, or code that the counter cannot follow
            self._cost.flops = None

    def add_layer(self, depth: int, kept: Kept, attention: bool, examples: int) -> None:
        """Add a layer that was run without its removed units.

        :param depth: number of the layer.
        :param kept: the kept units of each of its sites, the attention first.
        :param attention: whether its attention was run as well.
        :param examples: examples that it was run on.
        """
        self._cost.layer_examples += examples
        if self._dense is not None and self._cost.flops is not None:
            flops: float = self._dense.blocks[depth]
            flops -= sum(self._dense.saved(site, keep) for site, keep in kept.items())
            if not attention:
                flops -= self._dense.attention(*next(iter(kept.items())))
            self._cost.flops += flops * examples * self._mean_length

    def add_examples(self, examples: int, layers_added: bool) -> None:
        """Add examples, summed over sub-models.

        :param examples: how many.
        :param layers_added: count only the operations outside the layers, since
            :meth:`add_layer` was called for these.
        """
        if self._dense is not None and self._cost.flops is not None:
            each = self._dense.outside if layers_added else self._dense.total
            self._cost.flops += each * examples * self._mean_length

    @property
    def _mean_length(self) -> float:
        """Mean tokens of the examples, relative to the example that was counted."""
        return self._task.tokens / len(self._task) / self._task.seqlen
