from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    ByT5Tokenizer,
    CanineTokenizer,
)

from sos_deap import Evaluator, InputError, load, prune
from sos_deap.artifacts import original
from sos_deap.models.devices import cpu_dtype
from sos_deap.models.loading import load_pretrained
from sos_deap.models.sources import BUILTIN
from sos_deap.models.tokenizer import load_tokenizer, save_companions
from tests.conftest import small_llama
from tests.tiny import build

REPLACE = {"type": "Replace", "pattern": {"Regex": "[a-z]"}, "content": "$#" * 50_000}


def test_the_embedded_model() -> None:
    loaded = load_pretrained("builtin:tiny")
    config = loaded.model.config
    assert (config.num_hidden_layers, config.num_attention_heads) == (12, 12)
    assert loaded.stored_dtype == torch.bfloat16
    assert not loaded.model.training
    text = "Return a list of the names."
    assert loaded.tokenizer.decode(loaded.tokenizer(text)["input_ids"]) == text


def test_dtype_and_device(model_folder: Path) -> None:
    loaded = load_pretrained(str(model_folder), dtype="bfloat16", device="cpu")
    assert loaded.model.dtype == torch.bfloat16
    assert loaded.stored_dtype == torch.float32
    assert load_pretrained(str(model_folder), device="cpu").model.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "model folder ./nowhere does not exist"),
        ("/no/such/folder", "does not exist"),
        ("builtin:tin", "unknown model 'builtin:tin': did you mean 'builtin:tiny'"),
        (
            "no-such-owner/no-such-model",
            "cannot load the config.json of no-such-owner/no-such-model",
        ),
    ],
)
def test_unknown_models(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_pretrained(name)


def test_unknown_device_and_dtype(model_folder: Path) -> None:
    with pytest.raises(InputError, match="device 'cuda:99' is not available: this machine has cpu"):
        load_pretrained(str(model_folder), device="cuda:99")
    with pytest.raises(InputError, match="device 'tpux' is not available"):
        load_pretrained(str(model_folder), device="tpux")
    with pytest.raises(InputError, match="unknown dtype 'float23': did you mean 'float32'"):
        load_pretrained(str(model_folder), dtype="float23")


def test_the_dtype_on_a_cpu_is_what_its_hardware_has(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    able: dict[str, Any] = {}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    monkeypatch.setattr("sos_deap.models.loading.cpu_dtype", cpu_dtype)
    assert load_pretrained(str(model_folder), device="cpu").model.dtype == torch.float32
    able["amx_bf16"] = True
    loaded = load_pretrained(str(model_folder), device="cpu")
    assert (loaded.model.dtype, loaded.stored_dtype) == (torch.bfloat16, torch.float32)
    assert load_pretrained(str(model_folder), device="cpu", dtype="float32").model.dtype == (
        torch.float32
    )


@pytest.mark.parametrize("named", [None, "bfloat16", "int8"])
@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.float16])
def test_the_stored_dtype_is_that_of_the_files_whatever_the_config_names(
    stored: torch.dtype, named: str | None, text_file: Path, tmp_path: Path
) -> None:
    small_llama().to(stored).save_pretrained(tmp_path, max_shard_size="100KB")
    AutoTokenizer.from_pretrained(BUILTIN["builtin:tiny"]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "dtype": named}))
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 1
    rest = load_file(files[-1])  # as in old checkpoints, and no weight
    save_file({**rest, "model.rotary_emb.inv_freq": torch.zeros(4, dtype=torch.float64)}, files[-1])
    weights = {name: tensor for file in files for name, tensor in load_file(file).items()}
    loaded = load(tmp_path)
    computed = "float32" if stored == torch.float64 else "bfloat16"
    evaluator = Evaluator.from_pretrained(
        str(tmp_path), dataset=str(text_file), dtype=computed, seqlen=8
    )
    assert evaluator.stored_dtype == loaded.dtype == stored
    for model in (loaded, original(str(tmp_path), evaluator, "none")):
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter.double(), weights[name].double())


