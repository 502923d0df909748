"""A pruned model's folder in a process without sos_deap, and as transformers loads it."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

from sos_deap import InputError, gene_map, head_map, load, prune
from sos_deap.models.families import FAMILIES
from sos_deap.models.sources import BUILTIN
from tests.tiny import (
    HEADS,
    LAYERS,
    build,
    chromosomes,
    inputs,
    output,
    random_order,
    without,
)

# Runs where `import sos_deap` fails. Prints the largest difference from the outputs it is given.
ELSEWHERE = """
import sys
sys.modules["sos_deap"] = None
import torch, transformers
from pathlib import Path
from safetensors.torch import load_file
transformers.utils.logging.disable_progress_bar()
for folder in map(Path, sys.argv[1:]):
    auto = getattr(transformers, (folder / "auto.txt").read_text())
    model = auto.from_pretrained(folder, trust_remote_code=True)
    assert model.__module__.startswith("transformers_modules"), model.__module__
    example = load_file(folder / "example.safetensors")
    expected = example.pop("expected")
    with torch.inference_mode():
        print(folder.name, float((model(**example)[0] - expected).abs().max()))
    model.save_pretrained(folder / "again")
    again = auto.from_pretrained(folder / "again", trust_remote_code=True)
    with torch.inference_mode():
        assert torch.equal(again(**example)[0], model(**example)[0])
"""

CASES = [
    ("bart", None, "AutoModelForSeq2SeqLM"),
    ("bert", None, "AutoModel"),
    ("gpt2", None, "AutoModelForCausalLM"),
    ("gpt_neox", None, "AutoModelForCausalLM"),
    ("llama", 2, "AutoModelForCausalLM"),
    ("phi3", 2, "AutoModelForCausalLM"),
    ("vit", None, "AutoModel"),
]


def cornered(model: Any) -> Any:
    """Layers without attention, without feed-forward and with unequal groups and fewer channels."""
    genes = gene_map(model, "heads+channels", 4, random_order(model))
    chromosome = without(genes, {0: {"heads"}, 1: {"channels"}})
    for number, part in enumerate(genes.parts):
        if part.layer == 2:
            start = sum(part.size for part in genes.parts[:number])
            chromosome[start] = 0
    return prune(model, chromosome, genes)


def ragged(model: Any) -> list[int]:
    """An empty layer, and with two key/value heads unequal groups in another."""
    genes = [0] * HEADS + [1, 1, 1, 0] + [1, 0, 0, 0]
    return genes * (len(head_map(model)) // len(genes))


def python(code: str, *arguments: Path) -> str:
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-W",
            "ignore:invalid escape sequence",
            "-c",
            code,
            *map(str, arguments),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_folders_load_without_sos_deap(tmp_path: Path, monkeypatch: Any) -> None:
    from safetensors.torch import save_file

    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folders = []
    for family, kv_heads, auto in CASES:
        model = build(family, kv_heads)
        batch = inputs(model)
        example = {name: value.contiguous() for name, value in batch.items()}
        several = {"": cornered(model)}
        if family == "llama":
            several["_heads"] = prune(model, ragged(model))
        for suffix, pruned in several.items():
            folder = tmp_path / f"{family}{suffix}"
            pruned.save_pretrained(folder)
            (folder / "auto.txt").write_text(auto)
            expected = output(pruned, batch)
            save_file(example | {"expected": expected}, folder / "example.safetensors")
            folders.append(folder)
    lines = [line.split() for line in python(ELSEWHERE, *folders).splitlines()]
    assert {name: float(difference) for name, difference in lines} == {
        folder.name: 0.0 for folder in folders
    }


def test_pipeline(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, genes = tmp_path / "pruned", chromosomes(144, 1)[-1]
    pruned: Any = prune(load("builtin:tiny"), genes)
    pruned.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(BUILTIN["builtin:tiny"])
    tokenizer.save_pretrained(folder)
    code = """
