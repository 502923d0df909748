"""Weights of consumers without some of their inputs, fitted to the dense model's outputs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sos_deap.errors import InputError
from sos_deap.models.activations import consumer_weight, hooked
from sos_deap.models.families import why_unsliceable
from sos_deap.models.genes import GeneMap
from sos_deap.models.guard import evaluating
from sos_deap.models.least_squares import Sums, fitted
from sos_deap.models.narrow import narrowed
from sos_deap.models.refit import consumer_bias
from sos_deap.models.sites import EXPERTS, Site
from sos_deap.models.text import FOLDS, DescribedText, batches_of

#: Most bytes of fitted weights that are kept.
_MOST_BYTES = 2**28

#: A weight and a bias, as a projection stores them.
Weights = tuple[Tensor, Tensor | None]


class Compensation:
    """Fits the consumer of a site to the dense model's output, for any kept units.

    With the inputs X of a consumer in the dense model, H = X^T X and the kept columns K, the weight
    W' that minimises ``|X_K W'^T - X W^T|^2 + c |W' - W_K|^2`` follows from H alone. H is computed
    once, for all sub-models, in one pass; unlike :func:`sos_deap.refit`, the fit ignores what
    changes in earlier layers. A bias is the weight of one more input, which is 1 and always kept.

    H of every site stays in memory, in float32: for 32 layers of 11,008 channels and 4,096
    attention inputs 18 GB, and four times as much while it is computed.

    :param model: the dense model.
    :param genes: its gene map.
    :param text: calibration text.
    :param damping: c, as a share of the mean square of a kept input times the number of tokens,
        above 0. Default: for each site the one that fits best without every other unit, on a fifth
        of the text; if none does, the site keeps its weights.
    :raises InputError: for a damping of 0, an architecture that cannot be sliced, and inputs that
        are not finite.
    """

    def __init__(
        self, model: Any, genes: GeneMap, text: DescribedText, damping: float | None = None
    ) -> None:
        if damping == 0:  # the system of some sub-model would be singular, during a search
            raise InputError("the damping of a refit during the search is 0: give a number above 0")
        if why := why_unsliceable(genes.family, model.config, genes.removes_heads):
            raise InputError(
                f"a {model.config.model_type} model cannot be refitted during the search: {why}; "
                "use the refit after, with the layout zeroed"
            )
        self._model, self._genes = model, genes
        self._text, self._given = text, damping
        self._sums: dict[int, Sums] = {}
        #: The damping of each site; ``None``: it keeps its weights, as mixtures of experts do.
        self.dampings: list[float | None] = [None] * len(genes.sites)
        # A mixture has no consumer to fit.
        numbers = [number for number, site in enumerate(genes.sites) if site.kind != EXPERTS]
        sites = [genes.sites[number] for number in numbers]
        for number, site, parts in zip(numbers, sites, _recorded(model, sites, text), strict=True):
            if not all(part.is_finite for part in parts):
                raise InputError(
                    f"the input of {site.consumer} is not finite on the calibration text: compute "
                    "with --dtype float32"
                )
            self.dampings[number] = self._chosen(site, *parts) if damping is None else damping
            every = parts[0].plus(parts[1])
            every.xx = every.xx.float()
            self._sums[number] = every
        self._fitted = OrderedDict[tuple[int, tuple[int, ...]], Weights]()
        self._bytes = 0

    def describe(self) -> dict[str, Any]:
        """Return what the fitted weights depend on besides the model, as plain JSON."""
        data = {name: value for name, value in self._text.describe().items() if name != "split"}
        return {"damping": self._given, "data": data}

    def weights(self, number: int, keep: Sequence[int]) -> Weights | None:
        """Return the weight and the bias of a consumer with some of its site's units.

        :param number: index of the site.
        :param keep: indices of the kept units, in rising order.
        :returns: the weight with the kept inputs alone, and the bias or ``None``; ``None`` for a
            mixture of experts, which keeps its weights.
        """
        if number not in self._sums:
            return None
        key = number, tuple(keep)
        if key in self._fitted:
            self._fitted.move_to_end(key)
            return self._fitted[key]
        found = self._fit(number, keep)
        self._fitted[key] = found
        self._bytes += _size(found)
        while self._bytes > _MOST_BYTES and len(self._fitted) > 1:
            self._bytes -= _size(self._fitted.popitem(last=False)[1])
        return found

    def _fit(self, number: int, keep: Sequence[int]) -> Weights:
        site, damping = self._genes.sites[number], self.dampings[number]
        consumer: Any = self._model.get_submodule(site.consumer)
        has_bias = consumer_bias(consumer) is not None
        columns, weight = _columns(site, keep, has_bias), _augmented(consumer)
        found = weight[:, columns]
        if damping is not None and len(columns):
            sums = self._sums[number].reproducing(weight, columns)
            found = sums.solution(found.to(sums.xx.dtype), damping).to(weight.dtype)
        kept, bias = found[:, : found.shape[1] - has_bias], None
        if has_bias:
            bias = found[:, -1].contiguous()
        return (kept.T if isinstance(consumer, Conv1D) else kept).contiguous(), bias

    def _chosen(self, site: Site, training: Sums, validation: Sums) -> float | None:
        """Return the damping that fits best on other text, without every other unit."""
        consumer: Any = self._model.get_submodule(site.consumer)
        columns = _columns(site, range(0, site.units, 2), consumer_bias(consumer) is not None)
        weight = _augmented(consumer)
        first, second = (part.reproducing(weight, columns) for part in (training, validation))
        return fitted(weight[:, columns], first, second).damping


@contextmanager
def compensated(
    model: Any, genes: GeneMap, chromosome: Sequence[int], compensation: Compensation
) -> Iterator[None]:
    """Make a model compute one sub-model with fitted consumers, inside the context.

    :param model: the model; it is restored at the end, also after an exception.
    :param genes: its gene map.
    :param chromosome: one gene for each in ``genes``.
    :param compensation: fits the consumers.
    """
    with ExitStack() as stack:
        for number, (site, keep) in enumerate(
            zip(genes.sites, genes.kept(chromosome), strict=True)
        ):
            if len(keep) < site.units:
                fitted = compensation.weights(number, keep)
                stack.enter_context(narrowed(model, genes.family, site, keep, fitted))
        yield


def _augmented(consumer: nn.Module) -> Tensor:
    """Return a projection's weight, (outputs, inputs), with its bias as a last column."""
    weight, bias = consumer_weight(consumer), consumer_bias(consumer)
    return weight if bias is None else torch.cat((weight, bias.detach()[:, None]), dim=1)


