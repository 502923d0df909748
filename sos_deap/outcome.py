"""What came out: quality and size of the dense and the pruned model, the latter from its files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from sos_deap.errors import InputError
from sos_deap.evaluator import Evaluator
from sos_deap.models.prune import load, prune
from sos_deap.search.chromosome import sparsity
from sos_deap.tasks.metrics import Task


def prune_and_measure(
    evaluator: Evaluator,
    heldout: Task,
    original: PreTrainedModel,
    chromosome: Sequence[int],
    folder: Path,
) -> dict[str, Any]:
    """Prune, save, load again, and measure what was loaded: the figures are those of the files.

    :param evaluator: the search's.
    :param heldout: text that the search did not see.
    :param original: the model to prune, with its weights as precise as they were stored.
    :param chromosome: one 0/1 gene per head.
    :param folder: where to save; it appears there whole, or not at all.
    :returns: the ``best`` part of ``result.json``.
    """
    beside = folder.with_name(folder.name + ".part")
    smaller: Any = prune(original, chromosome)
    # In the dtype the weights came in: computing in float32 must not double the files.
    smaller.to(evaluator.stored_dtype).save_pretrained(beside)
    del smaller  # a large model need not be in memory three times
    evaluator.tokenizer.save_pretrained(beside)
    beside.rename(folder)
    pruned: Any = load(folder, dtype=evaluator.model.dtype)
    return {
        **quality(evaluator, heldout, pruned.to(evaluator.model.device)),
        **size(pruned, evaluator.stored_dtype, sum(chromosome)),
        "sparsity": sparsity(chromosome),
        "chromosome": list(chromosome),
    }


def quality(evaluator: Evaluator, heldout: Task, model: PreTrainedModel) -> dict[str, float]:
    """The metric of a whole model, dense or pruned, on the calibration and the held-out part.

    :raises InputError: if it is not finite.
    """
    found = {
        "metric": evaluator.metric_of(model, evaluator.task),
        "heldout": evaluator.metric_of(model, heldout),
    }
    for part, value in found.items():
        if not math.isfinite(value):
            raise InputError(
                f"the model's {evaluator.task.name} ({part}) is {value}: check the model and the "
                "data, or compute with --dtype float32"
            )
    return found


def size(model: PreTrainedModel, stored_dtype: torch.dtype, heads: int) -> dict[str, int]:
    """Heads, parameters, and the bytes they take in a dtype."""
    parameters = model.num_parameters()
    return {"heads": heads, "parameters": parameters, "bytes": parameters * stored_dtype.itemsize}
