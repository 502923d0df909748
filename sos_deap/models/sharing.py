"""Compute many sub-models with one model, layer by layer, sharing the layers they have in common.

Two sub-models that keep the same units in layers 0..k have the same hidden state after layer k.
Each layer therefore runs once for each distinct prefix of the chromosomes, and the hidden states of
prefixes that were computed earlier are cached. In a layer the attention runs once for all
sub-models that differ first in its feed-forward. A layer runs without the weights of its removed
units, so removed units cost no operations.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from sos_deap.models.compensation import Compensation
from sos_deap.models.families import why_unsliceable
from sos_deap.models.genes import GeneMap
from sos_deap.models.hidden_states import Kept, States
from sos_deap.models.masking import masked, masked_site
from sos_deap.models.memory import is_out_of_memory
from sos_deap.models.narrow import narrowed
from sos_deap.models.rows import rows_each
from sos_deap.models.sites import ATTENTION
from sos_deap.models.temporary import replaced

Layer = tuple[bytes, ...]  # for each site of a layer the values of its genes
Prefix = tuple[Layer, ...]  # of the first layers of a sub-model


def blocks_of(model: Any, genes: GeneMap) -> list[str] | None:
    """Return the paths of a model's blocks, in the order in which they run.

    :param model: the model.
    :param genes: its gene map.
    :returns: one path for each attention module; ``None`` if the blocks are not a single chain with
        one attention module each that runs once, as in an encoder-decoder, CLIP or ALBERT.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        return None
    paths = [site.block for site in genes.attention]
    layers = getattr(model.config, "num_hidden_layers", len(paths))
    stacks = {path.rpartition(".")[0] for path in paths}
    chain = layers == len(set(paths)) == len(paths) and len(stacks) == 1
    inside = all(site.module != site.block for site in genes.attention)
    return paths if chain and inside else None


@contextmanager
def shared(
    model: Any,
    chromosomes: Sequence[Sequence[int]],
    genes: GeneMap,
    states: States,
    data: Hashable,
    compensation: Compensation | None = None,
) -> Iterator[Any]:
    """Make one model compute many sub-models at once, and each layer once per distinct prefix.

    Inside the context, a batch of ``len(chromosomes) * B`` rows is read as consecutive blocks of
    ``B`` rows, one block per sub-model. The blocks must be equal, and key/value caches are not
    filled. The result of a sub-model does not depend on the other sub-models, bit for bit.

    :param model: the model; it is restored at the end, also after an exception.
    :param chromosomes: one chromosome per sub-model.
    :param genes: the model's gene map, for which :func:`blocks_of` returns paths.
    :param states: the cache of hidden states; states computed in the context are added.
    :param data: identifies the rows of the batch in the cache.
    :param compensation: fits the consumers of sites that lose units; default: they keep their
        weights.
    """
    blocks = blocks_of(model, genes)
    assert blocks is not None
    run = _Run(model, genes, blocks, chromosomes, states, data, compensation)
    with ExitStack() as stack:
        for depth, path in enumerate(blocks):
            block = model.get_submodule(path)
            stack.enter_context(replaced(block, forward=run.layer(depth, block.forward)))
        yield model


def shares(model: Any, genes: GeneMap, run: Callable[[], Any]) -> bool:
    """Whether :func:`shared` gives the same hidden states as masking for this model.

    The test is a few forward passes, since a model may have parts that depend on the rows of the
    batch in ways that the table of architectures does not describe, such as a position bias.

    :param model: the model.
    :param genes: its gene map.
    :param run: runs a forward pass of the rows of two sub-models.
    :raises RuntimeError, MemoryError: if memory runs out, which leaves the question open.
    """
    blocks = blocks_of(model, genes)
    if blocks is None:
        return False
    dense = [1] * len(genes)
    some = [int(gene % 3 > 0) for gene in range(len(genes))]
    attention = {
        gene
        for site, own in zip(genes.sites, genes.site_genes, strict=True)
        for gene in own
        if site.kind == ATTENTION
    }
    # These share the attention of the first layer.
    narrower = [int(gene % 3 > 0 or gene in attention) for gene in range(len(genes))]
    pairs = [[dense, some]] + ([[dense, narrower]] if narrower not in (dense, some) else [])
    try:
        return all(_agree(model, genes, pair, blocks[-1], run) for pair in pairs)
    except Exception as error:  # the model's code may fail in any way; then nothing is shared
        if is_out_of_memory(error):
            raise
        return False


def _agree(
    model: Any, genes: GeneMap, pair: list[list[int]], last: str, run: Callable[[], Any]
) -> bool:
    """Whether both ways give two sub-models the same hidden states after the last block."""
    seen: list[Tensor] = []
    hook = model.get_submodule(last).register_forward_hook(
        lambda module, inputs, output: seen.append(output[0] if type(output) is tuple else output)
    )
    try:
        with masked(model, pair, genes):
            run()
        with shared(model, pair, genes, States(0), None):
            run()
    finally:
        hook.remove()
    expected, found = seen
    rounding = 1e-3 if expected.dtype == torch.float32 else 5e-2
    return bool((found - expected).abs().max() <= rounding * expected.abs().max())


