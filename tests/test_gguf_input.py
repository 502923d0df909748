"""Models of GGUF files, and the language models of multimodal ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from transformers import AutoTokenizer, Gemma3Config, Gemma3ForConditionalGeneration

from sos_deap import InputError, load
from sos_deap.export.gguf import write_gguf
from sos_deap.models import gguf_files
from sos_deap.models.loading import load_pretrained
from sos_deap.models.sources import BUILTIN
from sos_deap.run import main
from tests.conftest import small_llama

gguf = pytest.importorskip("gguf", reason="needs the package gguf")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setattr("sos_deap.models.gguf_files.HF_HOME", str(folder))
    return folder


@pytest.fixture
def file(tmp_path: Path, cache: Path) -> Path:
    path = tmp_path / "small.gguf"
    write_gguf(small_llama(), AutoTokenizer.from_pretrained(BUILTIN["builtin:tiny"]), path)
    return path


def test_a_file_is_the_model_that_was_written(file: Path, cache: Path) -> None:
    loaded, ids = load_pretrained(str(file), device="cpu"), torch.randint(2048, (2, 9))
    with torch.inference_mode():
        expected = small_llama()(ids).logits
        assert torch.allclose(loaded.model(ids).logits, expected, atol=1e-5)
    assert loaded.stored_dtype == torch.float32
    text = "Return the value of the list."
    tokens = AutoTokenizer.from_pretrained(BUILTIN["builtin:tiny"])(text)["input_ids"]
    assert loaded.tokenizer(text)["input_ids"] == tokens
    (folder,) = (cache / "sos_deap" / "gguf").iterdir()
    before = folder.stat().st_mtime_ns
    load(str(file))
    assert folder.stat().st_mtime_ns == before and not any(
        "part" in f.name for f in cache.rglob("*")
    )


@pytest.mark.parametrize(("kind", "dtype"), [("F16", "float16"), ("Q8_0", "bfloat16")])
def test_the_dtype_that_weights_are_kept_in(
    kind: str, dtype: str, tmp_path: Path, cache: Path, file: Path
) -> None:
    path = tmp_path / "other.gguf"
    _rewritten(file, path, kind)
    loaded = load_pretrained(str(path), device="cpu")
    assert loaded.stored_dtype == getattr(torch, dtype)
    weight = small_llama().lm_head.weight
    error = (loaded.model.lm_head.weight - weight).norm() / weight.norm()
    assert float(error.detach()) < 0.01


def _rewritten(source: Path, path: Path, kind: str) -> None:
    """Copy a GGUF file with its matrices in another type, by the package gguf alone."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, "llama")
    for name, field in reader.fields.items():
        if not name.startswith(("GGUF.", "general.architecture", "general.file_type")):
            value, types = field.contents(), field.types
            if types[0] == gguf.GGUFValueType.ARRAY:
                writer.add_array(name, value)
            else:
                writer.add_key_value(name, value, types[0])
    quantised = gguf.GGMLQuantizationType[kind]
    for tensor in reader.tensors:
        values = numpy.array(tensor.data, dtype=numpy.float32)
        if values.ndim < 2 or (kind == "Q8_0" and values.shape[1] % 32):
            writer.add_tensor(tensor.name, values)
        else:
            data = gguf.quants.quantize(values, quantised)
            writer.add_tensor(tensor.name, data, raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_run_on_a_file(file: Path, text_file: Path, tmp_path: Path) -> None:
    flags = ["--samples=2", "--seqlen=32", "--heldout_samples=2", "--generations=1"]
    output = tmp_path / "run"
    assert (
        main([f"--model={file}", f"--dataset={text_file}", f"--output_dir={output}", *flags]) == 0
    )
    assert json.loads((output / "result.json").read_text())["best"]["heads"]
    assert load(output / "pruned").config.model_type == "llama"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "model file .*x.gguf does not exist"),
        (b"", "x.gguf is not a GGUF file: it begins with b''"),
        (b"PK\x03\x04 more", "x.gguf is not a GGUF file: it begins with"),
        (b"GGUF\x03\x00\x00\x00", "cannot read the GGUF file .*x.gguf: "),
    ],
)
def test_bad_files_are_one_line(
    content: bytes | None, message: str, tmp_path: Path, cache: Path
) -> None:
    path = tmp_path / "x.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        load_pretrained(str(path))
    assert "\n" not in str(error.value)
    assert not list(cache.rglob("*.*"))


def test_a_damaged_file_is_one_line(file: Path, cache: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(InputError, match="cannot read the GGUF file"):
        load_pretrained(str(file))
    assert not list(cache.rglob("*.safetensors"))


def test_without_the_package(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_files, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs the package gguf: pip install 'sos_deap\[gguf\]'"):
        load_pretrained(str(file))


def test_the_language_model_of_a_multimodal_one(
    tmp_path: Path, text_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = {
        **{"vocab_size": 2048, "hidden_size": 32, "intermediate_size": 48, "head_dim": 8},
        **{"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 1},
        **{"max_position_embeddings": 64, "sliding_window": 16},
    }
    vision = {
        **{"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1},
        **{"num_attention_heads": 2, "image_size": 28, "patch_size": 14},
    }
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    whole: Any = Gemma3ForConditionalGeneration(config).eval()
    folder = tmp_path / "whole"
    whole.save_pretrained(folder)
    AutoTokenizer.from_pretrained(BUILTIN["builtin:tiny"]).save_pretrained(folder)
    loaded, ids = load_pretrained(str(folder), device="cpu"), torch.randint(9, 2000, (2, 20))
    assert "the language model of a multimodal model" in caplog.text
    with torch.inference_mode():
        assert torch.equal(loaded.model(ids).logits, whole(ids).logits)
    flags = ["--samples=2", "--seqlen=32", "--heldout_samples=2", "--generations=1"]
    output = tmp_path / "run"
    given = [f"--model={folder}", f"--dataset={text_file}", f"--output_dir={output}", *flags]
    assert main([*given, "--genes=heads+channels"]) == 0
    pruned = load(output / "pruned")
    assert pruned.config.model_type == "gemma3_text"
    assert pruned.num_parameters() < loaded.model.num_parameters()
