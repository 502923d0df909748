"""The gene map of an evaluator, whose channels are ordered by their importance on its examples."""

from __future__ import annotations

from transformers import PreTrainedModel

from sos_deap.models.find_genes import ChannelOrder, gene_map
from sos_deap.models.genes import GeneMap
from sos_deap.models.guard import evaluating
from sos_deap.models.importance import channel_order
from sos_deap.models.memory import one_example_fits
from sos_deap.tasks.task import Task


def measured_genes(
    model: PreTrainedModel, task: Task, genes: str, blocks: int, order: ChannelOrder | None
) -> GeneMap:
    """Return the gene map of a model, with the order of its channels measured if none is given.

    :param model: the dense model.
    :param task: the task whose examples the order is measured on, in one pass.
    :param genes: what the genes stand for; see :func:`sos_deap.gene_map`.
    :param blocks: number of genes of kind ``channels`` in each layer.
    :param order: for each feed-forward module its channels by decreasing importance, or ``None``.
    :raises InputError: as :func:`sos_deap.gene_map` does, and if one example does not fit in
        memory.
    """
    found = gene_map(model, genes, blocks, order)
    if found.channel_order is None or order is not None:
        return found
    with evaluating(model), one_example_fits(task.seqlen, "the order of the channels"):
        measured = channel_order(model, found, task)
    return gene_map(model, genes, blocks, measured)
