"""Chromosomes in, fitness out: dedupe, cache, chunk, masked forward, metric, objective.

One model in memory is shared by all evaluations, and a forward pass holds as many sub-models as fit
the token budget.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from transformers import PreTrainedModel

from sos_deap.engines import ENGINES, check_engine, default_workers
from sos_deap.engines.process import ExternalExecutor
from sos_deap.engines.spread import WorkerPool
from sos_deap.engines.worker import evaluator_of, register_local
from sos_deap.errors import InputError
from sos_deap.evaluation.accounting import Accounting
from sos_deap.evaluation.cache import EvaluationCache
from sos_deap.evaluation.forward import ForwardRunner
from sos_deap.evaluation.journal import Journal
from sos_deap.evaluation.partial_scores import Span
from sos_deap.evaluation.priors import Priors
from sos_deap.evaluation.randomness import random_state_kept
from sos_deap.evaluation.store import Store
from sos_deap.models.density import MAX_SPARSITY, Sparsity, sparsity_measure
from sos_deap.models.guard import exclusive
from sos_deap.models.heads import HeadMap, head_map, is_masked
from sos_deap.models.identity import fingerprint, state
from sos_deap.models.loading import load_pretrained
from sos_deap.search.chromosome import WORST_FITNESS, within
from sos_deap.tasks.custom import CallableTask
from sos_deap.tasks.objectives import Objective, checked_objective
from sos_deap.tasks.registry import make_tasks, resolved_task, task_kind
from sos_deap.tasks.settings import task_settings
from sos_deap.tasks.task import Task

#: Parameters of the evaluator that a command line sets.
OPTIONS = ("batch_tokens", "unit", "sparsity_of", "batching", "reuse_memory", "max_sparsity")

_T = TypeVar("_T")


class Evaluator:
    """Evaluates chromosomes on one shared model.

    Threads may share an evaluator, or the model: each waits until no other uses it. A model whose
    weights were changed (a training step, another dtype) is noticed: what was computed before is
    dropped. Changes through ``.data`` are not noticed: call :meth:`clear` after them.

    :param model: a transformers model of a known architecture; it is put into evaluation mode.
    :param task: the metric and its data, or any function from a model to a number; that is called
        with one sub-model at a time (see :class:`sos_deap.tasks.custom.CallableTask`).
    :param objective: a name in :data:`sos_deap.tasks.objectives.OBJECTIVES`, or a function
        ``(score, sparsity) -> (fitness, ...)``.
    :param batch_tokens: most tokens in a forward pass, over all sub-models in it; ``None`` for
        4,096 on a CPU and 32,768 elsewhere, and in masked batches as much of that as is fastest.
    :param heldout: the same task on text that the search must not see, if there is any.
    :param validation: the same task on text to choose the winner by, if there is any; see
        :meth:`validate`.
    :param unit: what a gene stands for: ``"head"``, or ``"group"`` for a key/value head with all
        its query heads.
    :param sparsity_of: what sparsity is a share of: ``"heads"``, or ``"parameters"`` of the model.
    :param batching: ``"shared"``: each layer once for all sub-models that agree so far, without its
        removed heads; ``"masked"``: all in a batch, with the removed heads masked; ``"auto"``:
        shared where the model allows it, and on an accelerator where that is faster.
    :param reuse_memory: most gigabytes of hidden states to keep of earlier sub-models, whose first
        layers a new one may share; ``None`` for 1, 0 for none.
    :param max_sparsity: S, the largest share removed; an individual that removes more has the worst
        fitness. ``None`` for :data:`sos_deap.models.density.MAX_SPARSITY`, 1 for no bound.
    :raises InputError: for an unknown architecture, unit, objective or measure of sparsity, or a
        budget below one token.
    """

    # Without an instance dictionary DEAP's Toolbox.register cannot copy the model into a partial.
    __slots__ = (
        "__weakref__",
        "_known",
        "_lock",
        "_priors",
        "_recipe",
        "_spread",
        "_validates",
        "accounting",
        "head_map",
        "heldout",
        "max_sparsity",
        "model",
        "objective",
        "passes",
        "sparsity",
        "sparsity_of",
        "stored_dtype",
        "task",
        "tokenizer",
        "validation",
    )

    def __init__(
        self,
        model: PreTrainedModel,
        task: Task | Callable[[Any], Any],
        objective: str | Objective = "paper",
        batch_tokens: int | None = None,
        heldout: Task | None = None,
        unit: str = "head",
        sparsity_of: str = "heads",
        batching: str = "auto",
        reuse_memory: float | None = None,
        validation: Task | None = None,
        max_sparsity: float | None = None,
    ) -> None:
        if model.device.type == "meta":
            raise InputError("the model is on the device meta, without weights: load it on another")
        self.model: PreTrainedModel = model.eval()
        self.task: Task = CallableTask(task) if callable(task) else task
        self.heldout = heldout
        self.objective = checked_objective(objective) if isinstance(objective, str) else objective
        self.head_map: HeadMap = head_map(model, unit)
        self.sparsity_of = sparsity_of
        self.sparsity: Sparsity = sparsity_measure(model, self.head_map, sparsity_of)
        self.max_sparsity = MAX_SPARSITY[sparsity_of] if max_sparsity is None else max_sparsity
        if not 0 <= self.max_sparsity <= 1:
            raise InputError(f"max_sparsity is {max_sparsity}: a sparsity lies in [0, 1]")
        self.accounting = Accounting(tokens=self.task.reference_tokens)
        self.tokenizer: Any = None
        self.stored_dtype: torch.dtype = model.dtype
        #: The same on the examples that choose the winner; nothing is kept for later.
        self.validation: Evaluator | None = None
        if validation is not None:
            self.validation = Evaluator(
                model,
                validation,
                self.objective,
                batch_tokens,
                unit=unit,
                sparsity_of=sparsity_of,
                batching=batching,
                reuse_memory=0.0,
                max_sparsity=max_sparsity,
            )
        #: How it goes through the model.
        self.passes = ForwardRunner(
            model, self.head_map, self.task, batch_tokens, batching, reuse_memory
        )
        self._known = EvaluationCache(self.passes, self.task, self.accounting, state(model))
        self._priors = Priors(len(self.head_map), self.passes, self.task, self.accounting)
        self._recipe: dict[str, Any] | None = None
        self._spread: WorkerPool | None = None
        self._validates = False
        self._lock = threading.RLock()

    @classmethod
    def from_pretrained(
        cls,
        model: str = "builtin:tiny",
        *,
        dataset: str = "builtin:pydoc",
        task: str | Callable[..., Any] = "auto",
        objective: str | Objective = "paper",
        device: str = "auto",
        dtype: str = "auto",
        seed: int = 0,
        **settings: Any,
    ) -> Evaluator:
        """Load a model and data. The names are those of the command line's flags.

        :param model: a Hub name, a local folder, or ``builtin:tiny``.
        :param dataset: a Hub name (``name:configuration``), a local file or folder of files,
            ``builtin:pydoc``, or ``builtin:self`` for text that the model writes.
        :param task: a name in :data:`sos_deap.tasks.registry.TASKS`, or a function of a model, its
            tokenizer and a list of rows (``"module:function"`` names one), or ``"auto"`` for the
            task that fits the model's class.
        :param objective: a name in :data:`sos_deap.tasks.objectives.OBJECTIVES`, or a function.
        :param device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
        :param dtype: ``"auto"`` (on a CPU bfloat16 if it has that in hardware, else float32;
            elsewhere as stored), ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        :param seed: for the choice of calibration examples.
        :param settings: further parameters of the evaluator, such as ``batch_tokens`` or ``unit``,
            and fields of :class:`sos_deap.tasks.settings.TaskSettings`, such as ``samples``,
            ``seqlen``, ``text_column`` or ``metric``.
        :raises InputError: for anything that is not there or does not fit.
        """
        own = {name: settings.pop(name) for name in OPTIONS if name in settings}
        chosen = task_settings(settings)
        if isinstance(task, str):
            task = resolved_task(task, model)
        task_kind(task)  # the cheap checks first: a large model takes its time
        goal = checked_objective(objective) if isinstance(objective, str) else objective
        loaded, tasks = make_tasks(
            task, dataset, chosen, seed, partial(load_pretrained, model, device=device, dtype=dtype)
        )
        evaluator = cls(
            loaded.model,
            tasks.calibration,
            goal,
            heldout=tasks.heldout,
            validation=tasks.validation,
            **own,
        )
        evaluator.tokenizer, evaluator.stored_dtype = loaded.tokenizer, loaded.stored_dtype
        if isinstance(task, str):
            evaluator._recipe = {
                "model": model,
                "dataset": dataset,
                "task": task,
                "device": device,
                "dtype": str(loaded.model.dtype).removeprefix("torch."),
                "seed": seed,
                **own,
                **vars(chosen),
                "validation_samples": None,  # is for the searching process
            }
        return evaluator

    @property
    def batching(self) -> str:
        """How sub-models go through the model; what ``"auto"`` chose, once some were computed."""
        return self.passes.batching

    @property
    def objectives(self) -> int:
        """How many values the objective gives."""
        return len(self.objective(-1.0, 0.0))

    @property
    def _worst(self) -> tuple[float, ...]:
        return (WORST_FITNESS,) * self.objectives

    def spent(self) -> dict[str, float]:
        """What a search has had, from the model or from the store, for its limits.

        ``evaluations`` of chromosomes, each counted once, one on some of the examples as the share
        that these are of all; and ``tokens``.
        """
        counted, each = self.accounting, self.task.tokens
        tokens = counted.tokens + counted.store_tokens
        computed = counted.forward_evaluations + counted.store_hits
        return {"evaluations": tokens / each if each else computed, "tokens": tokens}

    def __call__(
        self, individual: Sequence[int], max_sparsity: float | None = None
    ) -> tuple[float, ...]:
        """The fitness values of one individual; see :meth:`many`."""
        return self.many([individual], max_sparsity)[0]

    def many(
        self, individuals: Iterable[Sequence[int]], max_sparsity: float | None = None
    ) -> list[tuple[float, ...]]:
        """The fitness values of several individuals, in order.

        A metric or fitness that is NaN or infinite becomes the worst fitness. Within
        :meth:`validating` the examples are those for validation.

        :param individuals: chromosomes of 0/1 genes, one gene per head. One with an attribute
            ``examples``, a pair ``(start, stop)``, is scored on those calibration examples alone.
        :param max_sparsity: individuals that remove more get the worst fitness without a forward
            pass; ``None`` for the evaluator's own, 1 for no bound.
        :raises InputError: for a chromosome that does not fit the model.
        """
        several = list(individuals)
        if self._validates:  # on all of those examples, whichever of the others it was scored on
            plain = [list(individual) for individual in several]
            return self._validated(lambda other: other.many(plain, max_sparsity))
        with self._lock:
            return self._many(several, max_sparsity)

    def _many(
        self, individuals: list[Sequence[int]], max_sparsity: float | None
    ) -> list[tuple[float, ...]]:
        bound = self.max_sparsity if max_sparsity is None else max_sparsity
        self._notice_changes()
        keys = [self._key(individual) for individual in individuals]
        shares = [self.sparsity(key) for key in keys]
        fitnesses = [self._worst] * len(keys)
        by_span: dict[Span | None, list[int]] = {}
        for i, share in enumerate(shares):
            if within(share, bound):
                by_span.setdefault(self._span(individuals[i]), []).append(i)
        for span, numbers in by_span.items():
            metrics = self._known.metrics([keys[i] for i in numbers], span)
            for i, metric in zip(numbers, metrics, strict=True):
                fitnesses[i] = self._fitness(metric, shares[i])
        infeasible = len(keys) - sum(map(len, by_span.values()))
        self.accounting.evaluations += infeasible
        self.accounting.infeasible += infeasible
        return fitnesses

    @contextmanager
    def validating(self) -> Iterator[None]:
        """Evaluate on the validation examples inside; their tokens count as those of the search.

        So whatever wraps the evaluator (a penalty, a function registered as ``evaluate``) judges on
        them, too.

        :raises InputError: if there are no such examples.
        """
        if self.validation is None:
            raise InputError("there is nothing to validate on: give the evaluator such examples")
        self._validates = True
        try:
            yield
        finally:
            self._validates = False

    def validate(self, individuals: Iterable[Sequence[int]]) -> list[tuple[float, ...]]:
        """The fitness values of several individuals on the validation examples, in order.

        :raises InputError: as :meth:`validating` does, and for a chromosome that does not fit.
        """
        with self.validating():
            return self.many(individuals)

    def _validated(self, compute: Callable[[Evaluator], list[_T]]) -> list[_T]:
        """What the evaluator for validation computes, whose tokens count here."""
        assert self.validation is not None
        counted = self.validation.accounting
        before = counted.tokens if counted.evaluations else 0  # the dense model's, the first time
        found = compute(self.validation)
        self.accounting.tokens += counted.tokens - before
        return found

    def metric(self, individual: Sequence[int]) -> float:
        """The task's metric of one individual on the calibration data."""
        return self.metrics([individual])[0]

    def metrics(self, individuals: Iterable[Sequence[int]]) -> list[float]:
        """The task's metric of several individuals, in order; may be NaN or infinite."""
        keys = [self._key(individual) for individual in individuals]
        if self._validates:
            return self._validated(lambda other: other.metrics(keys))
        with self._lock:
            self._notice_changes()
            return self._known.metrics(keys)

    def open_store(self, path: str | Path) -> None:
        """Keep every evaluation in a file, and take from it what other runs have computed.

        :param path: an SQLite file (see :class:`sos_deap.evaluation.store.Store`), made where there
            is none. It may hold evaluations of other models, tasks and data, and be in use by
            others. One that fails later is done without, with a warning.
        :raises InputError: for a file that cannot be written, or is of another kind.
        """
        self.close_store()
        self._known.store = Store(Path(path), self.scope)

    def open_journal(
        self,
        path: str | Path,
        claim: Callable[[], Any] = lambda: None,
        settings: Mapping[str, Any] | None = None,
    ) -> Journal:
        """Write all that is computed into a file, and take from it what is there.

        With the file of a run that was stopped, the same search goes on where it was, to the bit.
        What the journal holds is accounted as computed, but for layers, operations and seconds.

        :param path: the file of a :class:`sos_deap.evaluation.journal.Journal`, made where there is
            none.
        :param claim: called once no other process can have it, before it is read or written.
        :param settings: those of a run, to be kept in it.
        :returns: the journal, which no other process can open as long as it is open.
        :raises InputError: for a file that cannot be written, or is another run's.
        """
        self.close_journal()
        journal = Journal(Path(path), self.scope, self.task.metrics, claim, settings)
        self._known.scores.journal = journal
        return journal

    def close_journal(self) -> None:
        """Let go of the file, if there is one."""
        scores = self._known.scores
        if scores.journal is not None:
            scores.journal.close()
            scores.journal = None

    def close_store(self) -> None:
        """Let go of the file, if there is one."""
        if self._known.store is not None:
            self._known.store.close()
            self._known.store = None

    def open_engine(self, engine: str | Executor = "process", workers: int | None = None) -> None:
        """Let workers compute, each with a model of its own, which it makes once.

        A search has the same result as without, if torch has as many threads: what decides stays
        here. Meant for evaluations that take longer than a message.

        :param engine: ``"serial"`` for none, ``"process"``, ``"scoop"`` in a program that SCOOP has
            started, ``"ray"``, or an executor of ``concurrent.futures``, which stays the caller's.
        :param workers: how many; ``None`` for one for each GPU, or core where there is none.
        :raises InputError: for an unknown engine, one that is not installed, and an evaluator that
            no other process could make: only names can travel (see :meth:`from_pretrained`).
        """
        self.close_engine()
        self._notice_changes()
        if isinstance(engine, str):
            check_engine(engine, workers)
        if engine == "serial":
            return
        recipe, count = self.recipe, workers or default_workers()
        if isinstance(engine, str) and self._recipe and ":" in self._recipe["device"]:
            raise InputError(
                f"device is {self._recipe['device']}, and each worker of the engine {engine} has a "
                "GPU of its own: give --device cuda"
            )
        with random_state_kept():
            made = (
                ENGINES[engine](count)
                if isinstance(engine, str)
                else ExternalExecutor(engine, count)
            )
        register_local(recipe, self)  # to what runs in this process
        self._spread = WorkerPool(made, recipe, self.passes)
        self._known.scores.run = self._spread.run

    def close_engine(self, at_once: bool = False) -> None:
        """Let the workers go, if there are any, after what they are at or at once."""
        if self._spread is not None:
            self._spread.close(at_once)
            self._spread, self._known.scores.run = None, self.passes.run

    @property
    def recipe(self) -> str:
        """What another process makes an equal evaluator of, as JSON.

        :raises InputError: for one that was not made of names by :meth:`from_pretrained`.
        """
        if self._recipe is None:
            raise InputError(
                "this evaluator is made of a model or a task in memory, or its model was changed, "
                "which does not travel to other processes: make it with Evaluator.from_pretrained, "
                "of names"
            )
        if "scope" not in self._recipe:  # once: under DEAP's own maps each individual asks
            self._recipe["scope"] = self.scope
        return json.dumps(self._recipe)

    def __reduce__(self) -> tuple[Any, ...]:
        """Its recipe, objective and bound: so it goes where DEAP's ``toolbox.evaluate`` is sent.

        Copies in one process share model, cache and accounting, and nothing else.
        """
        return _remade, (self.recipe, self.objective, self.max_sparsity)

    @property
    def scope(self) -> str:
        """All that a metric depends on, as text."""
        data = {name: value for name, value in self.task.describe().items() if name != "split"}
        scope = {
            "model": fingerprint(self.model),
            "unit": self.head_map.unit,
            "metric": self.task.name,
            "data": data,
            "dtype": str(self.model.dtype),
            "padding": str(getattr(self.model.config, "pad_token_id", None)),
            "transformers": transformers.__version__,
        }
        return json.dumps(scope, sort_keys=True)

    def _span(self, individual: Sequence[int]) -> Span | None:
        """The examples that an individual is to be scored on; ``None`` for all."""
        span, count = getattr(individual, "examples", None), len(self.task)
        if span is None:
            return None
        whole = isinstance(span, tuple | list) and all(type(number) is int for number in span)
        if not (whole and len(span) == 2 and 0 <= span[0] < span[1] <= count):
            raise InputError(
                f"an individual's examples are {span!r}: the task has {count}, give None for all, "
                f"or a pair of a start from 0 and a greater stop up to {count}"
            )
        return None if tuple(span) == (0, count) else (span[0], span[1])

    def importance(self, name: str) -> list[float]:
        """How much each gene matters to the whole model, computed once.

        It counts as the tokens of as many evaluations as :meth:`importance_cost` says.

        :param name: one of :data:`sos_deap.evaluation.priors.PRIORS`: ``"ablation"``, the metric
            that is lost without the gene alone (Michel, Levy and Neubig, 2019), or a key of
            :data:`sos_deap.models.importance.IMPORTANCES`.
        :returns: a number for each gene; the greater, the more is lost without it.
        :raises InputError: for an unknown name, and a task that does not serve: ``"taylor"`` needs
            one with a loss, such as perplexity.
        """
        with self._lock:
            self._notice_changes()
            return self._priors.get(name, self.metrics)

    def importance_cost(self, name: str) -> float:
        """What an importance costs, in evaluations on all calibration examples.

        One a gene and one for ``"ablation"``; none for ``"magnitude"``, which reads weights alone;
        three for ``"taylor"``, the one with backward passes; one for the others.

        :raises InputError: as :meth:`importance` does.
        """
        return self._priors.cost(name)

    def metric_of(self, model: PreTrainedModel, task: Task) -> float:
        """A task's metric of a whole model, dense or pruned, without masks; not accounted."""
        return self.metrics_of(model, task)[task.name]

    def metrics_of(self, model: PreTrainedModel, task: Task) -> dict[str, float]:
        """All of a task's metrics of a whole model, by name."""
        with self._lock:
            return task.metrics(self.passes.whole(model, task))

    def cached(self, individual: Sequence[int]) -> float | None:
        """The metric of an individual that was computed before, else ``None``; not accounted."""
        return self._known.get(self._key(individual))

    def history(self) -> Iterator[tuple[list[int], float]]:
        """Every chromosome computed so far, in order, with its metric."""
        return ((list(key), metric) for key, metric in self._known)

    def clear(self) -> None:
        """Leave nothing of sub-models in memory; store and journal keep what they have."""
        with self._lock:
            self._known.clear()
            self._priors.clear()
            if self.validation is not None:
                self.validation.clear()

    @contextmanager
    def interruptible(self, check: Callable[[], Any]) -> Iterator[None]:
        """Call a function before each forward pass inside.

        :param check: may raise to end the work; what is complete by then is kept.
        """
        before = self.passes.between_batches

        def both() -> None:
            before()
            check()

        self.passes.between_batches = both
        try:
            yield
        finally:
            self.passes.between_batches = before

    def _notice_changes(self) -> None:
        """Drop what was computed with other weights than the model has now.

        :raises InputError: if it was changed while a journal or workers depend on what it was, and
            inside :func:`sos_deap.masked`.
        """
        with exclusive(self.model):
            now = state(self.model)
            if is_masked(self.model, self.head_map):
                raise InputError(
                    "the model is inside masked(), whose heads would be missing from every "
                    "sub-model: use the evaluator outside of it"
                )
        if now == self._known.model_state:
            return
        if self._known.scores.journal is not None or self._spread is not None:
            raise InputError(
                "the model was changed while a journal or an engine is open, which are for the "
                "model as it was: close them first"
            )
        self._known.model_state, self._recipe = now, None
        self.clear()
        if self._known.store is not None:
            self.open_store(self._known.store.path)

    def _key(self, individual: Sequence[int]) -> bytes:
        return bytes(map(int, self.head_map.checked(individual)))

    def _fitness(self, metric: float, removed: float) -> tuple[float, ...]:
        if not math.isfinite(metric):
            return self._worst
        score = metric if self.task.greater_is_better else -metric
        fitness = self.objective(score, removed)
        return fitness if all(map(math.isfinite, fitness)) else self._worst


