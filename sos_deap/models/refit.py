"""Refit: give a pruned model the dense model's outputs again, as far as its kept units can.

What the removal of units changes in the output of a site is repaired in closed form. The consumer,
the projection that the site's units enter, gets the weights that reproduce the dense model's output
best, in least squares over calibration text. Only forward passes are computed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sos_deap.errors import InputError, unknown
from sos_deap.models.activations import consumer_weight
from sos_deap.models.find_genes import head_map
from sos_deap.models.guard import evaluating
from sos_deap.models.layer_by_layer import LayerByLayer, recorded_outputs
from sos_deap.models.least_squares import DAMPINGS, Fit, SingularError, Sums, bias_fitted, fitted
from sos_deap.models.quantised import set_weight
from sos_deap.models.sites import EXPERTS, Site
from sos_deap.models.text import FOLDS, RefitText, batches_of

#: What is fitted: weights and biases of the consumers, or the biases alone.
HOW = ("after", "bias")


@dataclass(frozen=True)
class SiteFit:
    """The refit of one site.

    :param consumer: path in the model of the projection.
    :param inputs: number of its inputs that are kept.
    :param tokens: number of tokens that it was fitted to.
    :param damping: the damping, as a share of the mean square of an input; ``None`` if no damping
        reduced the error on the tokens kept for this choice, so that the weights stayed.
    :param error_before: squared error of the output, over the square of the wanted one.
    :param error: the same after the refit.
    """

    consumer: str
    inputs: int
    tokens: int
    damping: float | None
    error_before: float
    error: float


def refit(
    model: PreTrainedModel,
    pruned: PreTrainedModel,
    calibration: RefitText,
    how: str = "after",
    damping: float | None = None,
) -> list[SiteFit]:
    """Fit the consumers of a pruned model to the dense model's outputs, in place.

    Layer by layer, attention before feed-forward, each consumer gets the weight W' that minimises
    ``|X W'^T - Y|^2 + c |W' - W|^2``: X is its input in the pruned model, whose earlier layers are
    refitted already; Y is the output of the dense model's consumer, plus, in layers that add it
    unchanged to the hidden states, the difference of these between the dense and the pruned model;
    W is its present weight. So it compensates the removed units of its site and, in part, what
    earlier sites lost. A bias is fitted with the weight. A mixture of experts keeps its weights. A
    similar least-squares step is in SlimGPT (Ling et al., 2024); the bias alone is FLAP's
    compensation (An et al., 2024, equation 8), for which Y is the output of the dense model's
    consumer in every layer.

    The sums over tokens of one site are in memory at a time, in float64: for 11,008 channels about
    1 GB for each of the text to fit and the text to choose the damping. The hidden states after one
    layer on all tokens are kept for both models, and of the dense model also those before it and
    the outputs of its consumers.

    :param model: the dense model; it is not changed.
    :param pruned: the model from :func:`sos_deap.prune`, of any layout; its weights are changed.
    :param calibration: the text: a task, such as an evaluator's. At least 16 tokens per kept
        channel are advisable.
    :param how: ``"after"``, or ``"bias"`` for the biases alone.
    :param damping: c, as a share of the mean square of an input times the number of tokens, at
        least 0. Default: chosen for each consumer on one fifth of the text.
    :returns: what was fitted, in order; empty if the pruned model has all units.
    :raises InputError: for an unknown ``how``, a task that generates text, a negative damping,
        too few examples, a model without the biases to fit or whose layers share their weights,
        activations that are not finite, and a singular system without damping.
    """
    check_refit(model, calibration, how, damping)
    sites = head_map(model).sites
    with evaluating(model), evaluating(pruned):
        return list(_Refit(model, pruned, sites, calibration, how, damping).fits())


def check_refit(
    model: PreTrainedModel, calibration: RefitText, how: str, damping: float | None
) -> None:
    """Raise :class:`InputError` for what :func:`refit` refuses without computing anything.

    The parameters are those of :func:`refit`.
    """
    if how not in HOW:
        raise unknown("refit", how, HOW)
    if damping is not None and not 0 <= damping < math.inf:
        raise InputError(f"the damping of the refit is {damping}: give a number, at least 0")
    if not calibration.one_pass:
        raise InputError(
            "a refit needs examples that the model reads in one pass, and this task generates "
            "text: leave the refit out, or use another task or metric"
        )
    if how == "after" and damping is None and len(calibration) < FOLDS:
        raise InputError(
            f"a refit on {len(calibration)} examples cannot choose its damping on other ones: "
            f"give at least {FOLDS}, or a damping"
        )
    sites = head_map(model).sites
    stacks = {site.block.rpartition(".")[0] for site in sites}
    layers = sum(len(list(model.get_submodule(stack).children())) for stack in stacks)
    if getattr(model.config, "num_hidden_layers", 0) > layers:
        raise InputError(
            f"the layers of models of type {model.config.model_type} share their weights, which a "
            "refit of one layer after the other would fit to one of them: leave the refit out "
            "(--refit none)"
        )
    if how == "bias" and not any(
        consumer_bias(model.get_submodule(site.consumer)) is not None for site in sites
    ):
        raise InputError(
            f"the output projections of a {model.config.model_type} model have no biases: use the "
            "refit after"
        )


@dataclass(frozen=True)
class _DenseLayer:
    """One layer of the dense model on all batches; every tensor has a row for each token.

    :param before: the hidden states before the layer, (rows, hidden size), by batch.
    :param outputs: of each consumer the outputs, (rows, hidden size), by batch.
    :param adds: whether the layer adds these outputs, unchanged, to the hidden states, and the
        refit takes account of it.
    """

    before: list[Tensor]
    outputs: dict[str, list[Tensor]]
    adds: bool


class _Refit:
    """The refit of one model; the parameters are those of :func:`refit`."""

    def __init__(
        self,
        model: Any,
        pruned: Any,
        sites: Sequence[Site],
        text: RefitText,
        how: str,
        damping: float | None,
    ) -> None:
        self._model, self._pruned, self._how = model, pruned, how
        self._dampings = DAMPINGS if damping is None else (damping,)
        self._layers = [
            (path, list(own)) for path, own in itertools.groupby(sites, lambda site: site.part)
        ]
        blocks = [block for block, _ in self._layers]
        self._dense_run = LayerByLayer(model, blocks, text)
        self._pruned_run = LayerByLayer(pruned, blocks, text)
        self._batches = batches_of(text)

    def fits(self) -> Iterator[SiteFit]:
        """Refit each site from the first one that lost units on."""
        changed = False
        for layer, (_, every) in enumerate(self._layers):
            sites = [site for site in every if site.kind != EXPERTS]  # they have no consumer
            dense = self._dense_layer(layer, sites)
            for number, site in enumerate(sites):
                consumer = self._pruned.get_submodule(site.consumer)
                kept = _kept_inputs(consumer)
                changed |= len(kept) < site.units * site.width
                pairs = self._pairs(layer, [one.consumer for one in sites[: number + 1]], dense)
                if changed and (fit := self._fit(site, kept, pairs)):
                    yield fit
            for mixture in (site for site in every if site.kind == EXPERTS):
                router: Any = self._pruned.get_submodule(mixture.router)
                changed |= len(router.weight) < mixture.units
            if layer + 1 < len(self._layers):
                for examples in self._batches:
                    self._pruned_run.run(layer, examples)

    def _dense_layer(self, layer: int, sites: Sequence[Site]) -> _DenseLayer:
        """Run a layer of the dense model."""
        before: list[Tensor] = []
        outputs: dict[str, list[Tensor]] = {site.consumer: [] for site in sites}
        adds = self._how == "after"  # FLAP's compensation ignores the hidden states
        for examples in self._batches:
            with recorded_outputs(self._model, list(outputs)) as seen:
                states, after = self._dense_run.run(layer, examples)
            adds = adds and _adds(states, after, list(seen.values()))
            before.append(states)
            for consumer, output in seen.items():
                outputs[consumer].append(output)
        return _DenseLayer(before, outputs, adds)

    def _pairs(
        self, layer: int, consumers: Sequence[str], dense: _DenseLayer
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the inputs and the wanted outputs of a consumer, batch by batch, if it runs.

        :param consumers: the consumers of the layer that run before it, and itself.
        """
        *earlier, consumer = consumers
        for number, examples in enumerate(self._batches):
            with recorded_outputs(self._pruned, earlier if dense.adds else []) as seen:
                inputs, before = self._pruned_run.input_of(layer, consumer, examples)
            if inputs is None:
                return
            wanted = dense.outputs[consumer][number].float()
            if dense.adds:
                wanted = wanted + dense.before[number] - before
                for one, output in seen.items():
                    wanted += dense.outputs[one][number] - output
            yield inputs, wanted

    def _fit(
        self, site: Site, kept: Tensor, pairs: Iterator[tuple[Tensor, Tensor]]
    ) -> SiteFit | None:
        """Refit one consumer; returns ``None`` if it has nothing to fit or does not run."""
        consumer: Any = self._pruned.get_submodule(site.consumer)
        weight, bias = consumer_weight(consumer), consumer_bias(consumer)
        if bias is None and (self._how == "bias" or not len(kept)):
            return None
        # The bias is the weight of one more input, which is 1.
        present = weight[:, kept]
        if bias is not None:
            present = torch.cat((present, bias.detach()[:, None]), dim=1)
        training, validation = (Sums(present.shape[1], len(present), present) for _ in range(2))
        for number, (inputs, wanted) in enumerate(pairs):
            columns = [inputs[:, kept]]
            if bias is not None:
                columns.append(torch.ones_like(wanted[:, :1]))
            other = number % FOLDS == FOLDS - 1 and len(self._dampings) > 1
            (validation if other else training).add(torch.cat(columns, dim=1), wanted)
        if not training.tokens:
            return None
        fit = self._solved(site, present, training, validation)
        with torch.no_grad():
            weight[:, kept] = fit.weight[:, : len(kept)].to(weight.dtype)
            if bias is not None:
                bias.copy_(fit.weight[:, len(kept)])
            set_weight(consumer, weight)
        return SiteFit(
            site.consumer, len(kept), training.tokens, fit.damping, fit.before, fit.after
        )

    def _solved(self, site: Site, present: Tensor, training: Sums, validation: Sums) -> Fit:
        if not training.is_finite or not validation.is_finite:
            raise InputError(
                f"the input or the output of {site.consumer} is not finite on the calibration "
                "text: compute with --dtype float32"
            )
        if self._how == "bias":
            return bias_fitted(present, training.plus(validation))
        try:
            return fitted(present, training, validation, self._dampings)
        except SingularError as error:
            raise InputError(
                f"the least-squares system of {site.consumer} is singular: {training.tokens} "
                f"tokens for {len(training.xx)} inputs; give more text, or a damping above 0"
            ) from error


def consumer_bias(consumer: nn.Module) -> Tensor | None:
    """Return the bias of a projection."""
    bias: Tensor | None = getattr(consumer, "bias", None)
    return bias


def _adds(before: Tensor, after: Tensor, outputs: Sequence[Tensor]) -> bool:
    """Return whether a layer adds the outputs of its consumers, unchanged, to the hidden states.

    It does not if it normalises or scales them, or the sums, or has other sub-layers. The tolerance
    is for rounding in half precision.
    """
    rest = change = after.float() - before.float()
    for output in outputs:
        if output.shape != change.shape:
            return False
        rest = rest - output
    return bool(rest.norm() <= 0.05 * change.norm())


def _kept_inputs(consumer: nn.Module) -> Tensor:
    """Return the indices of a projection's inputs whose weights are not all zero.

    The layout zeroed keeps the others, which belong to removed units.
    """
    return (consumer_weight(consumer) != 0).any(0).nonzero().flatten()
