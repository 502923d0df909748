"""Forward passes of sub-models on one model, in batches that fit into memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import ModuleType
from typing import Any

import torch

from sos_deap.errors import InputError, unknown
from sos_deap.evaluation.accounting import ForwardCost
from sos_deap.evaluation.batch_size import BatchSizes
from sos_deap.evaluation.compute import Chunk, Sums
from sos_deap.evaluation.forward_options import (
    BATCH_TOKENS,
    BATCH_TOKENS_ACCELERATOR,
    BATCHING,
    REUSE_MEMORY,
)
from sos_deap.evaluation.operations import OperationCounter
from sos_deap.evaluation.randomness import seeded
from sos_deap.evaluation.uncertainty import groups_of
from sos_deap.models.attention import fast_attention
from sos_deap.models.compensation import Compensation, compensated
from sos_deap.models.genes import GeneMap
from sos_deap.models.guard import evaluating
from sos_deap.models.hidden_states import States
from sos_deap.models.importance import checked_importance, importance
from sos_deap.models.masking import masked
from sos_deap.models.memory import MEMORY_ERRORS, is_out_of_memory, one_example_fits
from sos_deap.models.rotary import fast_rotary, rotations
from sos_deap.models.sharing import shared, shares
from sos_deap.models.text import run_layers
from sos_deap.progress import read_in_turn
from sos_deap.tasks.task import Task

#: Most sub-models that share their layers in a pass: more than the paper's population of 10.
_TOGETHER = 16


class ForwardRunner:
    """Runs sub-models of one model on a task's examples.

    :param model: the model.
    :param genes: its gene map.
    :param task: the task, which computes sums over examples.
    :param cost: the cost of the passes is added to it.
    :param batch_tokens: most tokens in a forward pass: of one sub-model where layers are shared,
        else of all sub-models together. Default: :data:`BATCH_TOKENS`, of which masked batches use
        as much as is fastest.
    :param batching: one of :data:`BATCHING`.
    :param reuse_memory: most gigabytes of hidden states kept for later sub-models; default:
        :data:`REUSE_MEMORY`.
    :raises InputError: for a parameter out of range.
    """

    def __init__(
        self,
        model: Any,
        genes: GeneMap,
        task: Task,
        cost: ForwardCost | None = None,
        *,
        batch_tokens: int | None = None,
        batching: str = "auto",
        reuse_memory: float | None = None,
    ) -> None:
        self._sizes = BatchSizes() if batch_tokens is None else None
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
        self.cost = ForwardCost() if cost is None else cost
        self._model, self._genes, self._task = model, genes, task
        self._examples = max(1, batch_tokens // task.seqlen)
        self._together = _TOGETHER
        self._states = States(round(memory * 1e9))
        self._counter = OperationCounter(task, self.cost)
        self._states.on_layer = self._counter.add_layer
        self._rotations: list[ModuleType] = []
        self._chosen = False
        #: Fits the consumers of sites that lose units; ``None``: they keep their weights.
        self.compensation: Compensation | None = None
        #: Called before each forward pass; may raise to end the work.
        self.between_batches: Callable[[], Any] = lambda: None

    def run(self, pending: Sequence[bytes], part: slice = slice(None)) -> Iterator[Chunk]:
        """Compute sub-models a chunk at a time; yields each chunk with its sums.

        :param pending: the chromosomes of the sub-models, a byte 0 or 1 for each gene.
        :param part: the examples to compute them on.
        """
        examples = range(len(self._task))[part]
        while pending:
            with evaluating(self._model):
                self._choose_timed()
                chunk, sums = self._next_chunk(pending, examples)
            yield chunk, sums
            pending = pending[len(chunk) :]

    def _next_chunk(self, pending: Sequence[bytes], examples: range) -> Chunk:
        """The sums of as many of the pending sub-models as fit in a pass."""
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
                self.cost.seconds += seconds
            if self._sizes is not None and len(examples) == len(self._task):
                self._sizes.record(len(chunk), seconds)
            self._counter.add_examples(len(chunk) * len(examples), self.batching == "shared")
            return chunk, sums

    def whole(self, model: Any, task: Task) -> Sums:
        """A task's sums for a whole model, dense or pruned, by group of examples; not timed."""
        while True:
            groups = [self._slices(range(len(task))[group], 1) for group in groups_of(len(task))]
            sizes = [(group[-1].stop - group[0].start) * task.seqlen for group in groups]
            turns = read_in_turn(groups, sizes)
            try:
                with evaluating(model), self._drawing(task, b""):
                    return [self._added(model, task, group, 1)[0] for group in turns]
            except MEMORY_ERRORS as error:
                self._shrink(error, 1, len(task))

    def importance(self, name: str) -> list[float]:
        """The importance of each gene; its passes are added to the cost.

        :param name: a key of :data:`sos_deap.models.importance.IMPORTANCES`.
        :raises InputError: for an unknown name, a task that has no such importance, and if one
            example does not fit in memory.
        """
        passes = checked_importance(name, self._task, self._genes).passes
        if passes:
            with evaluating(self._model):
                self._choose()
        started = time.perf_counter()
        try:
            with (
                evaluating(self._model),
                one_example_fits(self._task.seqlen, f"the importance {name}"),
            ):
                found = importance(name, self._model, self._genes, self._task)
        finally:
            self.cost.seconds += time.perf_counter() - started
        self._counter.add_examples(passes * len(self._task), layers_added=False)
        return found

    def _choose_timed(self) -> None:
        if not self._chosen:
            started = time.perf_counter()
            self._choose()
            self.cost.seconds += time.perf_counter() - started

    @torch.inference_mode()
    def _choose(self) -> None:
        """Determine once which ways of batching are possible and which is faster."""
        if self._chosen:
            return
        if self._task.one_pass:
            self._rotations = rotations(self._model, self._genes, lambda: self._layers(1))
        one = partial(self._task.score, self._model, slice(0, 1), 1)
        self._counter.count_dense(self._model, self._genes, one)
        if self.batching != "masked" and not self._shares():
            self.batching = "masked"
        if self.batching == "auto":
            # On a CPU large batches gain nothing, and the choice must not depend on timing noise.
            on_cpu = self._model.device.type == "cpu"
            fixed = on_cpu or self.compensation is not None
            self.batching = "shared" if fixed or not self._masked_is_faster() else "masked"
        self._chosen = True  # last, since a task may raise

    def _shares(self) -> bool:
        """Whether layers can be shared; tried twice if memory runs out.

        The two ways differ in the last digits, so a short lack of memory must not change the way.
        """
        for _ in range(2):
            try:
                return shares(self._model, self._genes, lambda: self._layers(2))
            except MEMORY_ERRORS as error:
                if not is_out_of_memory(error):
                    raise
                self._free()
        return False

    def _layers(self, sub_models: int) -> Any:
        return run_layers(self._model, self._task, slice(0, 1), sub_models)

    def _masked_is_faster(self) -> bool:
        count, seconds = len(self._genes), dict[str, float]()
        some = [bytes(int((gene + i) % 5 > 0) for gene in range(count)) for i in range(8)]
        for batching in ("shared", "masked") * 2:  # the second time counts
            started, size = time.perf_counter(), self._fit(batching)
            for start in range(0, len(some), size):
                every = range(len(self._task))
                self._sums(some[start : start + size], batching, States(0), every)
            seconds[batching] = time.perf_counter() - started
        return seconds["masked"] < seconds["shared"]

    def _size(self, pending: int) -> int:
        """The number of pending sub-models that go into the next pass."""
        most = min(pending, self._fit(self.batching))
        return most if self._sizes is None or self.batching == "shared" else self._sizes.next(most)

    def _fit(self, batching: str) -> int:
        """The largest number of sub-models in a pass."""
        if batching == "shared":
            return self._together
        if not self._task.shares_passes or self.compensation is not None:
            return 1
        return max(1, self._examples // len(self._task))

    def _slices(self, examples: range, sub_models: int) -> list[slice]:
        step = max(1, self._examples // sub_models)
        starts = range(examples.start, examples.stop, step)
        return [slice(start, min(start + step, examples.stop)) for start in starts]

    def _sums(self, chunk: Sequence[bytes], batching: str, states: States, examples: range) -> Sums:
        model, genes, task = self._model, self._genes, self._task

        def layers(part: slice) -> AbstractContextManager[Any]:
            data = part.start, part.stop
            return shared(model, chunk, genes, states, data, self.compensation)

        with fast_attention(model), fast_rotary(self._rotations), self._drawing(task, chunk[0]):
            if batching == "shared":
                return self._added(model, task, self._slices(examples, 1), len(chunk), layers)
            with self._units(chunk):
                slices = self._slices(examples, len(chunk))
                return self._added(model, task, slices, len(chunk))

    def _units(self, chunk: Sequence[bytes]) -> AbstractContextManager[Any]:
        """Make the model compute with the units of sub-models, without shared layers."""
        if self.compensation is None:
            return masked(self._model, chunk, self._genes)
        return compensated(self._model, self._genes, chunk[0], self.compensation)

    def _added(
        self,
        model: Any,
        task: Task,
        slices: Sequence[slice],
        sub_models: int,
        around: Callable[[slice], AbstractContextManager[Any]] = nullcontext,
    ) -> Sums:
        """A task's sums over slices of its examples, with one transfer from the device."""
        total: Any = 0
        with torch.inference_mode():
            for examples in slices:
                self.between_batches()
                with around(examples):
                    total = total + task.score(model, examples, sub_models)
        rows: Sums = total.tolist()
        return rows

    def _drawing(self, task: Task, key: bytes) -> AbstractContextManager[None]:
        """Seed the random generators by the chromosome, for a task that may draw from them."""
        return nullcontext() if task.one_pass else seeded(key)

    def clear(self) -> None:
        """Drop the hidden states that are kept for later sub-models."""
        self._states.clear()

    def _free(self) -> None:
        self.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _shrink(self, error: Exception, sub_models: int, examples: int) -> None:
        """Halve what goes into a pass after memory ran out; raises any other error again."""
        if not is_out_of_memory(error):
            raise error
        self._free()
        self.cost.out_of_memory += 1
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
