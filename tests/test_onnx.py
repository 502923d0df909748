"""The ONNX graph in onnxruntime gives the outputs of the masked model."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from sos_deap import InputError, gene_map, masked, prune
from sos_deap.export import onnx
from sos_deap.export.onnx import write_onnx
from sos_deap.models.genes import GeneMap
from tests.tiny import VOCABULARY, build, output, random_order

FILES = ["config.json", "export.json", "model.onnx", "model.onnx.data"]
ONE_LAYER = {"num_hidden_layers": 1}
TWO_LAYERS = {"num_hidden_layers": 2}
# The wavelengths of its positions change beyond 12 tokens.
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "short_factor": [1.0, 1.0],
    "long_factor": [2.0, 3.0],
    "original_max_position_embeddings": 12,
}


def mixed(genes: GeneMap, *, without_both: bool) -> list[int]:
    """Three heads of the first layer, in unequal groups if there are two, and none of the second.

    :param without_both: remove all channels of the second layer, and some of the first; otherwise
        all of the first, and some of the second.
    """
    empty = 1 if without_both else 0
    chromosome, heads = list[int](), iter(([1, 0, 1, 1], [0] * 4))
    for part in genes.parts:
        if part.kind == "heads":
            chromosome += next(heads, [0, 1, 1, 0])
        else:
            chromosome += [0] * 4 if part.layer == empty else [0, 1, 0, 1]
    return chromosome


@pytest.fixture
def runtime() -> Any:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    return pytest.importorskip("onnxruntime")


def session(runtime: Any, folder: Path) -> Any:
    assert sorted(path.name for path in folder.iterdir()) == FILES
    return runtime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])


def run(opened: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    first = opened.get_outputs()[0].name
    feed = {name: value.numpy() for name, value in batch.items()}
    return torch.from_numpy(opened.run([first], feed)[0])


def batches(opened: Any) -> list[dict[str, torch.Tensor]]:
    """Inputs by the graph's input names: each of another shape, two of them padded."""
    names = [entry.name for entry in opened.get_inputs()]
    if names == ["pixel_values"]:
        return [{"pixel_values": torch.randn(rows, 3, 16, 16)} for rows in (1, 2, 5)]
    if names == ["input_values"]:
        return [{"input_values": torch.randn(rows, samples)} for rows, samples in ((1, 9), (3, 70))]
    made = []
    for rows, tokens in ((1, 1), (4, 7), (2, 11), (3, 33)):
        batch = {name: torch.randint(VOCABULARY, (rows, tokens)) for name in names}
        batch["attention_mask"] = torch.ones(rows, tokens, dtype=torch.long)
        if rows in (3, 4):
            batch["attention_mask"][0, :2] = 0
            batch["attention_mask"][1, -3:] = 0
        if "token_type_ids" in batch:
            batch["token_type_ids"] %= 2
        if "decoder_input_ids" in batch:
            batch["decoder_input_ids"] = torch.randint(VOCABULARY, (rows, tokens + 2))
        made.append(batch)
    return made


