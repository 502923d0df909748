"""Layouts, and folders that `load` must refuse."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from benchmarks.gpu import llama_2_7b_config
from sos_deap import InputError, gene_map, head_map, load, masked, prune
from sos_deap.models.families import FAMILIES
from sos_deap.models.uniform import uniform_counts
from tests.conftest import GENES, small_llama
from tests.rows import layouts
from tests.tiny import assert_close, build, chromosomes, inputs, output, random_order


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    genes = [1, 0, 1, 1] + [0] * 4 + [1] * (GENES - 8)
    prune(small_llama(), genes).save_pretrained(tmp_path / "pruned")
    return tmp_path / "pruned"


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def test_the_config_names_the_kept_heads(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["kept_heads"] == [[0, 2, 3], [], [0, 1, 2, 3]]
    assert load(folder).config.kept_heads == config["kept_heads"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "modeling_pruned.py",
    ]


def test_the_stock_class_does_not_load_it_silently(folder: Path) -> None:
    with pytest.raises(RuntimeError, match="size mismatch|ignore_mismatched_sizes"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_a_foreign_or_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere does not exist"):
        load(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no config.json"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kept_heads": [[0, 2, 3], []]}, "for each of the model's 3 attention modules"),
        ({"kept_heads": [[0, 2, 4], [], [0, 1, 2, 3]]}, "rising order"),
        ({"kept_heads": [[3, 2, 0], [], [0, 1, 2, 3]]}, "rising order"),
        ({"kept_heads": [[0, "2", 3], [], [0, 1, 2, 3]]}, "rising order"),
        ({"kept_heads": 7}, "for each of the model's 3 attention modules"),
        ({"kept_heads": [[0, 2], [], [0, 1, 2, 3]]}, "cannot load|do not fit"),
        ({"architectures": ["os"]}, "names the model class 'os'"),
        ({"architectures": [["LlamaForCausalLM"]]}, "names the model class"),
        ({"architectures": 3}, "damaged"),
        ({"num_hidden_layers": 4, "kept_heads": [[0, 2, 3], [], [0, 1], [0]]}, "do not fit|cannot"),
        ({"hidden_size": "wide"}, "cannot load"),
    ],
)
def test_a_damaged_config(folder: Path, changes: dict[str, Any], message: str) -> None:
    rewrite(folder, **changes)
    with pytest.raises(InputError, match=message):
        load(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe", b'{"kept_heads": [[0]]}'])
def test_an_invalid_config(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(InputError, match="config.json"):
        load(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, -10])
def test_truncated_weights(folder: Path, keep: int) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(InputError, match="cannot load"):
        load(folder)


def test_missing_weights_are_an_error(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(InputError, match=r"1 missing keys, such as model.layers.0.mlp.up_pr"):
        load(folder)
    weights.unlink()
    with pytest.raises(InputError, match="cannot load"):
        load(folder)


def test_pickled_weights_are_not_read(folder: Path) -> None:
    import torch

    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot load"):
        load(folder)


@pytest.mark.parametrize("family", ["bart", "bert", "falcon", "gpt2", "gpt_neox", "llama", "vit"])
def test_the_zeroed_layout_is_a_stock_model(family: str, tmp_path: Path) -> None:
    model = build(family)
    genes, batch = gene_map(model, "heads+channels", 4, random_order(model)), inputs(model)
    chromosome = chromosomes(len(genes), 1)[-1]
    with masked(model, [chromosome], genes):
        expected = output(model, batch)
    zeroed = prune(model, chromosome, genes, layout="zeroed")
    assert type(zeroed) is type(model) and zeroed.num_parameters() == model.num_parameters()
    assert_close(output(zeroed, batch), expected)
    zeroed.save_pretrained(tmp_path)
    assert torch.equal(output(type(model).from_pretrained(tmp_path), batch), output(zeroed, batch))
    assert torch.equal(output(load(tmp_path), batch), output(zeroed, batch))


UNIFORM = [
    ("gemma", None), ("gemma2", None), ("gemma3_text", None), ("granite", None), ("llama", None),
    ("llama", 1), ("mistral", None), ("mixtral", None), ("phi3", None), ("qwen2", None),
    ("qwen3", None), ("smollm3", None), ("starcoder2", None), ("vit", None),
]  # fmt: skip


@pytest.mark.parametrize(("family", "kv_heads"), UNIFORM)
def test_the_uniform_layout_is_a_smaller_stock_model(
    family: str, kv_heads: int | None, tmp_path: Path
) -> None:
    model = build(family, kv_heads)
    batch, genes = inputs(model), [1, 0, 1, 0] + [1, 1, 0, 0] + [0, 0, 1, 1]
    with masked(model, [genes]):
        expected = output(model, batch)
    uniform = prune(model, genes, layout="uniform")
    assert type(uniform) is type(model) and uniform.num_parameters() < model.num_parameters()
    assert_close(output(uniform, batch), expected)
    uniform.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    assert AutoConfig.from_pretrained(tmp_path).num_attention_heads == 2
    assert torch.equal(output(type(model).from_pretrained(tmp_path), batch), output(uniform, batch))
    assert len(head_map(uniform)) == 6  # so it can be pruned again


def test_the_uniform_layout_of_grouped_query_attention_takes_whole_groups(tmp_path: Path) -> None:
    model = build("llama", 2)
    heads, batch = head_map(model, unit="group"), inputs(model)
    with pytest.raises(InputError, match="whole groups: use the genes groups"):
        prune(model, [1, 0, 1, 0] * 3, layout="uniform")
    with masked(model, [[1, 0, 0, 1, 1, 0]], heads):
        expected = output(model, batch)
    prune(model, [1, 0, 0, 1, 1, 0], heads, "uniform").save_pretrained(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_close(output(stock, batch), expected)
    assert (stock.config.num_attention_heads, stock.config.num_key_value_heads) == (2, 1)


# Their configs have several parts, or one size for feed-forwards and experts.
OTHER_SIZES = ("aimv2", "clip", "siglip", "switch_transformers", "t5gemma")
WIDTHS = layouts(
    [
        name
        for name, row in FAMILIES.items()
        if row.feed_forward and row.feed_forward.sizes and name not in OTHER_SIZES
    ]
)


@pytest.mark.parametrize("family", WIDTHS)
def test_a_stock_model_with_fewer_channels(family: str, tmp_path: Path) -> None:
    model = build(family)
    genes, batch = gene_map(model, "channels", 4, random_order(model)), inputs(model)
    chromosome = [
        gene for part in genes.parts for gene in ([1, 0, 0, 1], [0, 1, 0, 1])[part.layer % 2]
    ]
    with masked(model, [chromosome], genes):
        expected = output(model, batch)
    uniform = prune(model, chromosome, genes, "uniform")
    assert type(uniform) is type(model) and uniform.num_parameters() < model.num_parameters()
    assert_close(output(uniform, batch), expected)
    uniform.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    sizes = genes.family.feed_forward.sizes  # type: ignore[union-attr]
    assert {getattr(AutoConfig.from_pretrained(tmp_path), name) for name in sizes} == {24}
    assert torch.equal(output(type(model).from_pretrained(tmp_path), batch), output(uniform, batch))
    again = gene_map(uniform, "channels")  # so it can be pruned again
    assert {site.units for site in again.feed_forward} == {24}


@pytest.mark.parametrize(
    ("family", "kv_heads", "kinds"),
    [
        ("llama", 2, "groups+channels"),
        ("qwen3", 2, "groups+channels"),
        ("phi3", 2, "groups+channels"),
        ("gemma", None, "heads+channels"),
        ("vit", None, "heads+channels"),
    ],
)
def test_a_stock_model_with_fewer_heads_and_channels(
    family: str, kv_heads: int | None, kinds: str, tmp_path: Path
) -> None:
    model = build(family, kv_heads)
    genes, batch = gene_map(model, kinds, 4, random_order(model)), inputs(model)
    counts = uniform_counts(model, genes)
    assert list(counts) == genes.kinds and counts["channels"] == [1, 2, 3, 4]
    chromosome = [
        int(gene % 2 == part.layer % 2) for part in genes.parts for gene in range(part.size)
    ]
    with masked(model, [chromosome], genes):
        expected = output(model, batch)
    prune(model, chromosome, genes, "uniform").save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    stock: Any = type(model).from_pretrained(tmp_path)
    assert_close(output(stock, batch), expected)
    assert (stock.config.num_attention_heads, stock.config.intermediate_size) == (2, 24)
    chromosome[-1] ^= 1
    with pytest.raises(InputError, match="equally many feed-forward channels, at least one"):
        prune(model, chromosome, genes, "uniform")


def test_kinds_of_genes_that_the_uniform_layout_cannot_have() -> None:
    model = build("llama", 2)
    for kinds, named in (
        ("attention+ffn", "attention"),
        ("layers", "layers"),
        ("heads+ffn", "ffn"),
        ("attention+channels", "attention"),
    ):
        genes = gene_map(model, kinds, 4)
        with pytest.raises(InputError, match=f"keeps every sub-layer: the genes {named}") as error:
            prune(model, [1] * len(genes), genes, "uniform")
        assert "\n" not in str(error.value)
    genes = gene_map(model, "heads+channels", 4)
    with pytest.raises(InputError, match="whole groups: use the genes groups"):
        prune(model, [1] * len(genes), genes, "uniform")
    bloom = build("bloom")
    genes = gene_map(bloom, "channels", 4)
    with pytest.raises(InputError, match="stock bloom config cannot have fewer channels") as error:
        prune(bloom, [1, 0, 1, 0] * 3, genes, "uniform")
    assert "\n" not in str(error.value) and "use the layout sliced or zeroed" in str(error.value)
    five = gene_map(model, "channels", 5)
    with pytest.raises(InputError, match="48 channels cannot be divided into 5 blocks; use a cha"):
        uniform_counts(model, five)
    one = gene_map(model, "channels", 1)
    with pytest.raises(
        InputError, match="cannot have fewer channels .each layer has one gene only"
    ):
        prune(model, [1] * 3, one, "uniform")


@pytest.mark.parametrize("family", ["bart", "bert", "falcon", "gpt2", "gptj", "opt", "modernbert"])
def test_configs_that_cannot_have_fewer_heads_are_named(family: str) -> None:
    model = build(family)
    genes = [1, 0, 1, 0] * (len(head_map(model)) // 4)
    with pytest.raises(InputError, match=f"stock {family} config cannot have fewer heads .*sliced"):
        prune(model, genes, layout="uniform")


@pytest.mark.parametrize(
    "genes", [[1, 0, 1, 1] + [1, 0, 0, 1] + [1, 1, 1, 0], [0] * 12], ids=["unequal", "none"]
)
def test_the_uniform_layout_needs_equally_many_heads(genes: list[int]) -> None:
    with pytest.raises(InputError, match="equally many heads, at least one"):
        prune(build("llama"), genes, layout="uniform")


def test_counts_that_a_stock_config_can_have() -> None:
    # In LlamaConfig the number of heads must divide hidden_size (32), in MistralConfig not.
    for family, counts in (("llama", [1, 2, 4]), ("mistral", [1, 2, 3, 4])):
        model = build(family)
        assert uniform_counts(model, head_map(model)) == {"heads": counts}
    with pytest.raises(InputError, match="hidden size .* is not a multiple"):
        prune(build("llama"), [1, 1, 1, 0] * 3, layout="uniform")


def test_unknown_layouts() -> None:
    with pytest.raises(InputError, match="unknown layout 'zero': did you mean 'zeroed'"):
        prune(build("llama"), [1] * 12, layout="zero")


def test_the_bytes_of_the_paper_s_largest_model() -> None:
    """Table II, LLaMA-2 7B by LLM.int8: linear layers in int8, the rest in float16; no weights."""
    with torch.device("meta"):
        model = LlamaForCausalLM(llama_2_7b_config())

    def mebibytes(model: Any) -> float:
        int8 = {
            id(module.weight)
            for module in model.model.layers.modules()
            if isinstance(module, torch.nn.Linear)
        }
        sizes = (one.numel() * (1 if id(one) in int8 else 2) for one in model.parameters())
        return float(sum(sizes)) / 2**20

    assert round(mebibytes(model), 2) == 6676.51
    removed = set(random.sample(range(1024), 317))
    pruned = prune(model, [int(gene not in removed) for gene in range(1024)])
    assert round(mebibytes(pruned), 2) == 6042.51
