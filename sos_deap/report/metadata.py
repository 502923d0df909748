"""The metadata of a model card, from which the Hub lists a model and links its origin and data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented

#: Tasks of the Hub by the auto class that loads a model. An encoder-decoder fits several tasks.
PIPELINE_TAGS = {
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForImageClassification": "image-classification",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForMultipleChoice": "multiple-choice",
    "AutoModelForQuestionAnswering": "question-answering",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
}

#: Parts of the data that a search or a refit reads.
_READ = ("calibration", "validation", "refit")


def metadata(
    title: str,
    base_model: str | None,
    auto: str,
    result: Mapping[str, Any] | None = None,
    summarizes: bool = False,
) -> str:
    """Return the metadata of a pruned model in YAML.

    ``base_model_relation`` is missing: none of its values (adapter, finetune, merge, quantized) is
    a removal of weights.

    :param title: title of the card.
    :param base_model: Hub name of the dense model; ``None`` if it is not on the Hub.
    :param auto: name of the auto class that loads the model.
    :param result: the content of ``result.json``; default: the model was not evaluated.
    :param summarizes: whether the model was evaluated on summaries.
    """
    tag = PIPELINE_TAGS.get(auto, "summarization" if summarizes else None)
    data = result["data"] if result else {}
    read = {name for part in _READ if part in data for name, _ in _on_hub(data[part]["split"])}
    found = list(_evaluations(result, "summarization" if summarizes else tag)) if result else []
    return ModelCardData(
        base_model=base_model,
        datasets=sorted(read) or None,
        eval_results=found or None,
        library_name="transformers",
        metrics=[one.metric_type for one in found] or None,
        model_name=title if found else None,
        pipeline_tag=tag,
        tags=["pruned", "sos_deap"],
    ).to_yaml()


def is_hub_name(name: str) -> bool:
    """Whether a name has the form of a model or a data set on the Hub."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _on_hub(split: str) -> Iterator[tuple[str, str]]:
    """Yield name and configuration of the data sets on the Hub that a description names.

    A name without an owner is left out, since a local folder may have the same.

    :param split: such as ``"first half of Salesforce/wikitext:wikitext-2-raw-v1 train"``.
    """
    for word in split.split():
        name, _, configuration = word.partition(":")
        if "/" in name and is_hub_name(name):
            yield name, configuration


def _evaluations(result: Mapping[str, Any], task: str | None) -> Iterator[EvalResult]:
    """Yield the held-out metrics, those that are finite, with their settings.

    :param result: the content of ``result.json``.
    :param task: a task of the Hub; ``None`` if it is unknown: nothing is yielded.
    """
    described = dict(result["data"]["held-out"])
    if task is None or described == result["data"]["calibration"]:
        return
    split = described.pop("split")
    dataset, configuration = next(_on_hub(split), (None, None))
    for metric, value in result["best"]["heldout"].items():
        if value is not None:
            yield EvalResult(
                task_type=task,
                dataset_type=dataset or split,
                dataset_name=split,
                dataset_config=configuration or None,
                dataset_split=split.split()[-1] if dataset else None,
                metric_type=metric,
                metric_value=value,
                metric_args=described,
            )