def assert_agrees(
    found: torch.Tensor, expected: torch.Tensor, batch: dict[str, torch.Tensor]
) -> None:
    if "attention_mask" in batch and "decoder_input_ids" not in batch:
        visible = batch["attention_mask"].bool()
        found, expected = found[visible], expected[visible]
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("family", "kv_heads", "settings"),
    [
        ("llama", 2, TWO_LAYERS),
        ("gpt2", None, TWO_LAYERS),
        ("bert", None, TWO_LAYERS),
        (
            "phi3",
            None,
            {"rope_parameters": LONGROPE, "original_max_position_embeddings": 12, **TWO_LAYERS},
        ),
        ("vit", None, TWO_LAYERS),
        ("bart", None, {"encoder_layers": 1, "decoder_layers": 1}),
        ("wav2vec2", None, ONE_LAYER),
    ],
    ids=["llama", "gpt2", "bert", "phi3", "vit", "bart", "wav2vec2"],
)
def test_onnxruntime_agrees(
    runtime: Any, family: str, kv_heads: int | None, settings: dict[str, Any], tmp_path: Path
) -> None:
    model = build(family, kv_heads, **settings)
    genes = gene_map(model, "heads+channels", 4, random_order(model))
    chromosome = mixed(genes, without_both=family in ("bert", "gpt2"))
    pruned: Any = prune(model, chromosome, genes)
    ragged = [getattr(getattr(part, "config", None), "ragged", None) for part in pruned.modules()]
    assert (family == "llama") == any(ragged)
    attributes = set(vars(pruned))
    assert 0 < write_onnx(pruned, tmp_path / "graph") < 1e-5
    assert [path.name for path in tmp_path.iterdir()] == ["graph"]

    opened = session(runtime, tmp_path / "graph")
    first = opened.get_inputs()[0]
    assert first.name == pruned.main_input_name
    axes: dict[str, list[Any]] = {"vit": [3, 16, 16], "wav2vec2": ["samples"]}
    assert first.shape == ["batch", *axes.get(family, ["tokens"])]
    for batch in batches(opened):
        with masked(model, [chromosome] * len(next(iter(batch.values()))), genes):
            expected = output(model, batch)
        assert_agrees(run(opened, batch), expected, batch)
        assert_agrees(output(pruned, batch), expected, batch)  # it is as it was
    assert set(vars(pruned)) == attributes and not pruned.training
    for folder in (torch.__path__[0], str(Path(onnx.__file__).parent)):  # in no stack trace
        assert folder.encode() not in (tmp_path / "graph/model.onnx").read_bytes()


@pytest.mark.parametrize(
    ("family", "axes"),
    [
        (
            "whisper",
            {
                "input_features": {0: "batch"},
                "decoder_input_ids": {0: "batch", 1: "decoder_tokens"},
            },
        ),
        ("audio-spectrogram-transformer", {"input_values": {0: "batch"}}),
        ("clip", {"input_ids": {0: "batch", 1: "tokens"}, "pixel_values": {0: "batch"}}),
    ],
)
def test_axes_of_any_length(family: str, axes: dict[str, dict[int, str]]) -> None:
    found = onnx._axes(build(family))
    assert found.pop("attention_mask", {0: "batch", 1: "tokens"}) == {0: "batch", 1: "tokens"}
    assert found == axes


def test_half_precision_in_training_becomes_float32(runtime: Any, tmp_path: Path) -> None:
    model = prune(build("llama", 2, **ONE_LAYER), [1, 0, 1, 1]).to(torch.bfloat16).train()  # type: ignore[arg-type]
    write_onnx(model, tmp_path / "graph")
    assert model.training and model.dtype == torch.bfloat16
    opened = session(runtime, tmp_path / "graph")
    assert opened.get_outputs()[0].type == "tensor(float)"
    for batch in batches(opened):
        assert_agrees(run(opened, batch), output(model.eval().float(), batch), batch)


