"""Masked = single = sliced = reloaded, for every row of the table of architectures."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from sos_deap import InputError, gene_map, head_map, load, masked, prune
from sos_deap.models.costs import layer_parameters, sparsity_measure
from sos_deap.models.families import FAMILIES, why_unsliceable
from sos_deap.models.genes import GeneMap
from sos_deap.models.hidden_states import States
from sos_deap.models.prune import check_layout
from sos_deap.models.sharing import shared
from tests.rows import (
    VARIANTS,
    corners,
    difference,
    differences,
    gene_map_of,
    generates,
    generates_alike,
    has_experts,
    kinds_of,
    kv_heads_of,
    layouts,
    mixed,
)
from tests.tiny import (
    HEAD_DIM,
    HEADS,
    LAYERS,
    WIDTH,
    assert_close,
    build,
    chromosomes,
    inputs,
    output,
    random_order,
    repeated,
    without,
)

MASKED_ONLY = sorted(name for name, row in FAMILIES.items() if row.unsliceable)
SLICED = sorted(set(FAMILIES) - set(MASKED_ONLY))
#: Architectures, numbers of key/value heads (default: the stock number) and settings.
CASES: list[tuple[str, int | None, dict[str, Any]]] = [
    *((name, kv_heads_of(name), {}) for name in SLICED),
    *((name, None, one) for name, several in VARIANTS.items() for one in several),
    *((name, kv, {}) for name in ("cohere", "llama", "olmo2", "phi3") for kv in (None, 1)),
]


@pytest.mark.parametrize(("family", "kv_heads", "settings"), CASES)
def test_masked_alone_narrowed_sliced_and_reloaded_agree(
    family: str, kv_heads: int | None, settings: dict[str, Any], tmp_path: Path
) -> None:
    model = build(family, kv_heads, **settings)
    genes, batch = gene_map_of(model, kinds_of(family)), inputs(model)
    several = [*corners(genes), mixed(genes, 1), [1] * len(genes)]
    exact = {"reloaded": 1e-6 * has_experts(model), "restored": 0.0}
    for what, found in differences(model, genes, several, tmp_path):
        assert found <= exact.get(what, 1e-5), what
    with masked(model, [several[2]], genes):
        assert difference(output(model, batch), output(prune(model, several[-1], genes), batch)) > 0
    if generates(model):
        assert generates_alike(model, genes, several[2])


@pytest.mark.parametrize(("family", "kv_heads"), [("llama", 2), ("llama", None), ("bart", None)])
def test_many_chromosomes_of_heads(family: str, kv_heads: int | None, tmp_path: Path) -> None:
    model = build(family, kv_heads)
    batch, several = inputs(model), chromosomes(len(head_map(model)), 20)
    with masked(model, several):
        together = output(model, repeated(batch, len(several))).split(2)
    dense = output(model, batch)
    assert_close(together[0], dense)
    for number, (genes, batched) in enumerate(zip(several, together, strict=True)):
        with masked(model, [genes]):
            assert_close(output(model, batch), batched)
        pruned = prune(model, genes)
        assert_close(output(pruned, batch), batched)
        pruned.save_pretrained(tmp_path / str(number))
        reloaded = load(tmp_path / str(number))
        assert torch.equal(output(reloaded, batch), output(pruned, batch))
    assert (together[1] - dense).abs().max() > 0.05 * dense.abs().max()  # heads matter here
    assert torch.equal(output(model, batch), dense)  # and the model is as it was


@pytest.mark.parametrize("family", MASKED_ONLY)
def test_unsliceable_families_are_masked_and_zeroed_and_slicing_is_an_error(
    family: str, tmp_path: Path
) -> None:
    model = build(family)
    batch, several = inputs(model), chromosomes(len(head_map(model)), 5)
    with masked(model, several):
        together = output(model, repeated(batch, len(several))).split(2)
    for number, (genes, batched) in enumerate(zip(several, together, strict=True)):
        with masked(model, [genes]):
            assert_close(output(model, batch), batched)
        zeroed = prune(model, genes, layout="zeroed")
        assert_close(output(zeroed, batch), batched)
        zeroed.save_pretrained(tmp_path / str(number))
        assert_close(output(type(model).from_pretrained(tmp_path / str(number)), batch), batched)
    with pytest.raises(InputError, match=f"a {family} model cannot be sliced: .*; use .* zeroed"):
        prune(model, several[1])
    if FAMILIES[family].feed_forward:
        channels = gene_map_of(model, "channels")
        some = [mixed(channels, 1), [1] * len(channels)]
        for what, found in differences(model, channels, some, tmp_path / "c"):
            assert found <= 1e-5, what


@pytest.mark.parametrize(
    "auto",
    [
        AutoModelForSequenceClassification,
        AutoModelForMaskedLM,
        AutoModelForQuestionAnswering,
        AutoModelForTokenClassification,
    ],
)
@pytest.mark.parametrize("family", ["bert", "deberta-v2", "distilbert", "electra", "modernbert"])
def test_encoders_with_a_task_head(family: str, auto: Any, tmp_path: Path) -> None:
    check_task_head(build(family, auto=auto), tmp_path)


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "phi3", "bart"])
def test_generators_with_a_classification_head(family: str, tmp_path: Path) -> None:
    check_task_head(build(family, auto=AutoModelForSequenceClassification), tmp_path)


def check_task_head(model: Any, folder: Path) -> None:
    batch = inputs(model)
    if model.config.is_encoder_decoder:  # its class is read off where the text ends
        batch = {"input_ids": torch.cat([batch["input_ids"], torch.zeros(2, 1).long()], 1)}
    genes = gene_map(model, "heads+channels", 4, random_order(model))
    for number, chromosome in enumerate(chromosomes(len(genes), 3)):
        with masked(model, [chromosome], genes):
            expected = output(model, batch)
        pruned = prune(model, chromosome, genes)
        assert_close(output(pruned, batch), expected)
        pruned.save_pretrained(folder / str(number))
        assert torch.equal(output(load(folder / str(number)), batch), output(pruned, batch))


def test_a_bert_decoder_with_cross_attention() -> None:
    settings = {"is_decoder": True, "add_cross_attention": True}
    model = build("bert", auto=AutoModelForCausalLM, **settings)
    batch = inputs(model) | {"encoder_hidden_states": torch.randn(2, 5, WIDTH)}
    assert len(head_map(model)) == 2 * LAYERS * HEADS
    genes = gene_map(model, "heads+channels", 4, random_order(model))
    assert len(genes.sites) == 3 * LAYERS
    for chromosome in chromosomes(len(genes), 5):
        with masked(model, [chromosome], genes):
            expected = output(model, batch)
        assert_close(output(prune(model, chromosome, genes), batch), expected)


PADDED = [name for name in layouts(SLICED) if "input_ids" in inputs(build(name))]


@pytest.mark.parametrize("family", PADDED)
def test_padding(family: str) -> None:
    model = build(family, kv_heads_of(family))
    batch, genes = inputs(model), chromosomes(len(head_map(model)), 0)[3]
    pruned = prune(model, genes)
    for padding in (slice(0, 3), slice(6, 9)):
        attention_mask = torch.ones_like(batch["input_ids"])
        attention_mask[0, padding] = 0
        padded = batch | {"attention_mask": attention_mask}
        with masked(model, [genes, genes]):
            both = output(model, repeated(padded, 2))
        sliced = output(pruned, padded)
        visible = attention_mask.bool()
        if both.shape[1] != 9 or model.config.is_encoder_decoder:
            visible = torch.ones(both[:2].shape[:-1], dtype=torch.bool)
        assert_close(both[:2][visible], sliced[visible])
        assert_close(both[:2][visible], both[2:][visible])


GENERATE = [("llama", 2), ("gpt2", None), ("bart", None), ("falcon", None), ("phi3", 2)]


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize(("family", "kv_heads"), [*GENERATE, ("t5", None), ("bloom", None)])
def test_generation_uses_the_cache(
    family: str, kv_heads: int | None, eager: bool, tmp_path: Path
) -> None:
    model = build(family, kv_heads)
    ids = inputs(model)["input_ids"][:, :5]
    if eager:
        model.set_attn_implementation("eager")
    how: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    several = chromosomes(len(head_map(model)), 2)
    for number, genes in enumerate(several[-2:] if eager else several[1:]):
        pruned: Any = prune(model, genes)
        pruned.save_pretrained(tmp_path / str(number))
        reloaded: Any = load(tmp_path / str(number))
        with_cache = pruned.generate(ids, use_cache=True, **how)
        assert torch.equal(with_cache, pruned.generate(ids, use_cache=False, **how))
        assert torch.equal(with_cache, reloaded.generate(ids, **how))
        with masked(model, [genes]):
            assert torch.equal(with_cache, model.generate(ids, **how))


@pytest.mark.parametrize("family", ["llama", "bart", "gpt2"])
def test_beam_search(family: str) -> None:
    model = build(family)
    ids = inputs(model)["input_ids"]
    how: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 6, "pad_token_id": 0}
    for genes in chromosomes(len(head_map(model)), 3):
        with masked(model, [genes]):
            expected = model.generate(ids, **how)
        pruned: Any = prune(model, genes)
        assert torch.equal(pruned.generate(ids, **how), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("family", "kv_heads"), [("llama", 2), ("gpt2", None), ("bert", None)])
def test_half_precision(
    family: str, kv_heads: int | None, dtype: torch.dtype, tmp_path: Path
) -> None:
    build(family, kv_heads).save_pretrained(tmp_path / "dense")
    model = load(tmp_path / "dense", dtype=dtype)
    batch, genes = inputs(model), gene_map(model, "heads+channels", 4, random_order(model))
    chromosome = without(genes, {0: {"heads"}, 1: {"channels"}})
    chromosome[5] = 0  # a block of channels
    pruned = prune(model, chromosome, genes)
    with masked(model, [chromosome], genes):
        expected = output(model, batch)
    # Sums in another order are rounded differently, by a few units in the last place.
    scale = 30 * torch.finfo(dtype).eps * expected.abs().max()
    assert (output(pruned, batch) - expected).abs().max() <= scale
    pruned.save_pretrained(tmp_path / "pruned")
    reloaded = load(tmp_path / "pruned")
    assert reloaded.dtype == dtype
    assert torch.equal(output(reloaded, batch), output(pruned, batch))


BY_HAND: list[tuple[str, int | None]] = [
    ("bart", None),
    ("bert", None),
    ("gpt2", None),
    ("gpt_neox", None),
    ("modernbert", None),
]
BY_HAND += [(name, kv) for name in ("llama", "phi3", "qwen3") for kv in (None, 2, 1)]


@pytest.mark.parametrize(("family", "kv_heads"), [*BY_HAND, ("deberta-v2", None), ("falcon", None)])
def test_pruning_removes_parameters_of_the_copy_only(family: str, kv_heads: int | None) -> None:
    model = build(family, kv_heads)
    before, config = copy.deepcopy(model.state_dict()), model.config.to_dict()
    heads = head_map(model)
    genes = ([1, 1, 1, 0] + [1] * HEADS + [0, 0, 1, 1]) * (len(heads) // (LAYERS * HEADS))
    pruned = prune(model, genes)
    assert model.config.to_dict() == config
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    own = {p.data_ptr() for p in model.parameters()}
    assert not own & {p.data_ptr() for p in pruned.parameters() if p.numel()}
    # By hand: a query head has rows of q and columns of o, a key/value head rows of k and v.
    expected = 0
    for layer, lost in zip(heads.attention, lost_heads(heads, genes), strict=True):
        group = layer.units // layer.groups
        gone_kv = sum(not any(lost[i : i + group]) for i in range(0, layer.units, group))
        attention = model.get_submodule(layer.module)
        names = [name for name, _ in attention.named_parameters() if name.endswith("bias")]
        biased = any(
            name.split(".")[0] not in layer.consumer and "norm" not in name for name in names
        )
        expected += lost.count(0) * HEAD_DIM * (2 * WIDTH + biased)
        expected += 2 * gone_kv * HEAD_DIM * (WIDTH + biased)
        expected += (
            lost.count(0)
            * HEAD_DIM
            * sum(1 + WIDTH for part in heads.family.more if hasattr(attention, part))
        )
    assert model.num_parameters() - pruned.num_parameters() == expected


def lost_heads(heads: GeneMap, genes: list[int]) -> list[list[int]]:
    """For each attention module 1 or 0 for each head."""
    masks = zip(heads.sites, heads.masks([genes]), strict=True)
    return [mask[0].tolist() for site, mask in masks if site.kind == "attention"]


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    model = build("gpt2")
    pruned = prune(model, [1, 0, 1, 1] * LAYERS)
    assert pruned.get_output_embeddings().weight is pruned.get_input_embeddings().weight
    pruned.save_pretrained(tmp_path)
    reloaded = load(tmp_path)
    assert reloaded.get_output_embeddings().weight is reloaded.get_input_embeddings().weight


def test_a_key_value_head_is_removed_with_its_last_query_head() -> None:
    pruned: Any = prune(build("llama", 2), [1, 0, 0, 0] + [0, 0, 1, 1] + [1, 1, 1, 0])
    attention: Any = [block.self_attn for block in pruned.model.layers]
    widths = [(a.q_proj.out_features // 8, a.k_proj.out_features // 8) for a in attention]
    assert widths == [(1, 1), (2, 1), (3, 2)]


@pytest.mark.parametrize("family", ["cohere", "mistral", "phi3", "qwen3"])
def test_the_attention_implementation_can_be_changed_afterwards(
    family: str, tmp_path: Path
) -> None:
    model = build(family, 2)
    batch, genes = inputs(model), [1, 1, 0, 0] + [1, 0, 1, 1] + [0, 1, 0, 1]  # unequal groups
    prune(model, genes).save_pretrained(tmp_path)
    for how in ("eager", "sdpa", "eager"):
        model.set_attn_implementation(how)
        with masked(model, [genes]):
            expected = output(model, batch)
        code = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
        for pruned in (prune(model, genes), load(tmp_path), code, copy.deepcopy(code)):
            for _ in range(2):
                pruned.set_attn_implementation(how)
                assert pruned.config._attn_implementation == how
                assert_close(output(pruned, batch), expected)


def test_head_map() -> None:
    heads = head_map(build("llama", 2))
    assert len(heads) == LAYERS * HEADS
    assert heads.heads_per_layer == (HEADS,) * LAYERS
    assert {layer.groups for layer in heads.attention} == {2}


def test_a_gene_can_stand_for_a_key_value_head_and_its_query_heads() -> None:
    model = build("llama", 2)
    heads, batch = head_map(model, unit="group"), inputs(model)
    assert len(heads) == LAYERS * 2
    genes = [1, 0, 0, 1, 1, 1]
    by_hand = [1, 1, 0, 0] + [0, 0, 1, 1] + [1, 1, 1, 1]
    assert heads.kept_heads(genes) == head_map(model).kept_heads(by_hand)
    with masked(model, [by_hand]):
        expected = output(model, batch)
    with masked(model, [genes], heads):
        assert torch.equal(output(model, batch), expected)
    pruned: Any = prune(model, genes, heads)
    assert_close(output(pruned, batch), expected)
    assert [block.self_attn.k_proj.out_features // 8 for block in pruned.model.layers] == [1, 1, 2]
    with pytest.raises(InputError, match=r"12 genes, the model 6 groups .*one gene per group"):
        heads.kept_heads(by_hand)


def test_heads_named_by_layer() -> None:
    model = build("llama", 2)
    heads = head_map(model)
    assert heads.without({0: [1, 3], 2: [0]}) == [1, 0, 1, 0] + [1] * 4 + [0, 1, 1, 1]
    groups = head_map(model, unit="group")
    assert groups.without({1: [2, 3]}) == [1, 1, 1, 0, 1, 1]
    for asked, removed, message in (
        (heads, {3: [0]}, "no layer 3: the model has 3"),
        (heads, {1: [4]}, "layer 1 has no head 4: it has 4"),
        (groups, {1: [2]}, "layer 1: remove whole groups of 2 heads"),
    ):
        with pytest.raises(InputError, match=message):
            asked.without(removed)


def test_unknown_units() -> None:
    with pytest.raises(InputError, match="unknown unit 'heads': did you mean 'head'"):
        head_map(build("llama"), unit="heads")


def test_an_architecture_without_a_row_is_masked_and_zeroed_but_not_sliced() -> None:
    model = build("doge")
    assert "doge" not in FAMILIES
    batch, genes = inputs(model), [1, 0, 0, 1] * LAYERS
    with masked(model, [genes]):
        expected = output(model, batch)
    assert_close(output(prune(model, genes, layout="zeroed"), batch), expected)
    with pytest.raises(InputError, match=r"doge model cannot be sliced: the table .* no row"):
        prune(model, genes)


def test_settings_that_can_only_be_masked() -> None:
    settings: dict[str, Any] = {
        "attention_type": "block_sparse",
        "block_size": 2,
        "num_random_blocks": 1,
    }
    model = build("big_bird", **settings)
    heads, batch, genes = head_map(model), inputs(model), [1, 0, 0, 1] * LAYERS
    assert heads.heads_per_layer == (HEADS,) * LAYERS
    with masked(model, [genes], heads):
        expected = output(model, batch)
    assert_close(output(prune(model, genes, layout="zeroed"), batch), expected)
    assert why_unsliceable(heads.family, model.config)
    with pytest.raises(InputError, match="cannot be sliced: it has attention_type="):
        prune(model, genes)


@pytest.mark.parametrize("heads", [[1, 0, 1, 1], [1, 1, 1, 0], [0, 0, 0, 1], [1, 0, 0, 1]])
def test_a_fused_projection_of_groups_keeps_one_key_and_value_for_each(heads: list[int]) -> None:
    model = build("falcon", new_decoder_architecture=True, num_kv_heads=2)
    batch, chromosome = inputs(model), heads * LAYERS
    pruned: Any = prune(model, chromosome)
    groups = any(heads[:2]) + any(heads[2:])
    for layer in pruned.transformer.h:
        rows = layer.self_attention.query_key_value.out_features
        assert rows == (sum(heads) + 2 * groups) * HEAD_DIM
    with masked(model, [chromosome]):
        assert_close(output(pruned, batch), output(model, batch))


def test_feed_forwards_in_another_list_belong_to_the_layer_of_the_same_number() -> None:
    model = build("xlm")
    genes, batch = gene_map(model, "layers"), inputs(model)
    assert [site.module for site in genes.sites] == [
        f"{kind}.{number}" for number in range(LAYERS) for kind in ("attentions", "ffns")
    ]
    assert len(genes) == LAYERS
    layers = sum(p.numel() for part in (model.attentions, model.ffns) for p in part.parameters())
    assert layer_parameters(model, genes) == layers
    with masked(model, [[1, 0, 1]], genes):
        expected = output(model, batch)
    assert_close(output(prune(model, [1, 0, 1], genes), batch), expected)


def test_a_model_without_its_architecture_s_layers_is_refused() -> None:
    model = build("llama")
    del model.model.layers[:]
    with pytest.raises(InputError, match=r"no attention layer of the llama architecture"):
        head_map(model)


def test_unknown_architecture_names_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"'Linear'.*known are aimv2, albert"):
        head_map(torch.nn.Linear(2, 2))
    with pytest.raises(InputError, match=r"unknown architecture 'mamba'"):
        head_map(AutoModel.from_config(AutoConfig.for_model("mamba", num_hidden_layers=1)))


def test_pruning_twice_is_refused() -> None:
    pruned = prune(build("gpt2"), [1, 0, 1, 1] * LAYERS)
    with pytest.raises(InputError, match="already pruned"):
        prune(pruned, [1] * LAYERS * HEADS)


@pytest.mark.parametrize(
    ("genes", "message"),
    [([1] * 5, "5 genes, the model 12 heads"), ([1] * 11 + [2], "a gene is 2")],
)
def test_bad_chromosomes(genes: list[int], message: str) -> None:
    model = build("llama")
    with pytest.raises(InputError, match=message):
        prune(model, genes)
    with pytest.raises(InputError, match=message), masked(model, [genes]):
        pass


@pytest.mark.parametrize("family", ["bart", "gpt2", "llama"])
def test_the_model_is_restored_after_an_exception(family: str) -> None:
    model = build(family)
    batch, genes = inputs(model), [0] * len(head_map(model))
    three = {name: value[[0, 1, 0]] for name, value in batch.items()}
    dense = output(model, batch)
    with pytest.raises(InputError, match="3 rows for 2 sub-models"), masked(model, [genes] * 2):
        output(model, three)
    assert torch.equal(output(model, batch), dense)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_copies_made_inside_the_context_have_no_mask(family: str) -> None:
    model = build(family)
    batch, genes = inputs(model), [1, 0, 1, 1] + [0, 1, 1, 0] * (LAYERS - 1)
    dense = output(model, batch)
    expected = [output(prune(model, genes, layout=name), batch) for name in ("sliced", "zeroed")]
    with masked(model, [genes[::-1]]):
        pruned = [prune(model, genes, layout=name) for name in ("sliced", "zeroed")]
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    assert all(map(torch.equal, [output(one, batch) for one in pruned], expected))
    assert all(torch.equal(output(one, batch), dense) for one in [*copies, model])


def test_a_mask_can_be_entered_once() -> None:
    model = build("llama")
    context = masked(model, [[1, 0, 1, 1] * LAYERS])
    with context, pytest.raises(InputError, match=r"once: call masked\(\) again"), context:
        pass
    with pytest.raises(InputError, match="can be entered once"), context:
        pass


@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2", "llama"])
def test_dynamic_quantisation_of_a_pruned_model(family: str) -> None:
    model = build(family)
    batch, genes = inputs(model), gene_map(model, "heads+channels", 4, random_order(model))
    corner = without(genes, {0: {"heads"}, 1: {"channels"}, 2: None})
    for chromosome in ([1, 0, 1, 1] * 2 * LAYERS, corner):
        pruned = prune(model, chromosome, genes)
        expected = output(pruned, batch)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantised = torch.ao.quantization.quantize_dynamic(pruned, {torch.nn.Linear})
        assert (output(quantised, batch) - expected).abs().max() < 0.1 * expected.abs().max()


def test_quantised_feed_forwards_are_refused_if_channels_are_genes() -> None:
    model = build("llama")
    projection = model.model.layers[0].mlp.up_proj
    projection.weight = torch.nn.Parameter(projection.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(InputError, match="up_proj is a Linear of torch.int8.*without quantis"):
        prune(model, [0, 1] * LAYERS, gene_map(model, "channels", 2))
    assert prune(model, [0, 1, 1, 1] * LAYERS).num_parameters() < model.num_parameters()


@pytest.mark.parametrize("layout", ["sliced", "zeroed"])
def test_quantised_projections_are_refused(layout: str) -> None:
    model = build("llama")
    projection = model.model.layers[0].self_attn.q_proj
    projection.weight = torch.nn.Parameter(projection.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(InputError, match="q_proj is a Linear of torch.int8.*without quantisation"):
        prune(model, [0, 1, 1, 1] * LAYERS, layout=layout)


@pytest.mark.parametrize("shared", [True, False])
def test_relative_positions_of_deberta(shared: bool) -> None:
    settings: dict[str, Any] = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
    settings |= {"share_att_key": shared, "position_buckets": 4, "max_relative_positions": 8}
    model = build("deberta-v2", **settings)
    batch = inputs(model)
    assert hasattr(model.encoder.layer[0].attention.self, "pos_key_proj") != shared
    for genes in chromosomes(len(head_map(model)), 20):
        with masked(model, [genes]):
            expected = output(model, batch)
        pruned = prune(model, genes)
        assert_close(output(pruned, batch), expected)


@pytest.mark.parametrize("kv_heads", [None, 2, 1])
def test_norms_of_each_head(kv_heads: int | None, tmp_path: Path) -> None:
    model = build("cohere", kv_heads, use_qk_norm=True)
    batch, heads = inputs(model), head_map(model)
    assert model.model.layers[0].self_attn.q_norm.weight.shape == (HEADS, HEAD_DIM)
    share = sparsity_measure(model, heads, "parameters")
    several = chromosomes(len(heads), 20)
    with shared(model, several, heads, States(0), None):
        together = output(model, repeated(batch, len(several))).split(2)
    for number, (genes, at_once) in enumerate(zip(several, together, strict=True)):
        with masked(model, [genes]):
            expected = output(model, batch)
        pruned = prune(model, genes)
        assert_close(output(pruned, batch), expected)
        assert_close(at_once, expected)
        left = pruned.num_parameters() / model.num_parameters()
        assert share(genes) == pytest.approx(1 - left)
        pruned.save_pretrained(tmp_path / str(number))
        assert torch.equal(output(load(tmp_path / str(number)), batch), output(pruned, batch))
    if kv_heads is None:
        genes = [1, 1, 0, 0] * LAYERS
        uniform = prune(model, genes, layout="uniform")
        with masked(model, [genes]):
            assert_close(output(uniform, batch), output(model, batch))


@pytest.mark.parametrize("family", ["bert", "qwen3"])
def test_tensors_that_depend_on_the_heads_and_are_in_no_row_are_refused(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention: Any = type(build(family).get_submodule(head_map(build(family)).attention[0].module))
    stock, follows = attention.__init__, True

    def with_sinks(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        stock(self, config, *args, **kwargs)
        self.sinks = torch.nn.Parameter(torch.zeros(config.num_attention_heads if follows else 4))

    monkeypatch.setattr(attention, "__init__", with_sinks)
    model, genes = build(family), [1, 0, 0, 1] * LAYERS
    for layout in ("sliced", "uniform"):
        with pytest.raises(InputError, match=r"sinks cannot be sliced: .*; use the layout zeroed"):
            check_layout(model, head_map(model), layout)
    prune(model, genes, layout="zeroed")
    follows = False  # as many by chance
    prune(model, genes)
    if family == "qwen3":  # its norms are as wide as a head, and there are as many heads
        prune(build(family, head_dim=HEADS), genes)


def test_tensors_that_depend_on_the_channels_and_are_in_no_row_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mlp: Any = type(build("llama").model.layers[0].mlp)
    stock = mlp.__init__

    def with_norm(self: Any, config: Any) -> None:
        stock(self, config)
        self.norm = torch.nn.LayerNorm(config.intermediate_size)

    monkeypatch.setattr(mlp, "__init__", with_norm)
    model = build("llama")
    genes = gene_map(model, "channels", 4)
    for layout in ("sliced", "uniform"):
        with pytest.raises(InputError, match=r"norm.weight cannot be sliced: .* the layout zeroed"):
            check_layout(model, genes, layout)
    prune(model, [1, 0, 0, 1] * LAYERS, genes, layout="zeroed")
    prune(model, [1, 0, 0, 1] * LAYERS)  # heads can still be sliced


def test_an_architecture_without_a_row_has_masked_and_zeroed_channels() -> None:
    model = build("doge")
    genes, batch = gene_map(model, "heads+channels", 4, random_order(model)), inputs(model)
    chromosome = chromosomes(len(genes), 1)[-1]
    with masked(model, [chromosome], genes):
        expected = output(model, batch)
    assert_close(output(prune(model, chromosome, genes, layout="zeroed"), batch), expected)
    for kinds in ("channels", "heads+channels"):
        genes = gene_map(model, kinds, 4)
        with pytest.raises(InputError, match=r"doge model cannot be sliced: the table .* no row"):
            prune(model, [1] * len(genes), genes)
