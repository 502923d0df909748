"""Weights of consumers without some of their inputs, fitted to the dense model's outputs."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sos_deap.errors import InputError
from sos_deap.models.families import why_unsliceable
from sos_deap.models.genes import GeneMap
from sos_deap.models.guard import evaluating
from sos_deap.models.least_squares import DAMPINGS, Sums
from sos_deap.models.narrow import narrowed
from sos_deap.models.refit import FOLDS, RefitText, batches_of, consumer_bias, consumer_weight
from sos_deap.models.sites import Site

#: Most bytes of fitted weights that are kept.
_MOST_BYTES = 2**28

#: A weight and a bias, as a projection stores them.
Weights = tuple[Tensor, Tensor | None]


class Compensation:
    """Fits the consumer of a site to the dense model's output, for any kept units.

    With the inputs X of a consumer in the dense model, H = X^T X and the kept columns K, the weight
    W' that minimises ``|X W^T - X_K W'^T|^2 + c |W' - W_K|^2`` is
    ``W_K + W_R H_RK (H_KK + c I)^-1``, where R are the removed columns. H is computed once, for all
    sub-models, in one pass; unlike :func:`sos_deap.refit`, the fit ignores what changes in earlier
    layers. A bias is the weight of one more input, which is 1 and always kept.

    H of every site stays in memory, in float32: for 32 layers of 11,008 channels and 4,096
    attention inputs about 18 GB.

    :param model: the dense model.
    :param genes: its gene map.
    :param text: calibration text.
    :param damping: c, as a share of the mean square of an input times the number of tokens.
        Default: for each site the one that fits best without every other unit, on a fifth of the
        text.
    :raises InputError: for an architecture that cannot be sliced, and for inputs that are not
        finite.
    """

    def __init__(
        self, model: Any, genes: GeneMap, text: RefitText, damping: float | None = None
    ) -> None:
        if why := why_unsliceable(genes.family, model.config, genes.removes_heads):
            raise InputError(
                f"a {model.config.model_type} model cannot be refitted during the search: {why}; "
                "use the refit after, with the layout zeroed"
            )
        self._model, self._genes = model, genes
        self._sums: list[Tensor] = []
        self.dampings: list[float] = []
        for site, (training, validation) in zip(
            genes.sites, _recorded(model, genes.sites, text), strict=True
        ):
            if not (training.is_finite and validation.is_finite):
                raise InputError(
                    f"the input of {site.consumer} is not finite on the calibration text: compute "
                    "with --dtype float32"
                )
            chosen = damping
            if chosen is None:
                chosen = self._chosen(site, training.xx, validation.xx)
            self.dampings.append(chosen)
            self._sums.append((training.xx + validation.xx).float())
        self._given = damping
        self._data = {key: value for key, value in _described(text).items() if key != "split"}
        self._fitted = OrderedDict[tuple[int, tuple[int, ...]], Weights]()
        self._bytes = 0

    def describe(self) -> dict[str, Any]:
        """Return what the fitted weights depend on besides the model, as plain JSON."""
        return {"damping": self._given, "data": self._data}

    def weights(self, number: int, keep: Sequence[int]) -> Weights:
        """Return the weight and the bias of a consumer with some of its site's units.

        :param number: index of the site.
        :param keep: indices of the kept units, in rising order.
        :returns: the weight with the kept inputs alone, and the bias or ``None``.
        """
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
        site = self._genes.sites[number]
        consumer: Any = self._model.get_submodule(site.consumer)
        columns = _columns(site, keep, consumer_bias(consumer) is not None)
        weight = _augmented(consumer).double()
        fitted = _without(weight, self._sums[number].double(), columns, self.dampings[number])
        fitted = fitted.to(consumer.weight.dtype)
        bias = None
        if consumer_bias(consumer) is not None:
            fitted, bias = fitted[:, :-1], fitted[:, -1].contiguous()
        return (fitted.T if isinstance(consumer, Conv1D) else fitted).contiguous(), bias

    def _chosen(self, site: Site, training: Tensor, validation: Tensor) -> float:
        """Return the damping that fits best on other text, without every other unit."""
        consumer: Any = self._model.get_submodule(site.consumer)
        columns = _columns(site, range(0, site.units, 2), consumer_bias(consumer) is not None)
        weight = _augmented(consumer).to(training.dtype)

        def error(damping: float) -> float:
            change = -weight
            change[:, columns] += _without(weight, training, columns, damping)
            return float(((change @ validation) * change).sum())

        return min(DAMPINGS, key=error)


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


def _without(weight: Tensor, sums: Tensor, columns: Tensor, damping: float) -> Tensor:
    """Return the weight of the kept columns, fitted to the output with all of them."""
    columns = columns.to(weight.device)
    if not len(columns):
        return weight[:, columns]
    removed = torch.ones(len(sums), dtype=torch.bool, device=weight.device)
    removed[columns] = False
    strength = max(float(damping * sums.diagonal().mean()), torch.finfo(sums.dtype).tiny)
    system = sums[columns][:, columns]
    system.diagonal().add_(strength)
    lost = weight[:, removed] @ sums[removed][:, columns]
    factor = torch.linalg.cholesky(system)
    return weight[:, columns] + torch.cholesky_solve(lost.T, factor).T


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


def _recorded(model: Any, sites: Sequence[Site], text: RefitText) -> list[tuple[Sums, Sums]]:
    """Return the sums over the inputs of each consumer, in two parts of the text."""
    parts: list[tuple[Sums, Sums]] = []
    part = 0

    def record(both: tuple[Sums, Sums], module: nn.Module, given: tuple[Tensor, ...]) -> None:
        inputs = given[0].flatten(0, -2)
        if consumer_bias(module) is not None:
            inputs = torch.cat((inputs, torch.ones_like(inputs[:, :1])), dim=1)
        both[part].add(inputs, inputs[:, :0])

    with evaluating(model), ExitStack() as stack, torch.inference_mode():
        for site in sites:
            consumer = model.get_submodule(site.consumer)
            inputs = _augmented(consumer).shape[1]
            both = Sums(inputs, 0, consumer.weight), Sums(inputs, 0, consumer.weight)
            parts.append(both)
            handle = consumer.register_forward_pre_hook(partial(record, both))
            stack.callback(handle.remove)
        for number, examples in enumerate(batches_of(text)):
            part = int(number % FOLDS == FOLDS - 1)
            text.score(model, examples, 1)
    return parts


def _described(text: Any) -> dict[str, Any]:
    """Return a task's description of its data; for other text one that differs for each."""
    described: dict[str, Any] = text.describe() if hasattr(text, "describe") else {"id": id(text)}
    return json.loads(json.dumps(described))  # type: ignore[no-any-return]


def _size(weights: Weights) -> int:
    return sum(tensor.nbytes for tensor in weights if tensor is not None)
