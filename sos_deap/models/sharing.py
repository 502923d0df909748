"""Many sub-models through one model, layer by layer: what they have in common is computed once.

Two sub-models that keep the same heads in layers 0..k have the same hidden state after layer k. So
each layer is run once for every distinct prefix of the chromosomes, and the states of prefixes that
were computed before are taken from memory. A layer is run with the weights of its removed heads
left out, so that these cost nothing either.
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
from sos_deap.models.heads import HeadMap, masked, masked_layer
from sos_deap.models.narrow import narrowed, replaced
from sos_deap.models.slicing import AttentionLayer

Prefix = tuple[tuple[int, ...], ...]  # the head genes of the first layers, a tuple for each


class States:
    """Hidden states of prefixes, the most recently used, within a number of bytes.

    :param most_bytes: beyond which the least recently used are forgotten.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0
        #: Called with the number of each layer that is computed, its head genes, and the rows.
        self.on_layer: Callable[[int, tuple[int, ...], int], None] | None = None
        self._states = OrderedDict[Hashable, Tensor]()
        self._rest: tuple[Any, ...] | None = None  # what blocks return beside the state, if they do

    def state_in(self, answer: Any) -> Tensor:
        """The state in what a block returned."""
        self._rest = answer[1:] if isinstance(answer, tuple) else None
        state: Tensor = answer if self._rest is None else answer[0]
        return state

    def as_answer(self, state: Tensor) -> Any:
        """A state as blocks return it."""
        return state if self._rest is None else (state, *self._rest)

    def get(self, key: Hashable) -> Tensor | None:
        """The state of that key, if it is still there."""
        state = self._states.get(key)
        if state is not None:
            self._states.move_to_end(key)
        return state

    def put(self, key: Hashable, state: Tensor) -> None:
        """Remember a state."""
        if key in self._states or state.nbytes > self.most_bytes:
            return
        self._states[key] = state
        self.bytes += state.nbytes
        while self.bytes > self.most_bytes:
            _, forgotten = self._states.popitem(last=False)
            self.bytes -= forgotten.nbytes

    def clear(self) -> None:
        """Forget all."""
        self._states.clear()
        self.bytes = 0


