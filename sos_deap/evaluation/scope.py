"""Everything that a metric depends on, as text."""

from __future__ import annotations

import json

import transformers
from transformers import PreTrainedModel

from sos_deap.models.genes import HeadMap
from sos_deap.models.identity import fingerprint
from sos_deap.tasks.task import Task


def scope_of(model: PreTrainedModel, heads: HeadMap, task: Task) -> str:
    """The scope of a metric as JSON; two evaluations with the same scope have the same result.

    :param model: the model, of which the fingerprint, the dtype and the padding count.
    :param heads: its head map.
    :param task: the task, of which the metric and the data count.
    """
    data = {name: value for name, value in task.describe().items() if name != "split"}
    scope = {
        "model": fingerprint(model),
        "unit": heads.unit,
        "metric": task.name,
        "data": data,
        "dtype": str(model.dtype),
        "padding": str(getattr(model.config, "pad_token_id", None)),
        "transformers": transformers.__version__,
    }
    return json.dumps(scope, sort_keys=True)
