"""Measure the times of sub-models for a time table."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from sos_deap.models.examples import random_inputs
from sos_deap.models.genes import GeneMap
from sos_deap.models.guard import evaluating
from sos_deap.models.memory import one_example_fits
from sos_deap.models.prune import sliced_copy
from sos_deap.models.sites import Site, features
from sos_deap.models.time_table import (
    Conditions,
    Point,
    Row,
    TimeTable,
)
from sos_deap.models.timing import interleaved, seconds_of

#: Default number of tokens of the prompt, if the model has as many positions.
TOKENS = 128

#: Shares of a site's units whose times are measured, besides all.
SHARES = (0.0, 0.25, 0.5, 0.75)

#: Seconds that the measurement of a table takes at most, unless its least number of rounds takes
#: longer.
SECONDS = 15.0

#: Most rounds, so that the table of a tiny model takes little time.
ROUNDS = 40

#: Tokens that a measurement of decoding decodes.
NEW_TOKENS = 8
_DENSE = "dense"

#: From models by name to the seconds of each round: those of the whole model first, and then those
#: of its layers that differ from the dense model's, if these are timed.
Timer = Callable[[Mapping[str, Any]], Mapping[str, Sequence[Sequence[float]]]]


def measured_table(
    model: PreTrainedModel,
    genes: GeneMap,
    conditions: Conditions,
    timer: Timer | None = None,
) -> TimeTable:
    """Measure the time table of a model.

    Times of single modules do not add up to that of a model. Therefore the whole model is run,
    once dense and with all sites of one geometry reduced to each of a few sizes, in alternation.
    On a CPU their layers are timed inside of it: the median over all layers and rounds varies much
    less than the time of the model, if other programs use the CPU, too.

    :param model: the dense model; it is not changed.
    :param genes: its gene map; only sites that it removes units of are measured.
    :param conditions: the value of :func:`time_conditions` for the model.
    :param timer: function that times models; default: :func:`timer_of`.
    :raises InputError: if memory runs out.
    """
    geometries = _geometries(model, genes)
    rows, dense = list[Row](), list[float]()
    with evaluating(model), one_example_fits(conditions.tokens, "the time table"):
        for numbers in geometries:
            sites = [genes.sites[number] for number in numbers]
            sizes = {f"{len(keep)} of {sites[0].units}": keep for keep in _sizes(sites[0])}
            models = {_DENSE: model} | {
                name: _reduced(model, genes, numbers, keep) for name, keep in sizes.items()
            }
            blocks = [site.part for site in sites] if model.device.type == "cpu" else []
            seconds = SECONDS / len(geometries)
            times = (timer or timer_of(model, conditions, seconds, blocks))(models)
            dense += [whole for whole, *_ in times[_DENSE]]
            points = tuple(
                Point(len(keep), _groups(sites[0], keep), _relative(times[name], times[_DENSE]))
                for name, keep in sizes.items()
            )
            paths = tuple(site.module for site in sites)
            rows.append(Row(sites[0].units, sites[0].groups, paths, points))
    middle = statistics.median(dense)
    return TimeTable(conditions, middle, tuple(rows), torch.get_num_threads(), torch.__version__)


def timer_of(
    model: PreTrainedModel, conditions: Conditions, seconds: float, blocks: Sequence[str] = ()
) -> Timer:
    """Return a function that times models in alternation.

    :param model: the dense model, which determines the inputs.
    :param conditions: what to time.
    :param seconds: after this time no further round starts, but there are at least
        :data:`~sos_deap.models.timing.LEAST_ROUNDS` rounds.
    :param blocks: paths of layers that are timed, too.
    """
    batch = random_inputs(model, 1, conditions.tokens)
    decodes = conditions.of == "decode"

    def timed(models: Mapping[str, Any]) -> dict[str, list[list[float]]]:
        def once(name: str) -> list[float]:
            with _layer_seconds(models[name], blocks) as layers:
                whole = seconds_of(models[name], conditions.of, batch, NEW_TOKENS)
            # The first call of a layer is the prefill.
            steps = [calls[1:] if decodes else calls for calls in layers.values()]
            return [whole, *(statistics.mean(calls) if calls else 0.0 for calls in steps)]

        with torch.inference_mode():
            return interleaved(models, once, ROUNDS, seconds, warm_up=1)

    return timed


@contextmanager
def _layer_seconds(
    model: PreTrainedModel, blocks: Sequence[str]
) -> Iterator[dict[str, list[float]]]:
    """Record the seconds of each call of some layers inside the context, by the layer's path."""
    found: dict[str, list[float]] = {block: [] for block in blocks}
    started: dict[str, float] = {}

    def start(block: str, *_: Any) -> None:
        started[block] = time.perf_counter()

    def end(block: str, *_: Any) -> None:
        found[block].append(time.perf_counter() - started[block])

    with ExitStack() as stack:
        for block in blocks:
            layer = model.get_submodule(block)
            stack.callback(layer.register_forward_pre_hook(partial(start, block)).remove)
            stack.callback(layer.register_forward_hook(partial(end, block)).remove)
        yield found