def test_the_dtype_of_weights_that_differ_holds_all_of_them(tmp_path: Path) -> None:
    model: Any = small_llama()
    model.to(torch.bfloat16).model.norm.float()
    model.save_pretrained(tmp_path)
    assert load(tmp_path).dtype == torch.float32


def test_folders_that_hold_no_usable_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no config.json"):
        load_pretrained(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="cannot load the config.json of"):
        load_pretrained(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(InputError, match="is a t5 encoder-decoder: this task needs a causal"):
        load_pretrained(str(tmp_path))
    AutoModel.from_config(AutoConfig.for_model("bert", num_hidden_layers=1)).save_pretrained(
        tmp_path
    )
    with pytest.raises(InputError, match="was saved as BertModel and lacks 6 weights of"):
        load_pretrained(str(tmp_path))


def test_a_missing_tokenizer_is_named(model_folder: Path, tmp_path: Path) -> None:
    for path in model_folder.iterdir():
        if not path.name.startswith("tokenizer"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="cannot load the tokenizer of"):
        load_pretrained(str(tmp_path))


@pytest.mark.parametrize("family", ["bert", "gpt2", "roberta", "t5"])
def test_a_tokenizer_without_files_is_refused(family: str, tmp_path: Path) -> None:
    build(family).save_pretrained(tmp_path / "model")
    assert len(AutoTokenizer.from_pretrained(tmp_path / "model")) < 105  # special tokens
    with pytest.raises(InputError, match="there is no tokenizer in .*model: put the files"):
        load_tokenizer(str(tmp_path / "model"))
    (tmp_path / "copy").mkdir()
    save_companions(str(tmp_path / "model"), tmp_path / "copy")
    assert not list((tmp_path / "copy").iterdir())


@pytest.mark.parametrize("kind", [ByT5Tokenizer, CanineTokenizer])
def test_a_tokenizer_of_bytes_needs_no_files(kind: Any, tmp_path: Path) -> None:
    AutoConfig.for_model("t5").save_pretrained(tmp_path)
    kind().save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path))("a film") == kind()("a film")


def test_code_in_a_model_folder_is_not_run(model_folder: Path, tmp_path: Path) -> None:
    for path in model_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    code = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    ran = tmp_path / "ran"
    (tmp_path / "code.py").write_text(f"open({str(ran)!r}, 'w')")
    for kind, message in (("llama", None), ("own", "custom code|trust_remote_code")):
        changed = {**config, "model_type": kind, "auto_map": code}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        if message is None:
            load_pretrained(str(tmp_path))  # a stock class needs no code
        else:
            with pytest.raises(InputError, match=message):
                load_pretrained(str(tmp_path))
        assert not ran.exists()


def test_a_pruned_model_is_refused(tmp_path: Path) -> None:
    prune(small_llama(), [1, 0] * 6).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="already pruned"):
        load_pretrained(str(tmp_path))


def test_from_pretrained_checks_its_arguments(model_folder: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"task": "perplexty"}, "unknown task 'perplexty': did you mean 'perplexity'"),
        ({"objective": "papr"}, "unknown objective 'papr'"),
        ({"samples": 0}, "samples is 0"),
        ({"seqlen": 65}, "beyond the model's 64"),
    ]
    for arguments, message in cases:
        with pytest.raises(InputError, match=message):
            Evaluator.from_pretrained(str(model_folder), **arguments)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("tokenizer_config.json", '"model_max_length": 128', '"model_max_length": "x"', "'x'"),
        (
            "tokenizer.json",
            '"normalizer": null',
            f'"normalizer": {json.dumps(REPLACE)}',
            "000 tokens of th",
        ),
    ],
)
def test_tokenizers_that_fail_on_text(
    file: str, old: str, new: str, message: str, model_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(model_folder, tmp_path / "model")
    path = tmp_path / "model" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(InputError, match=message) as error:
        load_tokenizer(str(tmp_path / "model"))
    assert "\n" not in str(error.value)
