"""How several sub-models go through one model: in which batches, and what if memory runs out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sos_deap.errors import InputError, unknown
from sos_deap.evaluation.randomness import seeded
from sos_deap.models.attention import fast_attention
from sos_deap.models.flops import Flops
from sos_deap.models.guard import evaluating, exclusive
from sos_deap.models.heads import HeadMap, masked
from sos_deap.models.importance import checked_importance, importance
from sos_deap.models.rotary import fast_rotary, rotations
from sos_deap.models.sharing import (
    MEMORY_ERRORS,
    States,
    blocks_of,
    is_out_of_memory,
    shared,
    shares,
)
from sos_deap.tasks.task import Task

#: Tokens in a forward pass unless the user says otherwise, by type of device.
BATCH_TOKENS = {"cpu": 4096}
BATCH_TOKENS_ACCELERATOR = 32_768

#: Gigabytes of hidden states kept for sub-models to come, unless the user says otherwise.
REUSE_MEMORY = 1.0

#: Ways to compute several sub-models: each layer once for all that agree so far, without its
#: removed heads; all in one batch, with the removed heads masked; or what is possible and faster.
BATCHING = ("auto", "shared", "masked")

#: Most sub-models that share their layers in a pass: more than a generation of the paper's.
_TOGETHER = 16

#: How often each size of a masked batch is timed: its first pass may hold what is done once.
_TRIES = 2

Sums = list[list[float]]  # a task's sums over all its examples, a row for each sub-model


class Counts(NamedTuple):
    """What passes have cost; see :class:`sos_deap.evaluation.accounting.Accounting`.

    ``layer_examples`` are the attention layers run, each counted once for each example.
    """

    out_of_memory: int
    layer_examples: int
    flops: float | None
    seconds: float

    def less(self, before: Counts) -> Counts:
        """What has come since."""
        return self._with(before, -1, self.seconds - before.seconds)

    def plus(self, more: Counts, seconds: float) -> Counts:
        """With what others have computed in so many seconds of the one who waited."""
        return self._with(more, 1, self.seconds + seconds)

    def _with(self, other: Counts, sign: int, seconds: float) -> Counts:
        known = self.flops is not None and other.flops is not None
        return Counts(
            self.out_of_memory + sign * other.out_of_memory,
            self.layer_examples + sign * other.layer_examples,
            (self.flops or 0.0) + sign * (other.flops or 0.0) if known else None,
            seconds,
        )


class Sizes:
    """How many sub-models go into a masked batch: sizes are timed on real passes, from one on."""

    def __init__(self) -> None:
        self._seconds: dict[int, list[float]] = {}  # for each sub-model, by size of the batch

    def next(self, most: int) -> int:
        """The size of the next batch: one that was not timed enough, else the fastest.

        :param most: sub-models that there are, and that there is room for.
        """
        powers = [1 << exponent for exponent in range(most.bit_length())]
        for size in powers:
            if len(self._seconds.get(size, ())) < _TRIES:
                return size
        fastest = min(powers, key=lambda size: min(self._seconds[size]))
        # Where each size was faster than the ones before, a few more save a pass for the rest.
        return most if fastest == powers[-1] else fastest

    def took(self, sub_models: int, seconds: float) -> None:
        """Note the time of a batch on all examples."""
        times = self._seconds.setdefault(sub_models, [])
        if len(times) < _TRIES:
            times.append(seconds / sub_models)


class ForwardRunner:
    """Forward passes of sub-models over a task's examples.

    :param model: the model.
    :param heads: its head map.
    :param task: what is computed.
    :param batch_tokens: most tokens in a pass; of one sub-model where layers are shared, else of
        all together. ``None`` for :data:`BATCH_TOKENS`, of which masked batches use as much as is
        fastest.
    :param batching: one of :data:`BATCHING`.
    :param reuse_memory: most gigabytes of hidden states to keep; ``None`` for :data:`REUSE_MEMORY`.
    :raises InputError: for a setting out of range.
    """

    def __init__(
        self,
        model: Any,
        heads: HeadMap,
        task: Task,
        batch_tokens: int | None = None,
        batching: str = "auto",
        reuse_memory: float | None = None,
    ) -> None:
        self._sizes = Sizes() if batch_tokens is None else None
        if batch_tokens is None:
            batch_tokens = BATCH_TOKENS.get(model.device.type, BATCH_TOKENS_ACCELERATOR)
        if batch_tokens < 1:
            raise InputError(f"batch_tokens is {batch_tokens}: give at least 1")
        if batching not in BATCHING:
            raise unknown("batching", batching, BATCHING)
        memory = REUSE_MEMORY if reuse_memory is None else reuse_memory
        if not 0 <= memory < 1e9:
            raise InputError(f"reuse_memory is {memory}: give 0 or more gigabytes")
        self.batching = batching if task.one_pass else "masked"
        self.seconds = 0.0
        self.out_of_memory = 0
        self.layer_examples = 0
        self.flops: float | None = 0.0 if task.one_pass else None  # None where they are not counted
        self._model, self._heads, self._task = model, heads, task
        self._examples = max(1, batch_tokens // task.seqlen)
        self._together = _TOGETHER
        self._states = States(round(memory * 1e9))
        self._states.on_layer = self._count_layer
        self._counted: Flops | None = None
        self._rotations: list[ModuleType] = []
        self._chosen = False
        #: Called before each batch; may raise to end the work.
        self.between_batches: Callable[[], Any] = lambda: None

    @property
    def layers(self) -> int:
        """Attention layers of the model."""
        return len(self._heads.layers)

    @property
    def counts(self) -> Counts:
        """What the passes have cost so far."""
        return Counts(self.out_of_memory, self.layer_examples, self.flops, self.seconds)

    @counts.setter
    def counts(self, counts: Counts) -> None:
        self.out_of_memory, self.layer_examples, self.flops, self.seconds = counts

    def add(self, cost: Counts, seconds: float) -> None:
        """Add what others have computed, in so many seconds of the process that waited."""
        with exclusive(self._model):  # which a worker in another thread may use
            self.counts = self.counts.plus(cost, seconds)

    def run(
        self, pending: Sequence[bytes], part: slice = slice(None)
    ) -> Iterator[tuple[Sequence[bytes], Sums]]:
        """Compute sub-models, a chunk at a time; gives each chunk with its sums.

        :param pending: the sub-models.
        :param part: the examples to compute them on.
        """
        examples = range(len(self._task))[part]
        while pending:
            with evaluating(self._model):
                if not self._chosen:
                    started = time.perf_counter()
                    self._choose()
                    self.seconds += time.perf_counter() - started
                chunk, sums = self._first(pending, examples)
            yield chunk, sums
            pending = pending[len(chunk) :]

    def _first(self, pending: Sequence[bytes], examples: range) -> tuple[Sequence[bytes], Sums]:
        """As many of the pending sub-models as fit a pass, and their sums over some examples."""
        while True:
            chunk = pending[: self._size(len(pending))]
            started = time.perf_counter()
            try:
                sums = self._sums(chunk, self.batching, self._states, examples)
            except MEMORY_ERRORS as error:
                self._shrink(error, len(chunk), len(examples))
                continue
            finally:
                seconds = time.perf_counter() - started
                self.seconds += seconds
            if self._sizes is not None and len(examples) == len(self._task):
                self._sizes.took(len(chunk), seconds)
            self._count(len(chunk) * len(examples))
            return chunk, sums

    def whole(self, model: Any, task: Task) -> list[float]:
        """A task's sums of a whole model, dense or pruned, without masks; not timed."""
        while True:
            try:
                with evaluating(model), self._drawing(task, b""):
                    return self._added(model, task, self._slices(range(len(task)), 1), 1)[0]
            except MEMORY_ERRORS as error:
                self._shrink(error, 1, len(task))

    def importance(self, name: str) -> list[float]:
        """The importance of each gene, timed and counted as the passes that it is worth.

        :param name: a key of :data:`sos_deap.models.importance.IMPORTANCES`.
        :raises InputError: as :func:`sos_deap.models.importance.importance` does, and where an
            example does not fit in memory.
        """
        passes = checked_importance(name, self._task).passes
        if passes and not self._chosen:
            with evaluating(self._model):
                self._choose()
        started = time.perf_counter()
        try:
            with evaluating(self._model):
                found = importance(name, self._model, self._heads, self._task)
        except MEMORY_ERRORS as error:
            if not is_out_of_memory(error):
                raise
            raise InputError(
                f"one example of {self._task.seqlen} tokens does not fit in memory for the "
                f"importance {name}: give a smaller --seqlen, or use another importance"
            ) from error
        finally:
            self.seconds += time.perf_counter() - started
        if self._counted is not None and self.flops is not None:
            rows = passes * len(self._task)
            self.flops += self._counted.total * rows * self._mean_length
        return found

    def _choose(self) -> None:
        """Find out which ways are open and, on an accelerator, which is faster."""
        self._chosen = True
        if self._task.one_pass:
            self._rotations = rotations(self._model, self._heads, lambda: self._one(1))
        if self.flops is not None:
            try:
                self._counted = self._count_dense()
            except Exception:  # out of memory, or code that the counter cannot follow
                self.flops = None
        if self.batching != "masked" and not self._shares():
            self.batching = "masked"
        if self.batching == "auto":
            # On a CPU large batches gain nothing, and the choice must not depend on the weather.
            on_cpu = self._model.device.type == "cpu"
            self.batching = "shared" if on_cpu or not self._masked_is_faster() else "masked"

    def _shares(self) -> bool:
        """Whether layers can be shared; asked again if memory ran out, which may have passed.

        The two ways differ in the last digits, and a run must not change over for a moment's want.
        """
        for _ in range(2):
            try:
                return shares(self._model, self._heads, lambda: self._one(2))
            except MEMORY_ERRORS as error:
                if not is_out_of_memory(error):
                    raise
                self._free()
        return False

    def _one(self, sub_models: int) -> Tensor:
        with torch.inference_mode():
            return self._task.score(self._model, slice(0, 1), sub_models)

    def _count_dense(self) -> Flops:
        """The operations for one example; others count by the mean number of their tokens."""
        blocks = blocks_of(self._model, self._heads) or []
        model, heads, tokens = self._model, self._heads, self._task.seqlen
        return Flops(model, heads, blocks, lambda: self._one(1), tokens)

    def _count_layer(self, depth: int, genes: tuple[int, ...], rows: int) -> None:
        self.layer_examples += rows
        if self._counted is not None and self.flops is not None:
            keep = [head for head, gene in enumerate(genes) if gene]
            self.flops += self._counted.layer(depth, keep) * rows * self._mean_length

    def _count(self, rows: int) -> None:
        if self._counted is None or self.flops is None:
            return
        shared = self.batching == "shared"
        each = self._counted.outside if shared else self._counted.total
        self.flops += each * rows * self._mean_length

    @property
    def _mean_length(self) -> float:
        """Of the examples, in lengths of the one that was counted."""
        return self._task.tokens / len(self._task) / self._task.seqlen

    def _masked_is_faster(self) -> bool:
        genes, seconds = len(self._heads), dict[str, float]()
        some = [bytes(int((gene + i) % 5 > 0) for gene in range(genes)) for i in range(8)]
        for batching in ("shared", "masked") * 2:  # the second time counts
            started, size = time.perf_counter(), self._fit(batching)
            for start in range(0, len(some), size):
                every = range(len(self._task))
                self._sums(some[start : start + size], batching, States(0), every)
            seconds[batching] = time.perf_counter() - started
        return seconds["masked"] < seconds["shared"]

    def _size(self, pending: int) -> int:
        """How many of the pending sub-models go into the next pass."""
        most = min(pending, self._fit(self.batching))
        return most if self._sizes is None or self.batching == "shared" else self._sizes.next(most)

    def _fit(self, batching: str) -> int:
        """How many sub-models a pass has room for."""
        if batching == "shared":
            return self._together
        return max(1, self._examples // len(self._task)) if self._task.shares_passes else 1

    def _slices(self, examples: range, sub_models: int) -> list[slice]:
        step = max(1, self._examples // sub_models)
        starts = range(examples.start, examples.stop, step)
        return [slice(start, min(start + step, examples.stop)) for start in starts]

    def _sums(self, chunk: Sequence[bytes], batching: str, states: States, examples: range) -> Sums:
        model, heads, task = self._model, self._heads, self._task

        def layers(part: slice) -> AbstractContextManager[Any]:
            return shared(model, chunk, heads, states, (part.start, part.stop))

        with fast_attention(model), fast_rotary(self._rotations), self._drawing(task, chunk[0]):
            if batching == "shared":
                return self._added(model, task, self._slices(examples, 1), len(chunk), layers)
            with masked(model, chunk, heads):
                slices = self._slices(examples, len(chunk))
                return self._added(model, task, slices, len(chunk))

    def _added(
        self,
        model: Any,
        task: Task,
        slices: Sequence[slice],
        sub_models: int,
        around: Callable[[slice], AbstractContextManager[Any]] = nullcontext,
    ) -> Sums:
        """A task's sums over slices of its examples; one transfer from the device."""
        total: Any = 0
        with torch.inference_mode():
            for examples in slices:
                self.between_batches()
                with around(examples):
                    total = total + task.score(model, examples, sub_models)
        rows: Sums = total.tolist()
        return rows

    def _drawing(self, task: Task, key: bytes) -> AbstractContextManager[None]:
        """Seeds the generators for a sub-model, where its metric may draw from them."""
        return nullcontext() if task.one_pass else seeded(key)

    def clear(self) -> None:
        """Drop the hidden states kept for sub-models to come."""
        self._states.clear()

    def _free(self) -> None:
        """After running out of memory, give back what can be had again."""
        self._states.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _shrink(self, error: Exception, sub_models: int, examples: int) -> None:
        """After running out of memory, allow half as much in a pass; else raise on."""
        if not is_out_of_memory(error):
            raise error
        self._free()
        self.out_of_memory += 1
        if self.batching == "shared" and sub_models > 1:
            self._together = sub_models // 2
            return
        examples = min(self._examples, sub_models * examples)
        if examples == 1:
            raise InputError(
                f"one example of {self._task.seqlen} tokens does not fit in memory: "
                "give a smaller --seqlen, a smaller --dtype or another --device"
            ) from error
        self._examples = examples // 2
