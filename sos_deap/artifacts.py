"""What came out: a pruned model's files, its quality and its size, measured on what they hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

import torch
from transformers import PreTrainedModel

from sos_deap.errors import InputError
from sos_deap.evaluation.evaluator import Evaluator
from sos_deap.files.atomic import whole_folder, write_json, write_text
from sos_deap.files.chromosome_file import write_chromosome
from sos_deap.models.genes import HeadMap
from sos_deap.models.identity import fingerprint
from sos_deap.models.loading import load, load_as
from sos_deap.models.prune import prune
from sos_deap.models.saving import auto_class
from sos_deap.report.card import model_card
from sos_deap.report.tables import front_hypervolume
from sos_deap.search.drive import Evolution
from sos_deap.tasks.samples import samples
from sos_deap.tasks.task import Task

_PACKAGES = ("sos_deap", "torch", "transformers", "datasets", "tokenizers", "deap", "numpy")


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that results depend on."""
    return {name: version(name) for name in _PACKAGES} | {"python": python_version()}


def prune_to(
    folder: Path,
    model: PreTrainedModel,
    chromosome: Sequence[int],
    heads: HeadMap,
    layout: str,
    dtype: torch.dtype,
) -> PreTrainedModel:
    """Prune a model, save it, and read it back: what is measured then is what the files hold.

    :param folder: an empty folder for the files.
    :param model: the model, with its weights as precise as they were stored.
    :param chromosome: one 0/1 gene per unit of ``heads``.
    :param heads: the model's head map.
    :param layout: a name in :data:`sos_deap.models.prune.LAYOUTS`.
    :param dtype: of the files: computing in float32 must not double them.
    :returns: the pruned model, in the dtype of ``model``.
    """
    smaller: Any = prune(model, chromosome, heads, layout)
    smaller.to(dtype).save_pretrained(folder)
    del smaller  # a large model need not be in memory three times
    return load(folder, dtype=model.dtype)


def write_card(
    folder: Path,
    name: str,
    model: PreTrainedModel,
    chromosome: Sequence[int],
    heads: HeadMap,
    layout: str,
    facts: Mapping[str, Any],
    metrics: Sequence[tuple[str, float, float]] = (),
) -> None:
    """Write the model card of what :func:`prune_to` saved; see :func:`model_card` for the rest."""
    card = model_card(
        base_model=name,
        layout=layout,
        auto=auto_class(model),
        heads_per_layer=heads.heads_per_layer,
        kept=heads.kept_heads(chromosome),
        facts={**facts, "versions": ", ".join(f"{k} {v}" for k, v in versions().items())},
        metrics=metrics,
    )
    write_text(folder / "README.md", card)


def save_best(
    folder: Path,
    evaluator: Evaluator,
    original: PreTrainedModel,
    chromosome: list[int],
    *,
    layout: str,
    name: str,
    dense: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> tuple[dict[str, Any], PreTrainedModel]:
    """Write a search's winner into a run folder: ``chromosome.json`` and ``pruned/``.

    :param folder: the run folder.
    :param evaluator: the search's, with held-out text.
    :param original: the model to prune, with its weights as precise as they were stored.
    :param chromosome: the winner.
    :param layout: a name in :data:`sos_deap.models.prune.LAYOUTS`.
    :param name: of the original model.
    :param dense: its quality and size.
    :param facts: further lines for the model card.
    :returns: the ``best`` part of ``result.json``, and the model as the files have it.
    """
    heads, stored, heldout = evaluator.head_map, evaluator.stored_dtype, evaluator.heldout
    assert heldout is not None
    path, mark = folder / "chromosome.json", fingerprint(original)
    write_chromosome(path, chromosome, model=name, fingerprint=mark, unit=heads.unit)
    with whole_folder(folder / "pruned") as beside:
        pruned: Any = prune_to(beside, original, chromosome, heads, layout, stored)
        evaluator.tokenizer.save_pretrained(beside)
        pruned.to(evaluator.model.device, evaluator.model.dtype)
        best: dict[str, Any] = {
            **quality(evaluator, heldout, pruned),
            **size(pruned, stored, sum(map(len, heads.kept_heads(chromosome)))),
            "sparsity": evaluator.sparsity(chromosome),
            "chromosome": chromosome,
        }
        metrics = [
            (f"{name}, {label}", value, best[part][name])
            for part, label in (("calibration", "calibration"), ("heldout", "held-out"))
            for name, value in dense[part].items()
            if None not in (value, best[part][name])
        ]
        write_card(beside, name, original, chromosome, heads, layout, facts, metrics)
    return best, pruned


def quality(
    evaluator: Evaluator, heldout: Task, model: PreTrainedModel
) -> dict[str, dict[str, float | None]]:
    """A whole model's metrics, dense or pruned: on ``calibration`` and on ``heldout``, by name.

    :raises InputError: if the metric that counts is not finite.
    """
    found: dict[str, dict[str, float | None]] = {}
    for part, task in (("calibration", evaluator.task), ("heldout", heldout)):
        metrics = evaluator.metrics_of(model, task)
        if not math.isfinite(metrics[task.name]):
            raise InputError(
                f"the model's {task.name} ({part}) is {metrics[task.name]}: check the model and "
                "the data, or compute with --dtype float32"
            )
        # The one that counts first; JSON has no infinity.
        others = {n: value if math.isfinite(value) else None for n, value in metrics.items()}
        found[part] = {task.name: others.pop(task.name), **others}
    return found


def size(model: PreTrainedModel, stored_dtype: torch.dtype, heads: int) -> dict[str, int]:
    """Heads, parameters, and the bytes they take in a dtype."""
    parameters = model.num_parameters()
    return {"heads": heads, "parameters": parameters, "bytes": parameters * stored_dtype.itemsize}


def original(name: str, evaluator: Evaluator) -> PreTrainedModel:
    """The model with its weights as stored: loaded once more if the search rounded them."""
    stored, computed = evaluator.stored_dtype, evaluator.model.dtype
    if torch.promote_types(stored, computed) == computed:
        return evaluator.model
    model = load_as(name, type(evaluator.model), str(stored).removeprefix("torch."))
    model.config.pad_token_id = evaluator.model.config.pad_token_id  # where it had none of its own
    return model


def write_samples(path: Path, evaluator: Evaluator, models: dict[str, Any]) -> None:
    """What the models write, where they write."""
    assert evaluator.heldout is not None
    if found := samples(evaluator.heldout, models, evaluator.tokenizer):
        write_json(path, found)


def search_figures(
    evaluator: Evaluator, evolution: Evolution, known: dict[str, Any]
) -> dict[str, Any]:
    """What a search cost, and why it ended."""
    figures: dict[str, Any] = {
        "generations": len(evolution.logbook) - 1,
        **evaluator.accounting.asdict(),
        "stopped_by": evolution.stopped_by,
    }
    if evaluator.validation is not None:
        figures["validated"] = len(evolution.halloffame)
    if evaluator.objectives > 1:
        dense = known["dense"]["calibration"][evaluator.task.name]
        figures["hypervolume"] = front_hypervolume(evaluator.task, evolution.halloffame, dense)
    return figures
