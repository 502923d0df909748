"""Everything that a metric depends on, as text."""

from __future__ import annotations

import json

import transformers
import xxhash
from transformers import PreTrainedModel

from sos_deap.models.compensation import Compensation
from sos_deap.models.genes import GeneMap
from sos_deap.models.identity import fingerprint
from sos_deap.tasks.task import Task

_UNITS = {"heads": "head", "groups": "group"}


def scope_of(
    model: PreTrainedModel, genes: GeneMap, task: Task, compensation: Compensation | None = None
) -> str:
    """The scope of a metric as JSON; two evaluations with the same scope have the same result.

    :param model: the model, of which the fingerprint, the dtype and the padding count.
    :param genes: its gene map; the order of the channels counts.
    :param task: the task, of which the metric and the data count.
    :param compensation: the refit of each sub-model, of which the damping and the data count.
    """
    data = {name: value for name, value in task.describe().items() if name != "split"}
    scope = {
        "model": fingerprint(model),
        **_genes(genes),
        "metric": task.name,
        "data": data,
        "dtype": str(model.dtype),
        "padding": str(getattr(model.config, "pad_token_id", None)),
        "transformers": transformers.__version__,
        **({} if compensation is None else {"refit": compensation.describe()}),
    }
    return json.dumps(scope, sort_keys=True)


def _genes(genes: GeneMap) -> dict[str, str | int]:
    """What the genes stand for."""
    if genes.genes in _UNITS:  # as in the journals and stores of earlier versions
        return {"unit": _UNITS[genes.genes]}
    if genes.channel_order is None:
        return {"genes": genes.genes}
    order = json.dumps(genes.channel_order).encode()
    return {
        "genes": genes.genes,
        "channel_blocks": genes.channel_blocks,
        "channel_order": xxhash.xxh3_128(order).hexdigest(),
    }