def _remade(recipe: str, objective: Objective, max_sparsity: float) -> Evaluator:
    """An evaluator for the model of a recipe, in the process that it has come to."""
    return _sharing(evaluator_of(recipe), objective, max_sparsity)


def _sharing(evaluator: Evaluator, objective: Objective, max_sparsity: float) -> Evaluator:
    """An evaluator with an objective and a bound of its own, and all else shared."""
    other = Evaluator.__new__(Evaluator)
    for name in Evaluator.__slots__:
        if name != "__weakref__":
            setattr(other, name, getattr(evaluator, name))
    other.objective, other.max_sparsity = objective, max_sparsity
    if evaluator.validation is not None:
        other.validation = _sharing(evaluator.validation, objective, max_sparsity)
    return other


def batched_map(function: Callable[..., Any], individuals: Iterable[Sequence[int]]) -> list[Any]:
    """A ``map`` for DEAP's toolbox that hands an evaluator its whole batch at once.

    :param function: an :class:`Evaluator`, or ``toolbox.evaluate`` registered from one; anything
        else is mapped one at a time.
    :param individuals: what to map it over.
    :returns: one result per individual, in order.
    """
    evaluator = function.func if isinstance(function, partial) else function
    if not isinstance(evaluator, Evaluator):
        return list(map(function, individuals))
    keywords = function.keywords if isinstance(function, partial) else {}
    return list(evaluator.many(individuals, **keywords))