class _Run:
    """One forward pass of a batch through the blocks.

    A sub-model is represented by the tuple of the genes of its layers. A prefix of that tuple
    identifies the hidden state after the prefix's last layer.
    """

    def __init__(
        self,
        model: Any,
        genes: GeneMap,
        blocks: Sequence[str],
        chromosomes: Sequence[Sequence[int]],
        states: States,
        data: Hashable,
        compensation: Compensation | None,
    ) -> None:
        self._model, self._genes, self._compensation = model, genes, compensation
        self._sites = [[i for i, s in enumerate(genes.sites) if s.block == b] for b in blocks]
        self._sub_models = [self._layers(genes.checked(one)) for one in chromosomes]
        self._states, self._data = states, data
        self._last = len(blocks) - 1
        self._rows = 0  # of the batch
        self._cached: dict[Prefix, Tensor] = {}  # states from the cache, until they are used
        self._starts: list[int] = []  # for each sub-model the layer of its cached state
        self._now: dict[Prefix, Tensor] = {}  # the distinct states after the latest layer
        self._attended: dict[tuple[Prefix, bytes], Any] = {}  # outputs of one layer's attention

    def _layers(self, chromosome: Sequence[int]) -> Prefix:
        site_genes = self._genes.site_genes
        return tuple(
            tuple(bytes(int(chromosome[gene]) for gene in site_genes[site]) for site in sites)
            for sites in self._sites
        )

    def layer(self, depth: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Return the replacement of the forward method of one block.

        :param depth: index of the block.
        :param forward: its own forward method.
        """

        def once_per_prefix(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            if depth == 0:
                self._begin(hidden)
            arguments = _first((args, kwargs), self._rows, self._each)
            states: dict[Prefix, Tensor] = {}
            self._attended.clear()
            for prefix in self._wanted(depth):
                if (cached := self._cached.pop(prefix, None)) is not None:
                    states[prefix] = cached
                    continue
                with self._with_units(depth, prefix):
                    output = forward(self._now[prefix[:-1]], *arguments[0], **arguments[1])
                states[prefix] = self._states.unpack(output)
                if depth < self._last:
                    self._states.put((self._data, prefix), states[prefix])
            self._now = states
            self._attended.clear()
            if depth < self._last:
                return self._states.pack(hidden)  # the next layer starts from self._now
            return self._states.pack(torch.cat([states[one] for one in self._sub_models]))

        return once_per_prefix

    def _begin(self, hidden: Tensor) -> None:
        self._rows = len(hidden)
        self._each = rows_each(self._rows, len(self._sub_models))
        self._now = {(): hidden[: self._each]}
        self._cached = {}
        self._starts = [self._start(one) for one in self._sub_models]

    def _start(self, sub_model: Prefix) -> int:
        """The deepest layer before the last whose state is cached; 0 if there is none."""
        for depth in range(self._last - 1, -1, -1):
            prefix = sub_model[: depth + 1]
            state = self._states.get((self._data, prefix))
            if state is not None:
                self._cached[prefix] = state
                return depth
        return 0

    def _wanted(self, depth: int) -> list[Prefix]:
        """The distinct prefixes whose states are needed after this layer, in order."""
        pairs = zip(self._sub_models, self._starts, strict=True)
        started = (sub_model for sub_model, start in pairs if start <= depth)
        return list(dict.fromkeys(sub_model[: depth + 1] for sub_model in started))

    @contextmanager
    def _with_units(self, depth: int, prefix: Prefix) -> Iterator[None]:
        """Make a layer compute with the units that a prefix keeps in it, inside the context."""
        genes, model, kept = self._genes, self._model, Kept()
        attended = (prefix[:-1], prefix[-1][0])
        computed = attended not in self._attended
        with ExitStack() as stack:
            for number, values in zip(self._sites[depth], prefix[-1], strict=True):
                site = genes.sites[number]
                attention = site.kind == ATTENTION
                kept[number] = genes.kept_in(number, values)
                # An attention module that is not run again may have its consumer outside.
                if not all(values) and (
                    computed or not attention or not genes.family.output_inside
                ):
                    stack.enter_context(self._without(number, kept[number]))
                if attention and len(prefix[-1]) > 1:
                    module = model.get_submodule(site.module)
                    once = self._once(attended, module.forward)
                    stack.enter_context(replaced(module, forward=once))
            yield
        if self._states.on_layer is not None:
            self._states.on_layer(depth, kept, computed, self._each)

    def _without(self, number: int, keep: tuple[int, ...]) -> AbstractContextManager[None]:
        family, site = self._genes.family, self._genes.sites[number]
        if why_unsliceable(family, self._model.config, site.kind == ATTENTION):
            mask = torch.zeros(1, site.units)
            mask[0, list(keep)] = 1
            return masked_site(self._model, site, mask)
        fit = self._compensation
        fitted = None if fit is None else fit.weights(number, keep)
        return narrowed(self._model, family, site, keep, fitted)

    def _once(self, key: tuple[Prefix, bytes], forward: Callable[..., Any]) -> Callable[..., Any]:
        """Return an attention module's forward method that computes each output once."""

        def attend(*args: Any, **kwargs: Any) -> Any:
            if key not in self._attended:
                self._attended[key] = forward(*args, **kwargs)
            return self._attended[key]

        return attend


def _first(value: Any, rows: int, each: int) -> Any:
    """Return a block's arguments for the rows of the first sub-model.

    :param value: the arguments, nested; tensors with one entry per row are cut.
    :param rows: rows of the batch.
    :param each: rows of one sub-model.
    """
    if isinstance(value, Tensor):
        # A tensor that does not repeat from sub-model to sub-model has the batch's length by
        # chance, such as a table of relative positions.
        per_row = value.dim() and len(value) == rows and each < rows
        cut = per_row and torch.equal(value[:each], value[each : 2 * each])
        return value[:each] if cut else value
    if isinstance(value, Cache):
        return None
    if isinstance(value, dict):
        return {name: _first(v, rows, each) for name, v in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_first(v, rows, each) for v in value)
    return value
