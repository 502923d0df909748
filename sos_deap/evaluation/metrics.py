"""The metric of sub-models of one model in memory: batched, cached, kept in files."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Unpack

from transformers import PreTrainedModel

from sos_deap.errors import InputError
from sos_deap.evaluation.accounting import Accounting
from sos_deap.evaluation.cache import EvaluationCache
from sos_deap.evaluation.channels import measured_genes
from sos_deap.evaluation.compute import ComputeEngine, Sums
from sos_deap.evaluation.forward import ForwardRunner
from sos_deap.evaluation.forward_options import ForwardOptions
from sos_deap.evaluation.journal import Journal
from sos_deap.evaluation.partial_scores import PartialScores
from sos_deap.evaluation.priors import Priors
from sos_deap.evaluation.scope import scope_of
from sos_deap.evaluation.store import Store
from sos_deap.evaluation.uncertainty import added
from sos_deap.models.find_genes import ChannelOrder
from sos_deap.models.genes import CHANNEL_BLOCKS, GeneMap
from sos_deap.models.guard import exclusive
from sos_deap.models.identity import state
from sos_deap.models.masking import is_masked
from sos_deap.tasks.task import Task


class MetricEvaluator:
    """Evaluates a task's metric of sub-models, each once.

    Threads may share it, or its model: each waits until no other uses it. If the weights of the
    model change (a training step, another dtype), all cached results are dropped. Changes through
    ``.data`` are not detected: call :meth:`clear` after them.

    :param model: a transformers model of a known architecture; it is put into evaluation mode.
    :param task: the metric and its data.
    :param genes: what the genes stand for; see :func:`sos_deap.gene_map`.
    :param channel_blocks: number of genes of kind ``channels`` in each layer.
    :param channel_order: for each feed-forward module its channels by decreasing importance;
        default: measured on the task's examples, if there are genes of kind ``channels``.
    :param forward: options of :class:`sos_deap.evaluation.forward.ForwardRunner`.
    :raises InputError: for an unknown architecture, kind of genes or batching, a model without
        weights, and a parameter out of range.
    """

    # Without an instance dictionary DEAP's Toolbox.register cannot copy the model into a partial.
    __slots__ = (
        "__weakref__",
        "_cache",
        "_engine",
        "_forward",
        "_lock",
        "_priors",
        "_scores",
        "_state",
        "accounting",
        "gene_map",
        "model",
        "runner",
        "task",
    )

    def __init__(
        self,
        model: PreTrainedModel,
        task: Task,
        genes: str = "heads",
        *,
        channel_blocks: int = CHANNEL_BLOCKS,
        channel_order: ChannelOrder | None = None,
        **forward: Unpack[ForwardOptions],
    ) -> None:
        if model.device.type == "meta":
            raise InputError("the model is on the device meta, without weights: load it on another")
        self.model: PreTrainedModel = model.eval()
        self.task = task
        self.gene_map: GeneMap = measured_genes(model, task, genes, channel_blocks, channel_order)
        #: The cost of all evaluations so far.
        self.accounting = Accounting(len(task), tokens=task.reference_tokens)
        if self.gene_map.channel_order is not None:
            # Also if the order is given, so that a run that resumes counts as it did before.
            self.accounting.tokens += task.tokens
        self._forward = forward
        #: Runs the forward passes of this process.
        self.runner = ForwardRunner(model, self.gene_map, task, self.accounting.forward, **forward)
        layers = len(self.gene_map.attention)
        self._scores = PartialScores(self.runner.run, task, layers, self.accounting)
        self._cache = EvaluationCache(self._scores, task, self.accounting)
        self._priors = Priors(self.gene_map, self.runner, task, self.accounting)
        self._state = state(model)
        self._engine: ComputeEngine | None = None
        self._lock = threading.RLock()

    @property
    def batching(self) -> str:
        """How sub-models are batched; the way that ``"auto"`` chose, once some were computed."""
        return self.runner.batching

    def metric(self, individual: Sequence[int]) -> float:
        """The task's metric of one individual on all calibration examples."""
        return self.metrics([individual])[0]

    def metrics(self, individuals: Iterable[Sequence[int]]) -> list[float]:
        """The task's metric of several individuals on all calibration examples.

        :param individuals: chromosomes of 0/1 genes.
        :returns: a metric for each, in order; may be NaN or infinite.
        :raises InputError: for a chromosome that does not fit the model.
        """
        keys = [self._key(individual) for individual in individuals]
        with self._lock:
            self._drop_if_changed()
            return self._cache.metrics(keys)

    def cached(self, individual: Sequence[int]) -> float | None:
        """The metric of an individual if it is cached, else ``None``; not counted."""
        return self._cache.get(self._key(individual))

    def history(self) -> Iterator[tuple[list[int], float]]:
        """Every chromosome evaluated on all examples with its metric, in order of evaluation."""
        return ((list(key), metric) for key, metric in self._cache)

    def clear(self) -> None:
        """Drop all results of sub-models in memory; the store and the journal are unchanged."""
        with self._lock:
            self._cache.clear()
            self._priors.clear()
            self.runner.clear()

    def importance(self, name: str) -> list[float]:
        """The importance of each gene for the whole model, computed once.

        Its tokens are counted as those of :meth:`importance_cost` evaluations.

        :param name: one of :data:`sos_deap.evaluation.priors.PRIORS`: ``"ablation"``, the loss of
            the metric without the gene alone (Michel, Levy and Neubig, 2019), or a key of
            :data:`sos_deap.models.importance.IMPORTANCES`.
        :returns: a number for each gene; the greater, the more is lost without it.
        :raises InputError: for an unknown name, and for a task that does not support it:
            ``"taylor"`` needs a loss, as perplexity has.
        """
        with self._lock:
            self._drop_if_changed()
            return self._priors.get(name, self.metrics)

    def importance_cost(self, name: str) -> float:
        """The cost of an importance, in evaluations on all calibration examples.

        For ``"ablation"`` it is one evaluation per gene and one more; for ``"magnitude"``, which
        only reads weights, 0; for ``"taylor"``, which has backward passes, 3; for all others 1.

        :raises InputError: as :meth:`importance` does.
        """
        return self._priors.cost(name)

    def metrics_of(self, model: PreTrainedModel, task: Task) -> dict[str, float]:
        """All of a task's metrics of a whole model, dense or pruned, by name; not counted."""
        return task.metrics(added(self.sums_of(model, task)))

    def metrics_on(
        self, task: Task, individuals: Sequence[Sequence[int]]
    ) -> list[dict[str, float]]:
        """All metrics of sub-models on the examples of a task, by name; not cached nor counted."""
        options: ForwardOptions = {**self._forward, "reuse_memory": 0.0}
        runner = ForwardRunner(self.model, self.gene_map, task, **options)
        runner.compensation = self.runner.compensation
        with self._lock:
            chunks = runner.run([bytes(individual) for individual in individuals])
            return [task.metrics(sums) for _, rows in chunks for sums in rows]

    def sums_of(self, model: PreTrainedModel, task: Task) -> Sums:
        """A task's sums for a whole model, dense or pruned, by group of examples; not counted.

        The groups are those of :func:`sos_deap.evaluation.uncertainty.groups_of`.
        """
        with self._lock:
            return self.runner.whole(model, task)

    def open_store(self, path: str | Path) -> None:
        """Write every evaluation into a file, and read those of other runs from it.

        :param path: an SQLite file (see :class:`sos_deap.evaluation.store.Store`), created if it
            does not exist. It may hold evaluations of other models, tasks and data, and other
            processes may use it at the same time. If it fails later, a warning is logged and it is
            not used any more.
        :raises InputError: for a file that cannot be written, or is of another kind.
        """
        self.close_store()
        self._cache.store = Store(Path(path), self.scope)

    def close_store(self) -> None:
        """Close the store, if one is open."""
        if self._cache.store is not None:
            self._cache.store.close()
            self._cache.store = None

    def open_journal(
        self,
        path: str | Path,
        claim: Callable[[], Any] = lambda: None,
        settings: Mapping[str, Any] | None = None,
    ) -> Journal:
        """Write all computed sums into a file, and use those which are in it.

        With the journal of a run that was stopped, the same search resumes where it was, bit for
        bit. The content of the journal is counted as computed, except layers, operations and
        seconds.

        :param path: the file of a :class:`sos_deap.evaluation.journal.Journal`, created if it does
            not exist.
        :param claim: called once the file is locked, before it is read or written.
        :param settings: settings of the run, to be kept in the file.
        :returns: the journal, which no other process can open until it is closed.
        :raises InputError: for a file that cannot be written, or belongs to another run.
        """
        self.close_journal()
        journal = Journal(Path(path), self.scope, self.task.metrics, claim, settings)
        self._scores.journal = journal
        return journal

    def close_journal(self) -> None:
        """Close the journal, if one is open."""
        if self._scores.journal is not None:
            self._scores.journal.close()
            self._scores.journal = None

    def attach(self, engine: ComputeEngine) -> None:
        """Let an engine's workers compute; see :func:`sos_deap.open_engine`."""
        self.close_engine()
        self._engine, self._scores.compute = engine, engine.compute

    def close_engine(self, at_once: bool = False) -> None:
        """Release the workers, if there are any, and compute in this process again.

        :param at_once: end the workers' current work.
        """
        if self._engine is not None:
            self._engine.close(at_once)
            self._engine, self._scores.compute = None, self.runner.run

    @contextmanager
    def interruptible(self, check: Callable[[], Any]) -> Iterator[None]:
        """Call a function before each forward pass inside the context.

        :param check: may raise to end the work; what is complete by then is kept.
        """
        before = self.runner.between_batches

        def both() -> None:
            before()
            check()

        self.runner.between_batches = both
        try:
            yield
        finally:
            self.runner.between_batches = before

    @property
    def scope(self) -> str:
        """Everything that a metric depends on, as JSON: model, genes, metric, data, dtype, ..."""
        return scope_of(self.model, self.gene_map, self.task, self.runner.compensation)

    def _drop_if_changed(self) -> bool:
        """Drop all results if the model's weights have changed; returns whether they have.

        :raises InputError: if they changed while a journal or an engine is open, and inside
            :func:`sos_deap.masked`.
        """
        with exclusive(self.model):
            now = state(self.model)
            if is_masked(self.model, self.gene_map):
                raise InputError(
                    "the model is inside masked(), whose removed units would be missing from every "
                    "sub-model: use the evaluator outside of it"
                )
        if now == self._state:
            return False
        if self._scores.journal is not None or self._engine is not None:
            raise InputError(
                "the model was changed while a journal or an engine is open, which belong to the "
                "unchanged model: close them first"
            )
        self._state = now
        self.clear()
        if self._cache.store is not None:
            self.open_store(self._cache.store.path)
        return True

    def _key(self, individual: Sequence[int]) -> bytes:
        return bytes(map(int, self.gene_map.checked(individual)))
