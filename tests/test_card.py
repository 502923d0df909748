"""The model card of a pruned model, read by the Hub's own client."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import transformers
from huggingface_hub import ModelCard, metadata_load
from transformers import AutoModelForSeq2SeqLM
from transformers.modelcard import TASK_MAPPING, TASK_TAG_TO_NAME_MAPPING

from sos_deap import gene_map
from sos_deap.cards import write_card
from sos_deap.models.saving import auto_class
from sos_deap.report.metadata import PIPELINE_TAGS, metadata
from sos_deap.run import main
from tests.conftest import small_llama
from tests.tiny import build

WIKITEXT = "Salesforce/wikitext:wikitext-2-raw-v1"


def read(text: str, folder: Path) -> dict[str, Any]:
    """The metadata of a card, as the Hub's client reads it."""
    (folder / "README.md").write_text(f"---\n{text}\n---\n")
    found: dict[str, Any] = json.loads(json.dumps(metadata_load(folder / "README.md")))
    return found


def test_the_card_of_a_run(model_folder: Path, text_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    flags = {"model": model_folder, "dataset": text_file, "output_dir": folder, "seqlen": 16}
    few = {"population_size": 4, "generations": 1, "samples": 2, "heldout_samples": 3}
    assert main([f"--{name}={value}" for name, value in (flags | few).items()]) == 0
    result = json.loads((folder / "result.json").read_text())
    card = ModelCard.load(folder / "pruned" / "README.md")
    assert card.data.library_name == "transformers" and card.data.tags == ["pruned", "sos_deap"]
    assert card.data.pipeline_tag == "text-generation" and card.data.metrics == ["perplexity"]
    assert card.data.base_model is card.data.datasets is None  # neither is on the Hub
    [found] = card.data.eval_results
    assert (found.task_type, found.metric_type) == ("text-generation", "perplexity")
    assert found.metric_value == result["best"]["heldout"]["perplexity"]
    heldout = result["data"]["held-out"]
    assert found.dataset_name == found.dataset_type == "second half of words.txt"
    assert {"split": found.dataset_name, **found.metric_args} == heldout
    assert card.text.lstrip().startswith(f"# {model_folder.name}, pruned\n")
    with_path = [line for line in card.content.splitlines() if str(tmp_path.parent) in line]
    assert [line.partition(":")[0] for line in with_path] == ["- command"]


def result_on(calibration: str, heldout: str, **others: str) -> dict[str, Any]:
    """What the metadata reads of a result.json."""
    splits = {"calibration": calibration, "held-out": heldout, **others}
    return {
        "data": {part: {"split": split, "seqlen": 8} for part, split in splits.items()},
        "best": {"heldout": {"kl": 0.25, "perplexity": 12.5, "distillation": None}},
    }


def test_hub_names_of_model_and_data(tmp_path: Path) -> None:
    result = result_on(
        f"first half of {WIKITEXT} train",
        f"second half of {WIKITEXT} train",
        refit=f"{WIKITEXT} train and org/stories train",
        probe="org/other test",
    )
    found = read(metadata("x, pruned", "org/x", "AutoModelForCausalLM", result), tmp_path)
    assert found["base_model"] == "org/x" and "base_model_relation" not in found
    assert found["datasets"] == ["Salesforce/wikitext", "org/stories"]  # the probe was not read
    [index] = found["model-index"]
    [evaluated] = index["results"]
    assert index["name"] == "x, pruned" and evaluated["task"] == {"type": "text-generation"}
    assert evaluated["dataset"] == {
        "type": "Salesforce/wikitext",
        "name": f"second half of {WIKITEXT} train",
        "config": "wikitext-2-raw-v1",
        "split": "train",
    }
    assert evaluated["metrics"] == [
        {"type": name, "value": value, "args": {"seqlen": 8}}
        for name, value in (("kl", 0.25), ("perplexity", 12.5))
    ]
    assert found["metrics"] == ["kl", "perplexity"]


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    plain = {"library_name": "transformers", "tags": ["pruned", "sos_deap"]}
    assert read(metadata("x", None, "AutoModel"), tmp_path) == plain
    local = result_on("imdb train", "imdb test")
    assert read(metadata("x", None, "AutoModel", local), tmp_path) == plain  # of no known task
    same = result_on("org/a train", "org/a train")  # no held-out examples
    found = read(metadata("x", None, "AutoModelForMaskedLM", same), tmp_path)
    assert found == plain | {"pipeline_tag": "fill-mask", "datasets": ["org/a"]}


def test_summaries(tmp_path: Path) -> None:
    result = result_on("org/a train", "org/a test")
    for auto, tag in (("Seq2SeqLM", "summarization"), ("CausalLM", "text-generation")):
        found = read(metadata("x", None, f"AutoModelFor{auto}", result, True), tmp_path)
        assert found["pipeline_tag"] == tag
        assert found["model-index"][0]["results"][0]["task"] == {"type": "summarization"}


def test_the_pipeline_tags_are_those_of_transformers() -> None:
    for auto, tag in PIPELINE_TAGS.items():
        assert tag in TASK_TAG_TO_NAME_MAPPING
        if tag in TASK_MAPPING:  # multiple-choice is missing there
            mapping = getattr(transformers, auto)._model_mapping._model_mapping
            assert mapping == TASK_MAPPING[tag]


def test_an_encoder_decoder_is_no_masked_language_model() -> None:
    assert auto_class(build("bart", auto=AutoModelForSeq2SeqLM)) == "AutoModelForSeq2SeqLM"
    assert auto_class(build("t5", auto=AutoModelForSeq2SeqLM)) == "AutoModelForSeq2SeqLM"


@pytest.mark.parametrize(
    ("name", "folder", "title", "base_model"),
    [
        ("org/name_1.5", None, "org/name_1.5", "org/name_1.5"),
        ("gpt2", None, "gpt2", "gpt2"),
        ("builtin:tiny", None, "builtin:tiny", None),
        ("models/my-llama", "models/my-llama", "my-llama", None),
        ("models/my-llama/", "models/my-llama", "my-llama", None),
        ("~/my-llama", "my-llama", "my-llama", None),
        ("models/other/..", "models/other", "models", None),
    ],
)
def test_the_title_is_no_path(
    name: str,
    folder: str | None,
    title: str,
    base_model: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", os.fspath(tmp_path))
    if folder is not None:
        Path(folder).mkdir(parents=True)
    model = small_llama()
    genes = gene_map(model)
    write_card(tmp_path, name, model, [0] + [1] * (len(genes) - 1), genes, "sliced", {})
    card = ModelCard.load(tmp_path / "README.md")
    assert card.text.lstrip().startswith(f"# {title}, pruned\n")
    assert f"1 of 12 attention heads of `{title}` were removed" in card.text
    assert card.data.base_model == base_model
    assert card.data.eval_results is None and "quality was not measured" in card.text
