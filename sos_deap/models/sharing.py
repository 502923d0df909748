"""Compute many sub-models with one model, layer by layer, sharing the layers they have in common.

Two sub-models that keep the same heads in layers 0..k have the same hidden state after layer k.
Each layer therefore runs once for each distinct prefix of the chromosomes, and the hidden states of
prefixes that were computed earlier are cached. A layer runs without the weights of its removed
heads, so removed heads cost no operations.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from sos_deap.errors import InputError
from sos_deap.models.families import why_unsliceable
from sos_deap.models.genes import HeadMap
from sos_deap.models.masking import masked, masked_layer
from sos_deap.models.memory import is_out_of_memory
from sos_deap.models.narrow import narrowed, replaced
from sos_deap.models.slicing import AttentionLayer

Prefix = tuple[tuple[int, ...], ...]  # for each of the first layers one 0/1 value per query head


class States:
    """A cache of hidden states by prefix, limited in bytes; the least recently used are evicted.

    :param most_bytes: the limit.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0
        #: Called with the index of each layer that is computed, its head genes, and the rows.
        self.on_layer: Callable[[int, tuple[int, ...], int], None] | None = None
        self._states = OrderedDict[Hashable, Tensor]()
        # What blocks return after the hidden state; None if they return the hidden state alone.
        self._rest: tuple[Any, ...] | None = None

    def unpack(self, output: Any) -> Tensor:
        """Return the hidden state from the output of a block."""
        self._rest = output[1:] if isinstance(output, tuple) else None
        state: Tensor = output if self._rest is None else output[0]
        return state

    def pack(self, state: Tensor) -> Any:
        """Return a hidden state in the form of a block's output."""
        return state if self._rest is None else (state, *self._rest)

    def get(self, key: Hashable) -> Tensor | None:
        """Return the hidden state of a key; ``None`` if it is not cached."""
        state = self._states.get(key)
        if state is not None:
            self._states.move_to_end(key)
        return state

    def put(self, key: Hashable, state: Tensor) -> None:
        """Cache a hidden state, if it is not larger than the limit."""
        if key in self._states or state.nbytes > self.most_bytes:
            return
        self._states[key] = state
        self.bytes += state.nbytes
        while self.bytes > self.most_bytes:
            _, evicted = self._states.popitem(last=False)
            self.bytes -= evicted.nbytes

    def clear(self) -> None:
        """Remove all hidden states."""
        self._states.clear()
        self.bytes = 0