def test_float16_has_half_the_bytes_and_the_tokenizer_is_copied(
    runtime: Any, model_folder: Path, tmp_path: Path
) -> None:
    model = build("llama", vocab_size=2048, **ONE_LAYER)  # as many as the tokenizer has
    folder, text = tmp_path / "float16", "a tree of values"
    write_onnx(model, folder, str(model_folder), "float16")
    size = (folder / "model.onnx.data").stat().st_size
    assert 1.9 * model.num_parameters() < size < 2.1 * model.num_parameters()  # bytes
    stock = AutoTokenizer.from_pretrained(model_folder)(text, return_tensors="pt")
    batch = dict(AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt"))
    assert batch["input_ids"].tolist() == stock["input_ids"].tolist()
    opened = runtime.InferenceSession(folder / "model.onnx")
    found = run(opened, {entry.name: batch[entry.name] for entry in opened.get_inputs()})
    assert found.dtype == torch.float16
    expected = output(model, {"input_ids": stock["input_ids"]})
    assert (found.float() - expected).abs().max() <= 1e-2 * expected.abs().max()
    with pytest.raises(InputError, match="unknown dtype of ONNX 'int4'"):
        write_onnx(model, tmp_path / "int4", dtype="int4")


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_int8_has_a_quarter_of_the_bytes(runtime: Any, family: str, tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 128} if family != "gpt2" else {"n_embd": 64}
    model = build(family, **sizes, **ONE_LAYER)
    genes = gene_map(model, "heads+channels", 4, random_order(model))
    pruned = prune(model, [1, 0, 1, 1] + [0, 1, 0, 1], genes)
    difference = write_onnx(pruned, tmp_path / "int8", dtype="int8")
    assert 1e-4 < difference < 0.15
    size = (tmp_path / "int8/model.onnx.data").stat().st_size
    assert size < 0.5 * 4 * pruned.num_parameters()  # positions and norms stay in float32
    opened = session(runtime, tmp_path / "int8")
    for batch in batches(opened):
        found, expected = run(opened, batch), output(pruned, batch)
        visible = batch["attention_mask"].bool()
        error = (found[visible] - expected[visible]).abs().max() / expected[visible].abs().max()
        assert error < 0.15


def test_a_model_without_any_head(runtime: Any, tmp_path: Path) -> None:
    model = prune(build("gpt2", **ONE_LAYER), [0] * 4)
    write_onnx(model, tmp_path / "graph")
    opened = session(runtime, tmp_path / "graph")
    names = {entry.name for entry in opened.get_inputs()}
    batch = {"input_ids": torch.randint(VOCABULARY, (3, 6))}
    feed = batch | {name: torch.ones(3, 6, dtype=torch.long) for name in names - set(batch)}
    assert_agrees(run(opened, feed), output(model, batch), batch)


def test_a_wrong_graph_is_refused(
    runtime: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, other = build("vit", **ONE_LAYER), build("vit", **ONE_LAYER)
    with torch.no_grad():
        next(iter(other.parameters())).mul_(1.1)
    monkeypatch.setattr(onnx, "_twin", lambda model: other)
    with pytest.raises(InputError, match=r"of this ViTModel model is wrong: .* more than 1e-03"):
        write_onnx(model, tmp_path / "graph")
    assert not list(tmp_path.iterdir())


def test_a_model_that_cannot_be_traced(
    runtime: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = build("llama", rope_parameters=rope, **ONE_LAYER)
    with pytest.raises(
        InputError, match="cannot write this LlamaForCausalLM model as ONNX: ."
    ) as e:
        write_onnx(model, tmp_path / "graph")
    assert "\n" not in str(e.value)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_logs_are_suppressed_inside_the_context_only() -> None:
    logger = logging.getLogger("transformers.exporters")
    assert logger.isEnabledFor(logging.ERROR)
    with onnx._quiet():
        assert not logger.isEnabledFor(logging.ERROR)
    assert logger.isEnabledFor(logging.ERROR)


def test_a_model_of_other_inputs(runtime: Any, tmp_path: Path) -> None:
    model = build("llama", **ONE_LAYER)
    model.main_input_name = "input_features"
    with pytest.raises(InputError, match="takes input_features: give a model of input_ids"):
        write_onnx(model, tmp_path / "graph")
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(runtime: Any, tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("as it was")
    with pytest.raises(InputError, match="is not an empty folder"):
        write_onnx(build("llama", **ONE_LAYER), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"needs .*{package}.*pip install 'sos_deap\[onnx\]'"):
        write_onnx(build("llama", **ONE_LAYER), tmp_path / "graph")
    assert not list(tmp_path.iterdir())


def test_transformers_that_is_too_old(
    runtime: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("transformers.exporters.base.ExportedModel")
    with pytest.raises(InputError, match=r"needs transformers 5.23 or later, not \d"):
        write_onnx(build("llama", **ONE_LAYER), tmp_path / "graph")
    assert not list(tmp_path.iterdir())
