"""Attach an engine's workers to an evaluator."""

from __future__ import annotations

import json
from concurrent.futures import Executor

from sos_deap.engines import ENGINES, check_engine, default_workers
from sos_deap.engines.pool import WorkerPool
from sos_deap.engines.process import ExternalExecutor
from sos_deap.errors import InputError
from sos_deap.evaluation.evaluator import Evaluator, register_local
from sos_deap.evaluation.randomness import random_state_kept


def open_engine(
    evaluator: Evaluator, engine: str | Executor = "process", workers: int | None = None
) -> None:
    """Let workers compute the sub-models of an evaluator, each with its own model.

    A search has the same result as without workers if torch has the same number of threads, since
    this process makes all decisions. Workers pay off where an evaluation takes longer
    than a message between processes. :meth:`sos_deap.Evaluator.close_engine` releases them; an
    engine that is open is closed first.

    :param evaluator: an evaluator made by :meth:`sos_deap.Evaluator.from_pretrained`.
    :param engine: ``"serial"`` for no workers, ``"process"``, ``"scoop"`` in a program that SCOOP
        has started, ``"ray"``, or an executor of ``concurrent.futures``, which is not shut down.
    :param workers: the number of workers. Default: the number of GPUs, or of cores without a GPU.
    :raises InputError: for an unknown engine, one that is not installed, and an evaluator that
        another process cannot make, as it has a model or a task in memory.
    """
    evaluator.close_engine()
    if isinstance(engine, str):
        check_engine(engine, workers)
    if engine == "serial":
        return
    recipe, count = evaluator.recipe, workers or default_workers()
    device = json.loads(recipe)["device"]
    if isinstance(engine, str) and ":" in device:
        raise InputError(
            f"device is {device}, and each worker of the engine {engine} has a GPU of its own: "
            "give --device cuda"
        )
    with random_state_kept():
        made = (
            ENGINES[engine](count) if isinstance(engine, str) else ExternalExecutor(engine, count)
        )
    register_local(recipe, evaluator)  # for workers in this process
    evaluator.attach(WorkerPool(made, recipe, evaluator.runner, evaluator.model))
