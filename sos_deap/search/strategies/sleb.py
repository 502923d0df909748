"""SLEB: removes whole transformer layers greedily."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sos_deap.search.space import Space
from sos_deap.search.strategies.strategy import Strategy, best


class SLEB(Strategy):
    """Greedy removal of transformer layers (Song et al., 2024).

    A layer is removed with all its genes, of whatever kinds. After each removal the remaining
    layers are evaluated again, and the one whose removal leaves the best fitness is removed next.
    When no whole layer fits any more, genes of the next best layer are removed at random, which
    the paper does not need, because its budget is a number of layers.

    Each removal takes one evaluation per remaining layer, whatever the budget; if a limit ends the
    search early, the remaining genes are removed at random.
    """

    def __init__(self, space: Space, population: Sequence[Any], budget: float) -> None:
        super().__init__(space, population, budget)
        self.incumbent = space.without([])

    def generate(self) -> list[Any]:
        """Return the current sub-model without one more layer; at the end, a part of a layer."""
        genes = list(self.incumbent)
        untouched = [layer for layer in self.space.layers if all(genes[gene] for gene in layer)]
        layers = [layer for layer in untouched if self._fits(genes, layer)]
        if not layers:
            fitting = set(self.space.fitting(genes))
            able = [layer for layer in self.space.layers if fitting.intersection(layer)]
            layers = [layer for layer in able if layer in untouched] or able
        return [
            self.space.individual(self.space.filled(genes, among=layer)) for layer in layers
        ] or [self.incumbent]

    def update(self, individuals: list[Any]) -> None:
        """Continue with the best individual."""
        self.incumbent = best(individuals)
        self.done = self.space.full(self.incumbent)

    def _fits(self, genes: Sequence[int], layer: Sequence[int]) -> bool:
        """Whether all genes of a layer can be removed together within S."""
        child = list(genes)
        for gene in layer:
            child[gene] = 0
        return self.space.budget.room(child, self.space.max_sparsity) >= 0
