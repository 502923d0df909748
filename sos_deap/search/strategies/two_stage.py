"""2SSP: removes feed-forward channels by a prior, then attention sub-layers greedily."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sos_deap.errors import InputError
from sos_deap.search.budget import by_rank
from sos_deap.search.space import Space
from sos_deap.search.strategies.strategy import Strategy, value

_ATTENTION = ("attention", "heads", "groups")


class TwoStage(Strategy):
    """The two stages of 2SSP (Sandri et al., 2025, arXiv 2501.17771).

    Stage 1 removes the same number of channel genes in each layer, those of the lowest importance
    by a prior. Stage 2 removes whole attention sub-layers one at a time, each time the one whose
    removal leaves the best fitness. Equation 5 of the paper gives the number of sub-layers in stage
    2: ``round(B * s ** (w_ffn / w_attn / alpha))``, for B transformer layers, a share s of their
    parameters to remove, and w_ffn and w_attn parameters in a feed-forward and in an attention
    sub-layer (``two_stage_2ssp`` in the authors' ``src/pruning.py``). Here w is the mean cost, and
    s is S as a share of the cost of all genes. Stage 1 fills what the sub-layers leave of S.

    Differences from the published method: channels are removed in the blocks that genes stand for;
    where the formula gives a number of sub-layers that exceeds S, or with which all channels do not
    fill S, the nearest number that works is used; and what both stages leave of S is filled by the
    prior, first with channels. The authors score stage 2 on one sequence; here it has as many
    examples as the budget allows, at least one.

    :param prior: name of an importance in ``space.priors`` that ranks channels; as published, the
        norm of their activation.
    :param alpha: balance between the stages, above 0; a higher value removes more sub-layers.
    :raises InputError: for genes without channels or without attention, an alpha that is not
        positive, and an unknown prior.
    """

    def __init__(
        self,
        space: Space,
        population: Sequence[Any],
        budget: float,
        prior: str = "activation",
        alpha: float = 1.5,
    ) -> None:
        super().__init__(space, population, budget)
        pairs = list(zip(space.parts, space.spans, strict=True))
        self._channels = [span for part, span in pairs if part.kind == "channels"]
        self._attention = [span for part, span in pairs if part.kind in _ATTENTION]
        if not self._channels or not self._attention:
            kinds = "+".join(dict.fromkeys(space.kinds)) or "none"
            raise InputError(
                "the algorithm two-stage removes channels and attention sub-layers, and the genes "
                f"are {kinds}: use channels with attention, heads or groups"
            )
        if not alpha > 0:
            raise InputError(f"alpha is {alpha}: give a number above 0")
        self._prior, self._alpha = prior, alpha
        self.left -= space.cost_of(prior)
        self._steps = self._sub_layers()
        asked = sum(len(self._attention) - step for step in range(self._steps))
        self._windows = space.windows((self.left - 1) / max(1, asked))
        self._window: tuple[int, int] | None = None
        self._candidates: list[Sequence[int]] = []

    def generate(self) -> list[Any]:
        """Return the sub-model without one more attention sub-layer; at the end, the solution."""
        if self._window is None:
            self._window = next(self._windows)
            self.incumbent = self._without_channels()
        self._candidates = self._removable() if self._steps else []
        if not self._candidates:
            self.incumbent = self._completed()
            return [self.incumbent]
        children = [self._without(self.incumbent, span) for span in self._candidates]
        for child in children:
            child.examples = self._window
        return children

    def update(self, individuals: list[Any]) -> None:
        """Continue with the best individual."""
        self.spend(individuals)
        self.incumbent = max(individuals, key=value)
        self.done = not self._candidates
        self._steps -= 1

    def _sub_layers(self) -> int:
        """Return the number of attention sub-layers to remove, by Equation 5."""
        costs, bound = self.space.budget.estimates, self.space.max_sparsity
        channels = sum(costs[gene] for span in self._channels for gene in span)
        attention = sum(costs[gene] for span in self._attention for gene in span)
        layers = len(self._attention)
        each = attention / layers
        if not each > 0:
            return 0
        ratio = channels / len(self._channels) / each
        count: int = round(layers * min(1.0, bound / sum(costs)) ** (ratio / self._alpha))
        needed = math.ceil((bound - channels) / each - 1e-9)
        return min(max(count, needed), math.floor(bound / each + 1e-9), layers)

    def _without_channels(self) -> Any:
        """Return the sub-model after stage 1."""
        importance = self.space.importance(self._prior)
        ranked = [sorted(span, key=importance.__getitem__) for span in self._channels]
        costs = self.space.budget.estimates
        attention = [sum(costs[gene] for gene in span) for span in self._attention]
        bound = self.space.max_sparsity - self._steps * sum(attention) / len(attention)

        def removing(count: int) -> Any:
            return self.space.without(gene for part in ranked for gene in part[:count])

        for count in reversed(range(max(map(len, ranked)) + 1)):
            if self.space.budget.room(stage := removing(count), bound) >= 0:
                return stage
        return self.space.without([])

    def _removable(self) -> list[Sequence[int]]:
        """Return the genes of each attention sub-layer that can still be removed within S."""
        return [
            span
            for span in self._attention
            if any(self.incumbent[gene] for gene in span)
            and self.space.budget.room(self._without(self.incumbent, span), self.space.max_sparsity)
            >= 0
        ]

    def _without(self, genes: Sequence[int], span: Sequence[int]) -> Any:
        child = list(genes)
        for gene in span:
            child[gene] = 0
        return self.space.individual(child)

    def _completed(self) -> Any:
        """Return the sub-model with more genes removed by the prior, first channels."""
        remove, _ = by_rank(self.space.per_cost(self.space.importance(self._prior)))
        channels = [gene for span in self._channels for gene in span]
        genes = self.space.filled(self.incumbent, remove, among=channels)
        return self.space.individual(self.space.filled(genes, remove))
