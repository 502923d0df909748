"""The model cards of pruned models, and the versions of the packages that made them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

from transformers import PreTrainedModel

from sos_deap.evaluation.evaluator import Evaluator
from sos_deap.files.atomic import write_text
from sos_deap.models.genes import GeneMap
from sos_deap.models.saving import auto_class
from sos_deap.report.card import model_card
from sos_deap.report.formats import title_of
from sos_deap.report.headline import headline
from sos_deap.report.metadata import is_hub_name, metadata
from sos_deap.report.parts import parts_of
from sos_deap.report.tables import cells, inline
from sos_deap.tasks.generation import Summarization

_PACKAGES = ("sos_deap", "torch", "transformers", "datasets", "tokenizers", "deap", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    return {name: version(name) for name in _PACKAGES} | {"python": python_version()}


def write_card(
    folder: Path,
    name: str,
    model: PreTrainedModel,
    chromosome: Sequence[int],
    genes: GeneMap,
    layout: str,
    facts: Mapping[str, Any],
    result: Mapping[str, Any] | None = None,
    summarizes: bool = False,
    headline: str = "",
) -> None:
    """Write the model card of a pruned model, ``README.md``.

    :param folder: the folder that :func:`prune_to` saved the model in.
    :param name: Hub name or folder of the dense model, or its built-in name.
    :param model: the dense model.
    :param chromosome: one 0/1 gene for each in ``genes``.
    :param genes: gene map of the dense model.
    :param layout: a name in :data:`sos_deap.models.prune.LAYOUTS`.
    :param facts: rows of the card's table, by label.
    :param result: the content of ``result.json``; default: the model was not evaluated.
    :param summarizes: whether it was evaluated on summaries.
    :param headline: what was gained and lost, as one sentence.
    """
    # A card may be published: no path of this machine in its title and metadata.
    title = title_of(name)
    is_folder = Path(name).expanduser().is_dir()
    base_model = name if is_hub_name(name) and not is_folder else None
    auto = auto_class(model)
    card = model_card(
        title=title,
        metadata=metadata(f"{title}, pruned", base_model, auto, result, summarizes),
        layout=layout,
        auto=auto,
        parts=parts_of({"parts": list(map(asdict, genes.parts))}, chromosome),
        facts={**facts, "versions": ", ".join(f"{k} {v}" for k, v in versions().items())},
        headline=headline,
        rows=cells(result) if result else (),
    )
    write_text(folder / "README.md", card)


def weights_fact(quantize: str) -> dict[str, str]:
    """Return the line of a card on quantised weights; empty without quantisation.

    :param quantize: the quantisation of the pruned model.
    """
    return {"weights": "int8, which the package torchao reads"} if quantize == "int8" else {}


def write_run_card(
    folder: Path,
    evaluator: Evaluator,
    layout: str,
    name: str,
    quantize: str,
    result: Mapping[str, Any],
    measured: Sequence[Mapping[str, Any]],
) -> None:
    """Write the model card of the winner of a search.

    :param folder: the folder that the pruned model is saved in.
    :param evaluator: the evaluator of the search.
    :param layout: a name in :data:`sos_deap.models.prune.LAYOUTS`.
    :param name: name of the dense model.
    :param quantize: the quantisation of the pruned model.
    :param result: the content of ``result.json``.
    :param measured: the content of ``measured.json``.
    """
    facts = {
        "command": result["command"],
        "seed": result["search"]["seed"],
        **{f"{part} data": inline(described) for part, described in result["data"].items()},
        **weights_fact(quantize),
    }
    write_card(
        folder,
        name,
        evaluator.model,
        result["best"]["chromosome"],
        evaluator.gene_map,
        layout,
        facts,
        result,
        isinstance(evaluator.task, Summarization),
        headline(result, measured),
    )