def measured_speedup(
    model: PreTrainedModel, pruned: PreTrainedModel, conditions: Conditions, seconds: float = 10.0
) -> float:
    """Return how many times as fast as the dense model a pruned one is.

    :param model: the dense model.
    :param pruned: the pruned model, on the same device and in the same dtype.
    :param conditions: what to time.
    :param seconds: limit of the measurement, as for :func:`timer_of`.
    :returns: the median over the rounds.
    """
    with evaluating(model):
        times = timer_of(model, conditions, seconds)({_DENSE: model, "pruned": pruned.eval()})
    return 1 / _relative(times["pruned"], times[_DENSE])


def _relative(times: Sequence[Sequence[float]], dense: Sequence[Sequence[float]]) -> float:
    """The time of a model relative to that of the dense model, from a :data:`Timer`'s values.

    Ratios are of times in the same round, so that a change of the machine's speed affects both.
    """
    if len(dense[0]) == 1:
        return statistics.median(one / other for [one], [other] in zip(times, dense, strict=True))
    pairs = [
        (one, other)
        for (_, *layers), (_, *others) in zip(times, dense, strict=True)
        for one, other in zip(layers, others, strict=True)
    ]
    ratio = statistics.median(one / other if other else 1.0 for one, other in pairs)
    share = statistics.median(sum(layers) / whole for whole, *layers in dense)
    return 1 - share * (1 - ratio)


def _geometries(model: PreTrainedModel, genes: GeneMap) -> list[list[int]]:
    """The indices of the sites that genes remove units of, those of equal geometry together."""
    found: dict[Any, list[int]] = {}
    for number, site in enumerate(genes.sites):
        if genes.site_genes[number]:
            place = re.sub(r"\d+", "*", site.module)
            shape = features(model.get_submodule(site.consumer))
            key = (place, site.kind, site.units, site.width, site.groups, shape)
            found.setdefault(key, []).append(number)
    return list(found.values())


def _sizes(site: Site) -> list[list[int]]:
    """The units of a site to keep in each of the measurements.

    With grouped-query attention, first whole groups are removed, and then heads of all groups.
    """
    units, groups = site.units, site.groups
    counts = dict.fromkeys(round(share * groups) for share in SHARES)
    found = [[u for u in range(units) if u * groups // units < count] for count in counts]
    spread = dict.fromkeys(groups + round(share * (units - groups)) for share in SHARES)
    for heads in spread if groups < units else ():
        quota = [heads // groups + (group < heads % groups) for group in range(groups)]
        starts = [group * units // groups for group in range(groups)]
        found.append(
            [start + i for start, own in zip(starts, quota, strict=True) for i in range(own)]
        )
    return [keep for keep in found if len(keep) < units]


def _groups(site: Site, keep: Sequence[int]) -> int:
    return len(site.group_counts(keep))


def _reduced(
    model: PreTrainedModel, genes: GeneMap, numbers: Sequence[int], keep: list[int]
) -> PreTrainedModel:
    """The model with the same units kept in some sites; it shares all other weights."""
    kept = [
        keep if number in numbers else list(range(site.units))
        for number, site in enumerate(genes.sites)
    ]
    return sliced_copy(model, genes, kept, shares=True)
