"""What all variants are measured with after their searches: one task, one text, equal sparsity."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from sos_deap.config import RunConfig
from sos_deap.evaluation.evaluator import Evaluator
from sos_deap.evaluation.forward import ForwardRunner
from sos_deap.models.loading import Pretrained
from sos_deap.tasks.registry import make_tasks
from sos_deap.tasks.settings import TaskSettings
from sos_deap.tasks.task import Task, Tasks

#: Of the draw of held-out examples, whatever the seed of a run: all are measured on the same text.
HELDOUT_SEED = 0

#: The held-out task of the last model and data of this process, which is the same for many jobs.
_kept: dict[str, Task] = {}

Metrics = dict[str, dict[str, float | None]]  # by part, calibration or heldout, and by metric


class Yardstick:
    """Metrics of chromosomes by the task that all variants share.

    :param evaluator: the search's; its model is used.
    :param config: the run's settings, with the shared task.
    :param settings: those of the shared task.
    :raises InputError: if the data does not fit the task.
    """

    def __init__(self, evaluator: Evaluator, config: RunConfig, settings: TaskSettings) -> None:
        self._evaluator, self._config = evaluator, config
        settings = replace(settings, validation_samples=None)
        seen = self._tasks(replace(settings, heldout_samples=1), config.seed)
        self.calibration = seen.calibration
        key = repr((config.model, config.dataset, config.task, config.dtype, settings))
        if key not in _kept:
            _kept.clear()
            _kept[key] = self._tasks(replace(settings, samples=1), HELDOUT_SEED).heldout
        self.heldout = _kept[key]

    def _tasks(self, settings: TaskSettings, seed: int) -> Tasks:
        of = self._evaluator
        loaded = Pretrained(of.model, of.tokenizer, of.stored_dtype)
        config = self._config
        return make_tasks(config.task, config.dataset, settings, seed, lambda _: loaded)[1]

    def measure(self, chromosomes: Iterable[Sequence[int]]) -> dict[str, Metrics]:
        """All metrics on both parts, by chromosome as text; ``None`` where one is not finite."""
        keys = list(dict.fromkeys(bytes(chromosome) for chromosome in chromosomes))
        found: dict[str, Metrics] = {text(key): {} for key in keys}
        for part, task in (("calibration", self.calibration), ("heldout", self.heldout)):
            for chunk, rows in self._passes(task).run(keys):
                for key, sums in zip(chunk, rows, strict=True):
                    metrics = task.metrics(sums)
                    found[text(key)][part] = {
                        name: value if math.isfinite(value) else None
                        for name, value in metrics.items()
                    }
        return found

    def _passes(self, task: Task) -> ForwardRunner:
        of, config = self._evaluator, self._config
        # Nothing is kept for later: the search's states are in memory already.
        return ForwardRunner(of.model, of.head_map, task, config.batch_tokens, config.batching, 0.0)


def text(chromosome: Iterable[int]) -> str:
    """A chromosome as 0s and 1s."""
    return "".join(map(str, chromosome))


def completed(
    chromosome: Sequence[int], removed: int, others: Iterable[Sequence[int]], seed: int
) -> list[int]:
    """A chromosome that removes as many heads as all others that it is compared with.

    The further heads are those that other chromosomes of its search remove most often.

    :param chromosome: 0/1 genes; one that removes enough stays as it is.
    :param removed: how many are to be 0.
    :param others: what the search computed last.
    :param seed: for the order of heads that are removed equally often.
    """
    genes = list(chromosome)
    counts = [0] * len(genes)
    for other in others:
        for gene, kept in enumerate(other):
            counts[gene] += not kept
    kept_genes = [gene for gene, keep in enumerate(genes) if keep]
    random.Random(seed).shuffle(kept_genes)
    kept_genes.sort(key=lambda gene: -counts[gene])  # stable: ties stay in the drawn order
    for gene in kept_genes[: max(0, removed - genes.count(0))]:
        genes[gene] = 0
    return genes


def described(task: Task) -> dict[str, Any]:
    """The data of a task, for the report."""
    return {"metric": task.name, **task.describe()}
