"""The results of a run: the pruned model and its size, and ``result.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from sos_deap.cards import versions
from sos_deap.evaluation.evaluator import Evaluator
from sos_deap.files.atomic import whole_folder, write_json
from sos_deap.files.chromosome_file import write_chromosome
from sos_deap.files.run_folder import TIME_TABLE, write_channels
from sos_deap.models.genes import GeneMap
from sos_deap.models.identity import fingerprint
from sos_deap.models.loading import load, load_as
from sos_deap.models.prune import prune
from sos_deap.models.quantised import dtype_name, quantisation, weight_bytes
from sos_deap.models.site_times import measured_speedup
from sos_deap.quality import Quality, quality
from sos_deap.report.tables import front_hypervolume
from sos_deap.search.drive import Evolution
from sos_deap.tasks.samples import samples


def prune_to(
    folder: Path,
    model: PreTrainedModel,
    chromosome: Sequence[int],
    genes: GeneMap,
    layout: str,
    dtype: torch.dtype,
    change: Callable[[PreTrainedModel], None] | None = None,
) -> PreTrainedModel:
    """Prune a model, save it and load it again, so that the files are what is measured.

    :param folder: an empty folder for the files.
    :param model: the dense model, with its weights as precise as they were stored.
    :param chromosome: one 0/1 gene for each in ``genes``.
    :param genes: gene map of the model.
    :param layout: a name in :data:`sos_deap.models.prune.LAYOUTS`.
    :param dtype: dtype of the files, which may be smaller than the one computed in.
    :param change: changes the pruned model in place before it is saved, such as a refit.
    :returns: the pruned model, in the dtype of ``model``.
    """
    smaller: Any = prune(model, chromosome, genes, layout)
    if change is not None:
        change(smaller)
    smaller.to(dtype).save_pretrained(folder)
    del smaller  # to hold two models in memory, not three
    return load(folder, dtype=model.dtype)


def initial_result(
    evaluator: Evaluator, dense: Mapping[str, Any], search: Mapping[str, Any], command: str
) -> dict[str, Any]:
    """Return the content of ``result.json`` before the search, its parts in their final order.

    :param evaluator: the evaluator of the search, with held-out data.
    :param dense: quality and size of the dense model.
    :param search: settings of the search to record, besides those of the evaluator.
    :param command: shell command that repeats the run.
    """
    tasks: dict[str, Any] = {"calibration": evaluator.task, "held-out": evaluator.heldout}
    if evaluator.validation is not None:
        tasks["validation"] = evaluator.validation.task
    others = {"probe": evaluator.probe, "refit": evaluator.refit_task}
    tasks |= {part: task for part, task in others.items() if task is not None}
    return {
        "dense": dense,
        "best": {},
        "search": {
            **search,
            "sparsity_of": evaluator.sparsity_of,
            "genes": evaluator.gene_map.genes,
            "parts": list(map(asdict, evaluator.gene_map.parts)),
        },
        "data": {part: task.describe() for part, task in tasks.items()},
        "dtype": dtype_name(evaluator.model),
        "command": command,
        "versions": versions(),
    }


def write_measured(folder: Path, evaluator: Evaluator) -> None:
    """Write what was measured before the search, so that a resumed run uses the same values.

    :param folder: the run folder.
    :param evaluator: the evaluator of the search.
    """
    if evaluator.time_table is not None:
        write_json(folder / TIME_TABLE, evaluator.time_table.content())
    if evaluator.gene_map.channel_order is not None:
        write_channels(folder, evaluator.gene_map.channel_order)


def save_best(
    folder: Path,
    evaluator: Evaluator,
    chromosome: list[int],
    layout: str,
    name: str,
    quantize: str,
    change: Callable[[PreTrainedModel], None] | None = None,
) -> tuple[dict[str, Any], PreTrainedModel, Quality]:
    """Write the winner of a search into the run folder: ``chromosome.json`` and ``pruned/``.

    :param folder: the run folder.
    :param evaluator: the evaluator of the search, with held-out data.
    :param chromosome: the winner, one 0/1 gene for each in the evaluator's gene map.
    :param layout: a name in :data:`sos_deap.models.prune.LAYOUTS`.
    :param name: name of the dense model.
    :param quantize: the quantisation of the pruned model.
    :param change: changes the pruned model in place before it is saved.
    :returns: the ``best`` part of ``result.json``, the pruned model as loaded from the files, and
        its quality.
    """
    genes, stored = evaluator.gene_map, evaluator.stored_dtype
    searched = quantisation(evaluator.model)
    model = original(name, evaluator, searched)
    how = {**genes.described(), **({} if searched == "none" else {"quantize": searched})}
    path, mark = folder / "chromosome.json", fingerprint(model, stored)
    write_chromosome(path, chromosome, model=name, fingerprint=mark, genes=how)
    if quantize != searched:
        model = original(name, evaluator, quantize)
    with whole_folder(folder / "pruned") as temporary:
        pruned: Any = prune_to(temporary, model, chromosome, genes, layout, stored, change)
        evaluator.tokenizer.save_pretrained(temporary)
        pruned.to(evaluator.model.device, evaluator.model.dtype)
        reached = quality(evaluator, pruned)
        best: dict[str, Any] = {
            **reached.metrics,
            **size(pruned, stored, genes, chromosome),
            "sparsity": evaluator.sparsity(chromosome),
            "chromosome": chromosome,
        }
    return best, pruned, reached


def size(
    model: PreTrainedModel,
    stored_dtype: torch.dtype,
    genes: GeneMap,
    chromosome: Sequence[int] | None = None,
) -> dict[str, int]:
    """Return the numbers of heads, channels, experts and parameters, and the bytes as stored.

    :param model: the dense model, or the one pruned by the chromosome.
    :param stored_dtype: dtype of the weights as stored, except int8 weights.
    :param genes: gene map of the dense model.
    :param chromosome: genes of the pruned model; default: all kept.
    """
    kept = [1] * len(genes) if chromosome is None else chromosome
    found = {"heads": sum(map(len, genes.kept_heads(kept)))}
    if genes.feed_forward:
        found["channels"] = sum(map(len, genes.kept_channels(kept)))
    if genes.experts:
        found["experts"] = sum(map(len, genes.kept_experts(kept)))
    return {
        **found,
        "parameters": model.num_parameters(),
        "bytes": weight_bytes(model, stored_dtype),
    }


def original(name: str, evaluator: Evaluator, quantize: str) -> PreTrainedModel:
    """Return the dense model with its weights as stored: reloaded if the search rounded them.

    :param name: name of the dense model.
    :param evaluator: the evaluator of the search.
    :param quantize: the quantisation of the result.
    """
    stored, computed = evaluator.stored_dtype, evaluator.model.dtype
    as_stored = torch.promote_types(stored, computed) == computed
    if as_stored and quantize == quantisation(evaluator.model):
        return evaluator.model
    model = load_as(name, type(evaluator.model), str(stored).removeprefix("torch."), quantize)
    model.config.pad_token_id = evaluator.model.config.pad_token_id  # set where it had none
    return model


def speedups(evaluator: Evaluator, sparsity: float, pruned: PreTrainedModel) -> dict[str, float]:
    """Return how many times as fast as the dense model the pruned one is, for ``result.json``.

    :param evaluator: the evaluator of the search.
    :param sparsity: sparsity of the pruned model.
    :param pruned: the pruned model, on the evaluator's device and in its dtype.
    :returns: ``promised_speedup`` by the time table, and ``measured_speedup``; empty if sparsity is
        no share of time.
    """
    if evaluator.time_table is None:
        return {}
    measured = measured_speedup(evaluator.model, pruned, evaluator.time_table.conditions)
    return {"promised_speedup": 1 / (1 - sparsity), "measured_speedup": measured}


def write_samples(path: Path, evaluator: Evaluator, models: dict[str, Any]) -> None:
    """Write samples of the models' text, for tasks that have them."""
    assert evaluator.heldout is not None
    if found := samples(evaluator.heldout, models, evaluator.tokenizer):
        write_json(path, found)


def search_figures(
    evaluator: Evaluator, evolution: Evolution, result: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the costs of a search and the reason for its end, for ``result.json``.

    :param evaluator: the evaluator of the search.
    :param evolution: the search.
    :param result: the value of :func:`initial_result`.
    """
    figures: dict[str, Any] = {
        "generations": len(evolution.logbook) - 1,
        **evaluator.accounting.asdict(),
        "evaluations_spent": evaluator.spent()["evaluations"],
        "stopped_by": evolution.stopped_by,
    }
    if evaluator.validation is not None and len(evolution.halloffame) > 1:
        figures["validated"] = len(evolution.halloffame)
    if evaluator.objectives > 1:
        dense = result["dense"]["calibration"][evaluator.task.name]
        figures["hypervolume"] = front_hypervolume(evaluator.task, evolution.halloffame, dense)
    return figures
