"""Measurement of all variants after their searches: same task, same text, equal sparsity."""

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
from sos_deap.search.space import Space
from sos_deap.tasks.registry import make_tasks
from sos_deap.tasks.settings import TaskSettings
from sos_deap.tasks.task import Task, Tasks

#: Seed of the draw of held-out examples, the same for all runs.
HELDOUT_SEED = 0

#: Cache of the last held-out task in this process, which many jobs share.
_kept: dict[str, Task] = {}

Metrics = dict[str, dict[str, float | None]]  # by part, calibration or heldout, and by metric


class Yardstick:
    """Computes metrics of chromosomes with the task that all variants share.

    :param evaluator: the evaluator of the search, whose model is used.
    :param config: the settings of the run, with the shared task.
    :param settings: the settings of the shared task.
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
        """Return all metrics on both parts by chromosome as text; ``None`` for non-finite ones."""
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
        # No cached hidden states: those of the search are in memory already.
        return ForwardRunner(
            of.model,
            of.gene_map,
            task,
            batch_tokens=config.batch_tokens,
            batching=config.batching,
            reuse_memory=0.0,
        )


def text(chromosome: Iterable[int]) -> str:
    """Format a chromosome as a text of 0s and 1s."""
    return "".join(map(str, chromosome))


def completed(
    chromosome: Sequence[int], space: Space, others: Iterable[Sequence[int]], seed: int
) -> list[int]:
    """Return the chromosome with more genes removed, so that all compared ones remove as much.

    The additional genes are those that other chromosomes of its search remove most often.

    :param chromosome: 0/1 genes; unchanged if no further gene fits.
    :param space: the space of the search, with the maximum sparsity.
    :param others: the chromosomes that the search computed last.
    :param seed: seed of the random order of genes that are removed equally often.
    """
    counts = [0] * len(chromosome)
    for other in others:
        for gene, kept in enumerate(other):
            counts[gene] += not kept
    kept_genes = [gene for gene, keep in enumerate(chromosome) if keep]
    random.Random(seed).shuffle(kept_genes)
    kept_genes.sort(key=lambda gene: -counts[gene])  # stable: ties stay in the drawn order
    rank = {gene: place for place, gene in enumerate(kept_genes)}

    def most_often(genes: Sequence[int], count: int) -> list[int]:
        return sorted(genes, key=rank.__getitem__)[:count]

    return space.filled(chromosome, most_often)


def described(task: Task) -> dict[str, Any]:
    """Return metric and data of a task, for the report."""
    return {"metric": task.name, **task.describe()}
