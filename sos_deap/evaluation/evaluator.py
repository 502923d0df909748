"""The evaluator of chromosomes, which can be made of names and sent to other processes."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

from sos_deap.errors import InputError
from sos_deap.evaluation.fitness import FitnessEvaluator, checked_bound
from sos_deap.evaluation.forward_options import ForwardOptions
from sos_deap.evaluation.metrics import MetricEvaluator
from sos_deap.models.loading import load_pretrained
from sos_deap.tasks.objectives import Objective, check_metric, checked_objective
from sos_deap.tasks.registry import make_tasks, resolved_task, task_kind
from sos_deap.tasks.settings import task_settings

#: Parameters of the evaluator that are flags of the command line.
OPTIONS = (
    *("genes", "channel_blocks", "sparsity_of", "max_sparsity"),
    *("time_table", "time_tokens", "time_of"),
    *ForwardOptions.__annotations__,
)


class Evaluator(FitnessEvaluator):
    """Evaluates the fitness of chromosomes on one shared model.

    The evaluator is a fitness function for DEAP's ``toolbox.evaluate``. All sub-models are computed
    with the one model in memory, as many in a forward pass as fit the token budget, each once.

    Threads may share an evaluator, or its model: each waits until no other uses it. If the weights
    of the model change (a training step, another dtype), all cached results are dropped. Changes
    through ``.data`` are not detected: call :meth:`clear` after them.

    :param model: a transformers model of a known architecture; it is put into evaluation mode.
    :param task: the metric and its data, or any function from a model to a number, which is called
        with one sub-model at a time (see :class:`sos_deap.tasks.custom.CallableTask`).
    :param objective: a name in :data:`sos_deap.tasks.objectives.OBJECTIVES`, or a function
        ``(score, sparsity) -> (fitness, ...)``.
    :param heldout: the same task on held-out examples, which a search does not use.
    :param validation: the same task on examples that choose the winner of a search; see
        :meth:`validate`.
    :param probe: the same task on examples of other data, for the report.
    :param refit_task: a task on calibration examples for refits; default: the task.
    :param refit: ``"none"``, or ``"during"``: each sub-model is evaluated with its output
        projections refitted, see :class:`sos_deap.models.compensation.Compensation`.
    :param refit_damping: damping of that refit; default: chosen.
    :param genes: what the genes stand for, joined by ``+``: ``heads`` (a query head each),
        ``groups`` (a key/value head with its query heads), ``channels`` (a block of a layer's
        feed-forward channels), ``attention`` and ``ffn`` (a whole sub-layer), or ``layers`` (both
        sub-layers).
    :param channel_blocks: number of genes of kind ``channels`` in each layer. The channels of a
        layer are put in order of importance, then cut into blocks.
    :param channel_order: for each feed-forward module its channels by decreasing importance;
        default: measured on the task's examples, in one pass.
    :param sparsity_of: what sparsity is a share of: ``"genes"``; ``"parameters"`` of the whole
        model; ``"operations"`` of a forward pass; or ``"time"``, measured on the model's device.
        Default: genes for heads or groups alone, else parameters.
    :param max_sparsity: S, the largest share removed; an individual that removes more has the worst
        fitness. Default: :data:`sos_deap.models.costs.MAX_SPARSITY`; 1 for no bound.
    :param time_table: for the sparsity of time, the file of a time table of this model, device and
        dtype, or its content, which is used as it is. Default: the times are measured.
    :param time_tokens: for the sparsity of time, number of tokens in the prompt. Default: that of
        the table, or :data:`sos_deap.models.site_times.TOKENS`, or as many as the model has
        positions.
    :param time_of: for the sparsity of time, ``"prefill"`` (a forward pass on a prompt) or
        ``"decode"`` (a step of the generation). Default: that of the table, or ``"prefill"``.
    :param batch_tokens: most tokens in a forward pass, over all sub-models in it. Default: 4,096 on
        a CPU and 32,768 elsewhere, of which masked batches use as much as is fastest.
    :param batching: ``"shared"``: each layer once for all sub-models that are equal up to it,
        without its removed units; ``"masked"``: all in a batch, with the removed units masked;
        ``"auto"``: shared where the model allows it, and on an accelerator where that is faster.
    :param reuse_memory: most gigabytes of hidden states kept of earlier sub-models, from which
        later ones with the same first layers start. Default: 1; 0 keeps none.
    :raises InputError: for an unknown architecture, kind of genes, objective, batching or measure
        of sparsity, a model without weights, and a parameter out of range.
    """

    __slots__ = ()

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
        quantize: str = "none",
        seed: int = 0,
        **settings: Any,
    ) -> Evaluator:
        """Load a model and data. The parameters are named as the flags of the command line.

        :param model: a Hub name, a local folder, or ``builtin:tiny``.
        :param dataset: a Hub name (``name:configuration``), a local file or folder of files,
            ``builtin:pydoc``, or ``builtin:self`` for text that the model writes.
        :param task: a name in :data:`sos_deap.tasks.registry.TASKS`, or a function of a model, its
            tokenizer and a list of rows (also by name, ``"module:function"``), or ``"auto"`` for
            the task that fits the model's class.
        :param objective: a name in :data:`sos_deap.tasks.objectives.OBJECTIVES`, or a function.
        :param device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
        :param dtype: ``"auto"`` (on a CPU bfloat16 if it has that in hardware, else float32;
            elsewhere as stored), ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        :param quantize: ``"none"``, or ``"int8"`` for linear layers with int8 weights, for which
            the package torchao must be installed.
        :param seed: seed of the choice of calibration examples.
        :param settings: further parameters of the evaluator, such as ``batch_tokens`` or ``genes``,
            and fields of :class:`sos_deap.tasks.settings.TaskSettings`, such as ``samples``,
            ``seqlen``, ``text_column`` or ``metric``.
        :raises InputError: for an unknown name or setting, and for a model or data that cannot be
            loaded or do not fit.
        """
        options = (*OPTIONS, "channel_order", "refit", "refit_damping")
        own = {name: settings.pop(name) for name in options if name in settings}
        chosen = task_settings(settings)
        if isinstance(task, str):
            task = resolved_task(task, model)
        task_kind(task)  # cheap checks first: loading a large model takes long
        goal = checked_objective(objective) if isinstance(objective, str) else objective
        load = partial(load_pretrained, model, device=device, dtype=dtype, quantize=quantize)
        loaded, tasks = make_tasks(task, dataset, chosen, seed, load)
        evaluator = cls(
            loaded.model,
            tasks.calibration,
            goal,
            heldout=tasks.heldout,
            validation=tasks.validation,
            probe=tasks.probe,
            refit_task=tasks.refit,
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
                "quantize": quantize,
                "seed": seed,
                **own,
                "channel_order": evaluator.gene_map.channel_order,
                "time_table": evaluator.time_table and evaluator.time_table.content(),
                **vars(chosen),
                **dict.fromkeys(_unused_by_workers(evaluator.refit)),
            }
        return evaluator

    def with_objective(
        self, objective: str | Objective | None = None, *, max_sparsity: float | None = None
    ) -> Evaluator:
        """Return an evaluator with another objective or maximum sparsity.

        It shares all else with this one: model, tasks, cached metrics, workers and accounting. A
        chromosome that either of them has evaluated is not computed again.

        :param objective: as for the constructor. Default: that of this evaluator.
        :param max_sparsity: S, from 0 to 1. Default: that of this evaluator.
        :raises InputError: for an objective that is unknown or for other metrics, and for a
            sparsity outside [0, 1].
        """
        if isinstance(objective, str):
            objective = checked_objective(objective)
        elif objective is not None and not callable(objective):
            raise InputError(f"the objective is {objective!r}: give a name or a function")
        objective = objective or self.objective
        check_metric(objective, self.task.name, self.task.greater_is_better)
        bound = self.max_sparsity if max_sparsity is None else checked_bound(max_sparsity)
        other = Evaluator.__new__(Evaluator)
        for kind in (MetricEvaluator, FitnessEvaluator, Evaluator):
            for name in set(kind.__slots__) - {"__weakref__"}:
                setattr(other, name, getattr(self, name))
        other.objective, other.max_sparsity = objective, bound
        other._validates = False
        return other

    def _drop_if_changed(self) -> bool:
        changed = super()._drop_if_changed()
        if changed:
            self._recipe = None
            self._compensate()
        return changed

    @property
    def recipe(self) -> str:
        """JSON from which another process makes an equal evaluator.

        :func:`sos_deap.evaluation.evaluator.from_recipe` does so.

        :raises InputError: for an evaluator that was not made by :meth:`from_pretrained` of names,
            or whose model was changed.
        """
        self._drop_if_changed()
        if self._recipe is None:
            raise InputError(
                "this evaluator has a model or a task in memory, or its model was changed, which "
                "cannot be sent to other processes: make it with Evaluator.from_pretrained, of "
                "names"
            )
        if "scope" not in self._recipe:  # computed once, as DEAP's own maps pickle per individual
            self._recipe["scope"] = self.scope
        return json.dumps(self._recipe)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as recipe, objective and bound, so that DEAP's maps can send ``toolbox.evaluate``.

        Copies in one process share model, cache and accounting, and nothing else.
        """
        return _unpickled, (self.recipe, self.objective, self.max_sparsity)