import sys
sys.modules["sos_deap"] = None
from transformers import pipeline
write = pipeline("text-generation", model=sys.argv[1], trust_remote_code=True)
print(write("Return the list of", max_new_tokens=12, do_sample=False)[0]["generated_text"])
"""
    ids = tokenizer("Return the list of", return_tensors="pt")
    expected = pruned.generate(**ids, max_new_tokens=12, do_sample=False)[0]
    assert python(code, folder).strip() == tokenizer.decode(expected, skip_special_tokens=True)


def test_per_layer_config_states_how_many_heads_are_left(tmp_path: Path) -> None:
    prune(build("llama", 2), [1, 0, 0, 0] + [0, 0, 0, 0] + [1, 1, 1, 0]).save_pretrained(tmp_path)
    layers: Any = AutoConfig.from_pretrained(tmp_path).per_layer_config
    assert (layers[0].num_attention_heads, layers[0].num_key_value_heads) == (1, 1)
    assert layers[1].skip == ["attention"]
    assert (layers[2].num_attention_heads, layers[2].num_key_value_heads) == (3, 2)


def test_per_layer_config_states_the_widths_of_the_feed_forward(tmp_path: Path) -> None:
    cornered(build("llama", 2)).save_pretrained(tmp_path)
    config: Any = AutoConfig.from_pretrained(tmp_path)
    assert config.kept_channels == [48, 0, 36]
    assert config.per_layer_config[0].skip == ["attention"]
    assert [config.per_layer_config[layer].intermediate_size for layer in range(LAYERS)] == [
        48,
        0,
        36,
    ]
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        LlamaForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(("family", "kv_heads"), [("llama", 2), ("gpt2", None), ("bart", None)])
def test_folders_of_former_versions_load(family: str, kv_heads: int | None, tmp_path: Path) -> None:
    """They list the kept heads only, and per_layer_config states no widths of the feed-forward."""
    model = build(family, kv_heads)
    pruned, batch = prune(model, ragged(model)), inputs(model)
    pruned.save_pretrained(tmp_path)
    (tmp_path / "modeling_pruned.py").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    assert "kept_channels" not in config
    for layer in config.get("per_layer_config", {}).values():
        layer.pop("intermediate_size", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert torch.equal(output(load(tmp_path), batch), output(pruned, batch))


@pytest.mark.parametrize(
    "channels", [[48, 0], [48, 0, 49], [48, -1, 36], [48, 0, "36"], [48, 0, True], 36, {"0": 48}]
)
def test_damaged_numbers_of_channels(channels: Any, tmp_path: Path) -> None:
    cornered(build("llama", 2)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"kept_channels": channels}))
    with pytest.raises(InputError, match="kept_channels .* each of the model's 3 feed-forward"):
        load(tmp_path)


def test_saving_leaves_the_config_of_the_model_in_memory_plain(tmp_path: Path) -> None:
    pruned = prune(build("llama"), ragged(build("llama")))
    pruned.save_pretrained(tmp_path)
    assert not {"auto_map", "per_layer_config"} & set(pruned.config.to_dict())
    assert pruned.config.num_attention_heads == HEADS


def test_the_stock_class_refuses_a_folder_without_one_whole_layer(tmp_path: Path) -> None:
    for family in ("llama", "gpt2", "opt"):
        model = build(family)
        prune(model, [1] * (2 * HEADS) + [0] * HEADS).save_pretrained(tmp_path / family)
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
            type(model).from_pretrained(tmp_path / family)


def test_the_head_of_another_task_can_be_added(tmp_path: Path, monkeypatch: Any) -> None:
    model = build("bert")
    prune(model, ragged(model)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    autos = config["auto_map"]
    assert autos["AutoModelForSequenceClassification"].endswith(".BertForSequenceClassification")
    code = (tmp_path / "modeling_pruned.py").read_text()
    for name in set(autos.values()):
        assert f"\n{name.split('.')[1]} = pruned_class(transformers." in code


def test_an_encoder_decoder_has_no_class_of_the_decoder_alone(tmp_path: Path) -> None:
    model = build("bart")
    prune(model, ragged(model)).save_pretrained(tmp_path)
    autos = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert "AutoModelForSeq2SeqLM" in autos and "AutoModelForCausalLM" not in autos


def test_pruned_models_can_be_pickled() -> None:
    model = build("llama", 2)
    pruned, batch = prune(model, ragged(model)), inputs(model)
    copied = pickle.loads(pickle.dumps(pruned))
    assert type(copied) is type(pruned) and isinstance(copied, LlamaForCausalLM)
    assert torch.equal(output(copied, batch), output(pruned, batch))


def test_a_class_of_the_user_s_own_is_kept(tmp_path: Path) -> None:
    class Mine(LlamaForCausalLM):
        pass

    model = build("llama")
    model.__class__ = Mine
    pruned = prune(model, ragged(model))
    assert type(pruned) is Mine
    pruned.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="names the model class 'Mine', unknown to transformers"):
        load(tmp_path)


def test_pushing_from_save_pretrained_is_refused(tmp_path: Path) -> None:
    pruned = prune(build("llama"), [1, 0, 1, 1] * LAYERS)
    with pytest.raises(InputError, match="call model.push_to_hub"):
        pruned.save_pretrained(tmp_path, push_to_hub=True)


def test_the_saved_code_contains_the_row_of_the_architecture() -> None:
    from sos_deap.models.saving import _code

    for family in sorted(FAMILIES):
        namespace: dict[str, Any] = {"__name__": "modeling_pruned"}
        sys.modules["modeling_pruned"] = type(sys)("modeling_pruned")
        sys.modules["modeling_pruned"].__dict__.update(namespace)
        try:
            code = compile(_code(AutoConfig.for_model(family)), "modeling_pruned.py", "exec")
            exec(code, sys.modules["modeling_pruned"].__dict__)
            row = sys.modules["modeling_pruned"].FAMILY
        finally:
            del sys.modules["modeling_pruned"]
        assert repr(row) == repr(FAMILIES[family])  # its classes are those of the saved code