def _columns(site: Site, keep: Sequence[int], bias: bool) -> Tensor:
    """Return the indices of the inputs of kept units, and of the bias."""
    first = torch.tensor(list(keep), dtype=torch.long)[:, None] * site.width
    columns = (first + torch.arange(site.width)).flatten()
    if not bias:
        return columns
    return torch.cat((columns, torch.tensor([site.units * site.width])))


def _recorded(model: Any, sites: Sequence[Site], text: DescribedText) -> list[tuple[Sums, Sums]]:
    """Return the sums over the inputs of each consumer, in two parts of the text."""
    parts: list[tuple[Sums, Sums]] = []
    part = 0

    def record(both: tuple[Sums, Sums], module: nn.Module, given: tuple[Tensor, ...]) -> None:
        inputs = given[0].flatten(0, -2)
        if consumer_bias(module) is not None:
            inputs = torch.cat((inputs, torch.ones_like(inputs[:, :1])), dim=1)
        both[part].add(inputs, inputs[:, :0])

    for site in sites:
        consumer = model.get_submodule(site.consumer)
        inputs = _augmented(consumer).shape[1]
        parts.append((Sums(inputs, 0, consumer.weight), Sums(inputs, 0, consumer.weight)))
    hooks = [partial(record, both) for both in parts]
    with evaluating(model), hooked(model, sites, hooks), torch.inference_mode():
        for number, examples in enumerate(batches_of(text)):
            part = int(number % FOLDS == FOLDS - 1)
            text.score(model, examples, 1)
    return parts


def _size(weights: Weights) -> int:
    return sum(tensor.nbytes for tensor in weights if tensor is not None)