_local: WeakValueDictionary[str, Evaluator] = WeakValueDictionary()  # by recipe
_loaded: dict[str, Evaluator] = {}  # the last one that was loaded, by recipe


def register_local(recipe: str, evaluator: Evaluator) -> None:
    """Let :func:`from_recipe` return an evaluator of this process instead of loading a model."""
    _local[recipe] = evaluator


def find_local(recipe: str) -> Evaluator | None:
    """The evaluator of a recipe if it is in this process."""
    return _local.get(recipe) or _loaded.get(recipe)


def from_recipe(recipe: str) -> Evaluator:
    """The evaluator of a recipe in this process, loaded if it is not there.

    :param recipe: :attr:`Evaluator.recipe`.
    :raises InputError: if the model, the task or the data differ in this process.
    """
    if (found := find_local(recipe)) is not None:
        return found
    _loaded.clear()  # before the next one takes memory
    content: dict[str, Any] = json.loads(recipe)
    scope = content.pop("scope")
    made = Evaluator.from_pretrained(**content)
    if made.scope != scope:
        raise InputError(
            f"a worker on {platform.node()} has another model or other data than this process, or "
            "another metric: make them the same, with the same versions, on all hosts"
        )
    _loaded[recipe] = made
    return made


def _unpickled(recipe: str, objective: Objective, max_sparsity: float) -> Evaluator:
    return from_recipe(recipe).with_objective(objective, max_sparsity=max_sparsity)


def _unused_by_workers(refit: str) -> list[str]:
    """Return the settings of what the searching process alone does.

    It validates, refits the winner and reports. For a refit during the search, workers draw the
    same refit examples, which come after those of the validation.
    """
    refits = ["validation_samples", "refit_samples", "refit_dataset"]
    return ["probe_dataset", *(() if refit == "during" else refits)]