def blocks_of(model: Any, heads: HeadMap) -> list[str] | None:
    """The paths of the model's blocks, one for each attention module in the order they are run.

    ``None`` for a model whose blocks are not a single chain with one attention module each, such as
    an encoder-decoder.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        return None
    paths = [_block(layer, heads) for layer in heads.layers]
    return paths if len(set(paths)) == len(paths) else None


def _block(layer: AttentionLayer, heads: HeadMap) -> str:
    ends = [f".{part}" for part in heads.family.attention]
    return next(layer.attention.removesuffix(e) for e in ends if layer.attention.endswith(e))


@contextmanager
def shared(
    model: Any,
    chromosomes: Sequence[Sequence[int]],
    heads: HeadMap,
    states: States,
    data: Hashable,
) -> Iterator[Any]:
    """Make one model compute many sub-models at once, each distinct part of them once.

    As with :func:`sos_deap.models.heads.masked`, a batch of ``len(chromosomes) * B`` rows is read
    as that many blocks of ``B`` rows; here they must be equal, and no key/value cache is filled.
    What a sub-model computes does not depend on the others, to the last bit.

    :param model: the model; left exactly as found, after an exception too.
    :param chromosomes: one chromosome per sub-model.
    :param heads: the model's head map; :func:`blocks_of` must find its blocks.
    :param states: what was computed before, and where to put what is computed now.
    :param data: what tells the rows of the batch from other rows.
    """
    blocks = blocks_of(model, heads)
    assert blocks is not None
    genes = [tuple(map(tuple, heads.head_genes(chromosome))) for chromosome in chromosomes]
    run = _Run(model, heads, genes, states, data)
    with ExitStack() as stack:
        for depth, path in enumerate(blocks):
            block = model.get_submodule(path)
            stack.enter_context(replaced(block, forward=run.layer(depth, block.forward)))
        yield model


#: What allocators raise; the first is also for much else.
MEMORY_ERRORS = (RuntimeError, MemoryError)

#: Parts of the messages of plain runtime errors: torch's on a CPU under Linux and Windows, C++'s,
#: and those of a GPU's libraries.
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "std::bad_alloc",
    "CUDA error: out of memory",
    "MPS backend out of memory",
    "STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in _OUT_OF_MEMORY)


def shares(model: Any, heads: HeadMap, run: Callable[[], Any]) -> bool:
    """Whether :func:`shared` computes for this model what masking does.

    A model may have parts that no table knows of, such as a position bias with rows of its own.

    :param model: the model.
    :param heads: its head map.
    :param run: a forward pass of two sub-models' rows.
    :raises RuntimeError, MemoryError: if memory runs out, which is no answer.
    """
    blocks = blocks_of(model, heads)
    if blocks is None:
        return False
    seen: list[Tensor] = []
    hook = model.get_submodule(blocks[-1]).register_forward_hook(
        lambda module, inputs, answer: seen.append(answer[0] if type(answer) is tuple else answer)
    )
    two = [[1] * len(heads), [int(gene % 3 > 0) for gene in range(len(heads))]]
    try:
        for context in (masked(model, two, heads), shared(model, two, heads, States(0), None)):
            with context:
                run()
    except Exception as error:  # whatever its code makes of it, the answer is no
        if is_out_of_memory(error):
            raise
        return False
    finally:
        hook.remove()
    expected, found = seen
    rounding = 1e-3 if expected.dtype == torch.float32 else 5e-2
    return bool((found - expected).abs().max() <= rounding * expected.abs().max())


class _Run:
    """One pass of a batch through the blocks.

    A sub-model is the tuple of its layers' head genes, and a prefix of that tuple stands for the
    hidden state after the prefix's last layer.
    """

    def __init__(
        self, model: Any, heads: HeadMap, genes: list[Prefix], states: States, data: Hashable
    ) -> None:
        self._model, self._heads, self._genes = model, heads, genes
        self._states, self._data = states, data
        self._leave_out = not why_unsliceable(heads.family, model.config)
        self._last = len(heads.layers) - 1
        self._rows = 0  # of the whole batch
        self._known: dict[Prefix, Tensor] = {}  # states to start from, held while they are needed
        self._starts: list[int] = []  # the layer after which each sub-model's known state stands
        self._now: dict[Prefix, Tensor] = {}  # the distinct states after the layer that was last

    def layer(self, depth: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        """What a block does in place of its own forward pass, ``forward``."""

        def once_each(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            if depth == 0:
                self._begin(hidden)
            arguments = _first((args, kwargs), self._rows, self._each)
            states: dict[Prefix, Tensor] = {}
            for prefix in self._wanted(depth):
                if (known := self._known.pop(prefix, None)) is not None:
                    states[prefix] = known
                    continue
                with self._with_heads(depth, prefix[-1]):
                    answer = forward(self._now[prefix[:-1]], *arguments[0], **arguments[1])
                states[prefix] = self._states.state_in(answer)
                if self._states.on_layer is not None:
                    self._states.on_layer(depth, prefix[-1], self._each)
                if depth < self._last:
                    self._states.put((self._data, prefix), states[prefix])
            self._now = states
            if depth < self._last:
                return self._states.as_answer(hidden)  # the next layer starts from self._now
            return self._states.as_answer(torch.cat([states[genes] for genes in self._genes]))

        return once_each

    def _begin(self, hidden: Tensor) -> None:
        self._rows = len(hidden)
        self._each, rest = divmod(self._rows, len(self._genes))
        if rest:
            raise InputError(
                f"the batch has {self._rows} rows for {len(self._genes)} sub-models: "
                "give the same number of rows for each"
            )
        self._now = {(): hidden[: self._each]}
        self._known = {}
        self._starts = [self._start(genes) for genes in self._genes]

    def _start(self, genes: Prefix) -> int:
        """The deepest layer before the last whose state is known; 0 if none is."""
        for depth in range(self._last - 1, -1, -1):
            prefix = genes[: depth + 1]
            state = self._states.get((self._data, prefix))
            if state is not None:
                self._known[prefix] = state
                return depth
        return 0

    def _wanted(self, depth: int) -> list[Prefix]:
        """The distinct prefixes whose states are needed after this layer, in order."""
        started = (g for g, start in zip(self._genes, self._starts, strict=True) if start <= depth)
        return list(dict.fromkeys(genes[: depth + 1] for genes in started))

    def _with_heads(self, depth: int, genes: tuple[int, ...]) -> AbstractContextManager[None]:
        layer = self._heads.layers[depth]
        if all(genes):
            return nullcontext()
        if self._leave_out:
            keep = tuple(head for head, gene in enumerate(genes) if gene)
            return narrowed(self._model, self._heads, layer, keep)
        return masked_layer(self._model, layer, [genes])


def _first(value: Any, rows: int, each: int) -> Any:
    """Arguments for the first sub-model's rows: what has a value per row is cut."""
    if isinstance(value, Tensor):
        # As long as the batch by chance is what does not repeat from sub-model to sub-model, such
        # as a table of relative positions.
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
