"""Floating-point operations of a model and of its sub-models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sos_deap.models.genes import GeneMap
from sos_deap.models.sites import ATTENTION, EXPERTS, Site, features
from sos_deap.models.slices import site_slices


@contextmanager
def counting(model: Any) -> Iterator[FlopCounterMode]:
    """Count the floating-point operations of a model's forward passes inside the context.

    Inside the context no parameter requires a gradient: the counter registers hooks on the
    gradients of module inputs, which fails where these are parameters, as in DeBERTa.

    :param model: the model.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        # The maths backend computes attention by matrix products, which the counter can count.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            yield counter
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


class Flops:
    """Floating-point operations of sub-models, derived from those counted for the dense model.

    :param model: the model.
    :param genes: its gene map.
    :param blocks: the paths of its blocks, whose operations are counted; may be empty.
    :param run: runs one forward pass of the dense model.
    :param tokens: number of tokens in that forward pass.
    """

    def __init__(
        self,
        model: Any,
        genes: GeneMap,
        blocks: Sequence[str],
        run: Callable[[], Any],
        tokens: int,
    ) -> None:
        self._runs = [0] * len(genes.sites)  # how often a forward pass runs each site
        with counting(model) as counter, ExitStack() as stack:
            for number, site in enumerate(genes.sites):
                hook = partial(self._count, number)
                consumer = model.get_submodule(site.consumer)
                stack.callback(consumer.register_forward_pre_hook(hook).remove)
            run()
        counts = counter.get_flop_counts()

        def of(path: str) -> int:
            # The counter names a module by its path from the module that was called: the model, or
            # one that contains the layers only.
            parts = path.split(".")
            names = [
                ".".join((type(model.get_submodule(".".join(parts[:n]))).__name__, *parts[n:]))
                for n in range(len(parts))
            ]
            return sum(sum(counts.get(name, {}).values()) for name in names)

        self.total: int = counter.get_total_flops()
        self.blocks = [of(path) for path in blocks]
        self._model, self._genes, self._tokens = model, genes, tokens
        # The count of an attention module includes a consumer inside it.
        inside = genes.family.output_inside
        self._outside = [
            0 if site.kind == ATTENTION and inside else of(site.consumer) for site in genes.sites
        ]
        self._attention = [
            of(site.module) + outside if site.kind == ATTENTION else 0
            for site, outside in zip(genes.sites, self._outside, strict=True)
        ]

    @property
    def outside(self) -> int:
        """Operations outside the blocks, such as those of the language-modelling head."""
        return self.total - sum(self.blocks)

    def saved(self, site: int, keep: Sequence[int]) -> float:
        """The operations that a site saves when it keeps some of its units.

        :param site: index of the site in the gene map.
        :param keep: indices of the units to keep, in rising order.
        """
        it = self._genes.sites[site]
        if len(keep) == it.units:
            return 0.0
        tokens = self._tokens * max(1, self._runs[site])  # more than once if layers share weights
        if it.kind == EXPERTS:
            return 2 * tokens * (self._of_experts(it, it.units) - self._of_experts(it, len(keep)))
        projections = 2 * tokens * self._weights(it, range(it.units))
        kept = 2 * tokens * self._weights(it, keep)
        scores = 0.0
        if it.kind == ATTENTION:
            scores = (self._attention[site] - projections) * (1 - len(keep) / it.units)
        return projections - kept + scores

    def attention(self, site: int, keep: Sequence[int]) -> float:
        """The operations of an attention module that keeps some of its heads.

        A consumer outside the module does not count.

        :param site: index of the site in the gene map.
        :param keep: indices of the heads to keep, in rising order.
        """
        it = self._genes.sites[site]
        outside = self._outside[site] * len(keep) / it.units
        return self._attention[site] - self.saved(site, keep) - outside

    def _weights(self, site: Site, keep: Sequence[int]) -> int:
        """The number of weights in a site's projections, without biases, for some of its units."""
        family = self._genes.family
        weights = sum(
            len(part.kept) * features(part.module)[1 - part.axis]
            for part in site_slices(self._model, family, site, keep)
            if part.projection
        )
        if site.kind == ATTENTION and keep:  # these keep all heads
            attention = self._model.get_submodule(site.module)
            for _, projection, _ in family.spanning:
                weights += math.prod(features(attention.get_submodule(projection)))
        return weights

    def _of_experts(self, site: Site, kept: int) -> int:
        """The number of weights of a mixture, without biases, that each token is multiplied by."""
        experts: nn.Module = self._model.get_submodule(site.consumer)
        router: Any = self._model.get_submodule(site.router)
        each = sum(p[0].numel() for p in experts.parameters(recurse=False) if p.dim() == 3)
        chosen: int = min(kept, router.top_k)
        return kept * features(router)[1] + chosen * each

    def _count(self, site: int, module: Any, inputs: Any) -> None:
        self._runs[site] += 1
