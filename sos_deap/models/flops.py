"""Floating-point operations of a model and of its sub-models."""

from __future__ import annotations

import math
from collections import Counter
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
    """

    def __init__(
        self, model: Any, genes: GeneMap, blocks: Sequence[str], run: Callable[[], Any]
    ) -> None:
        self._model, self._genes = model, genes
        # By projection, since the encoder's states that cross-attention reads are another number of
        # vectors than the decoder's, and layers that share their weights run more than once.
        self._vectors = Counter[str]()
        with counting(model) as counter, ExitStack() as stack:
            for site in genes.sites:
                for path in self._weights(site, range(site.units)):
                    hook = partial(self._count, path)
                    projection = model.get_submodule(path)
                    stack.callback(projection.register_forward_pre_hook(hook).remove)
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
        projections = self._projections(it, range(it.units))
        scores = 0.0
        if it.kind == ATTENTION:
            scores = (self._attention[site] - projections) * (1 - len(keep) / it.units)
        return projections - self._projections(it, keep) + scores

    def attention(self, site: int, keep: Sequence[int]) -> float:
        """The operations of an attention module that keeps some of its heads.

        A consumer outside the module does not count.

        :param site: index of the site in the gene map.
        :param keep: indices of the heads to keep, in rising order.
        """
        it = self._genes.sites[site]
        outside = self._outside[site] * len(keep) / it.units
        return self._attention[site] - self.saved(site, keep) - outside

    def _projections(self, site: Site, keep: Sequence[int]) -> int:
        """The operations of a site's projections for some of its units."""
        weights = self._weights(site, keep)
        return sum(2 * self._vectors[path] * count for path, count in weights.items())

    def _weights(self, site: Site, keep: Sequence[int]) -> dict[str, int]:
        """The number of weights in each of a site's projections, without biases, by its path."""
        if site.kind == EXPERTS:
            return self._expert_weights(site, len(keep))
        family = self._genes.family
        weights = {
            part.path: len(part.kept) * features(part.module)[1 - part.axis]
            for part in site_slices(self._model, family, site, keep)
            if part.projection
        }
        if site.kind == ATTENTION and keep:  # these keep all heads
            for _, projection, _ in family.spanning:
                path = f"{site.module}.{projection}"
                weights[path] = math.prod(features(self._model.get_submodule(path)))
        return weights

    def _expert_weights(self, site: Site, kept: int) -> dict[str, int]:
        """The same of a mixture: each token is multiplied by the weights of the chosen experts."""
        experts: nn.Module = self._model.get_submodule(site.consumer)
        router: Any = self._model.get_submodule(site.router)
        each = sum(p[0].numel() for p in experts.parameters(recurse=False) if p.dim() == 3)
        chosen: int = min(kept, router.top_k)
        return {site.router: kept * features(router)[1], site.consumer: chosen * each}

    def _count(self, path: str, module: Any, inputs: Any) -> None:
        self._vectors[path] += inputs[0].shape[:-1].numel()