def blocks_of(model: Any, head_map: HeadMap) -> list[str] | None:
    """Return the paths of a model's blocks, in the order in which they run.

    :param model: the model.
    :param head_map: its head map.
    :returns: one path for each attention layer; ``None`` if the blocks are not a single chain with
        one attention module each, as in an encoder-decoder.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        return None
    paths = [_block(layer, head_map) for layer in head_map.layers]
    return paths if len(set(paths)) == len(paths) else None


def _block(layer: AttentionLayer, head_map: HeadMap) -> str:
    ends = [f".{part}" for part in head_map.family.attention]
    return next(layer.attention.removesuffix(e) for e in ends if layer.attention.endswith(e))


@contextmanager
def shared(
    model: Any,
    chromosomes: Sequence[Sequence[int]],
    head_map: HeadMap,
    states: States,
    data: Hashable,
) -> Iterator[Any]:
    """Make one model compute many sub-models at once, and each layer once per distinct prefix.

    Inside the context, a batch of ``len(chromosomes) * B`` rows is read as consecutive blocks of
    ``B`` rows, one block per sub-model. The blocks must be equal, and key/value caches are not
    filled. The result of a sub-model does not depend on the other sub-models, bit for bit.

    :param model: the model; it is restored at the end, also after an exception.
    :param chromosomes: one chromosome per sub-model.
    :param head_map: the model's head map, for which :func:`blocks_of` returns paths.
    :param states: the cache of hidden states; states computed in the context are added.
    :param data: identifies the rows of the batch in the cache.
    """
    blocks = blocks_of(model, head_map)
    assert blocks is not None
    genes = [tuple(map(tuple, head_map.head_genes(chromosome))) for chromosome in chromosomes]
    run = _Run(model, head_map, genes, states, data)
    with ExitStack() as stack:
        for depth, path in enumerate(blocks):
            block = model.get_submodule(path)
            stack.enter_context(replaced(block, forward=run.layer(depth, block.forward)))
        yield model


def shares(model: Any, head_map: HeadMap, run: Callable[[], Any]) -> bool:
    """Whether :func:`shared` gives the same hidden states as masking for this model.

    The test is a forward pass of each kind, since a model may have parts that depend on the rows of
    the batch in ways that the table of architectures does not describe, such as a position bias.

    :param model: the model.
    :param head_map: its head map.
    :param run: runs a forward pass of the rows of two sub-models.
    :raises RuntimeError, MemoryError: if memory runs out, which leaves the question open.
    """
    blocks = blocks_of(model, head_map)
    if blocks is None:
        return False
    seen: list[Tensor] = []
    hook = model.get_submodule(blocks[-1]).register_forward_hook(
        lambda module, inputs, output: seen.append(output[0] if type(output) is tuple else output)
    )
    genes = len(head_map)
    two = [[1] * genes, [int(gene % 3 > 0) for gene in range(genes)]]
    try:
        for context in (
            masked(model, two, head_map),
            shared(model, two, head_map, States(0), None),
        ):
            with context:
                run()
    except Exception as error:  # the model's code may fail in any way; then nothing is shared
        if is_out_of_memory(error):
            raise
        return False
    finally:
        hook.remove()
    expected, found = seen
    rounding = 1e-3 if expected.dtype == torch.float32 else 5e-2
    return bool((found - expected).abs().max() <= rounding * expected.abs().max())


class _Run:
    """One forward pass of a batch through the blocks.

    A sub-model is represented by the tuple of its layers' head genes. A prefix of that tuple
    identifies the hidden state after the prefix's last layer.
    """

    def __init__(
        self, model: Any, head_map: HeadMap, genes: list[Prefix], states: States, data: Hashable
    ) -> None:
        self._model, self._head_map, self._genes = model, head_map, genes
        self._states, self._data = states, data
        self._narrow = not why_unsliceable(head_map.family, model.config)
        self._last = len(head_map.layers) - 1
        self._rows = 0  # of the batch
        self._cached: dict[Prefix, Tensor] = {}  # states from the cache, until they are used
        self._starts: list[int] = []  # for each sub-model the layer of its cached state
        self._now: dict[Prefix, Tensor] = {}  # the distinct states after the latest layer

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
            for prefix in self._wanted(depth):
                if (cached := self._cached.pop(prefix, None)) is not None:
                    states[prefix] = cached
                    continue
                with self._with_heads(depth, prefix[-1]):
                    output = forward(self._now[prefix[:-1]], *arguments[0], **arguments[1])
                states[prefix] = self._states.unpack(output)
                if self._states.on_layer is not None:
                    self._states.on_layer(depth, prefix[-1], self._each)
                if depth < self._last:
                    self._states.put((self._data, prefix), states[prefix])
            self._now = states
            if depth < self._last:
                return self._states.pack(hidden)  # the next layer starts from self._now
            return self._states.pack(torch.cat([states[genes] for genes in self._genes]))

        return once_per_prefix

    def _begin(self, hidden: Tensor) -> None:
        self._rows = len(hidden)
        self._each, rest = divmod(self._rows, len(self._genes))
        if rest:
            raise InputError(
                f"the batch has {self._rows} rows for {len(self._genes)} sub-models: "
                "give the same number of rows for each"
            )
        self._now = {(): hidden[: self._each]}
        self._cached = {}
        self._starts = [self._start(genes) for genes in self._genes]

    def _start(self, genes: Prefix) -> int:
        """The deepest layer before the last whose state is cached; 0 if there is none."""
        for depth in range(self._last - 1, -1, -1):
            prefix = genes[: depth + 1]
            state = self._states.get((self._data, prefix))
            if state is not None:
                self._cached[prefix] = state
                return depth
        return 0

    def _wanted(self, depth: int) -> list[Prefix]:
        """The distinct prefixes whose states are needed after this layer, in order."""
        started = (g for g, start in zip(self._genes, self._starts, strict=True) if start <= depth)
        return list(dict.fromkeys(genes[: depth + 1] for genes in started))

    def _with_heads(self, depth: int, genes: tuple[int, ...]) -> AbstractContextManager[None]:
        layer = self._head_map.layers[depth]
        if all(genes):
            return nullcontext()
        if self._narrow:
            keep = tuple(head for head, gene in enumerate(genes) if gene)
            return narrowed(self._model, self._head_map, layer, keep)
        return masked_layer(self._model, layer, [genes])


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
