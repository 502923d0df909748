"""Sparsity and operations of sub-models against those counted for the pruned model."""

from __future__ import annotations

import random
from typing import Any

import numpy
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sos_deap import Evaluator, InputError, head_map, prune
from sos_deap.models.costs import ShareOfGenes, sparsity_measure
from sos_deap.models.examples import random_inputs
from sos_deap.models.families import FAMILIES
from sos_deap.models.find_genes import gene_map
from sos_deap.models.flops import Flops, counting
from sos_deap.models.hidden_states import Kept, States
from sos_deap.models.sharing import blocks_of, shared
from tests.rows import layouts
from tests.tiny import (
    LAYERS,
    VOCABULARY,
    WIDTH,
    build,
    chromosomes,
    output,
    random_order,
    without,
)

SLICED = layouts([name for name, family in FAMILIES.items() if not family.unsliceable])
GROUPED = {"gemma3_text": 2, "llama": 2, "qwen3": 1, "phi3": 2}
_SETTINGS = {"falcon": {"multi_query": True, "new_decoder_architecture": False, "alibi": False}}


@pytest.mark.parametrize(
    ("family", "kv_heads"), [(name, None) for name in SLICED] + list(GROUPED.items())
)
def test_it_is_the_share_that_slicing_removes(family: str, kv_heads: int | None) -> None:
    model = build(family, kv_heads, **_SETTINGS.get(family, {}))
    heads = head_map(model)
    share = sparsity_measure(model, heads, "parameters")
    total = sum(p.numel() for p in model.parameters())
    for genes in chromosomes(len(heads), 5):
        left = sum(p.numel() for p in prune(model, genes).parameters())
        assert share(genes) * total == pytest.approx(total - left, abs=0.01)


def test_groups() -> None:
    model = build("llama", 2)
    groups = head_map(model, "group")
    share = sparsity_measure(model, groups, "parameters")
    one = [0] + [1] * (len(groups) - 1)
    left = prune(model, one, groups).num_parameters()
    assert share(one) == pytest.approx(1 - left / model.num_parameters())


def test_heads_are_counted_as_the_paper_does() -> None:
    model = build("llama")
    share = sparsity_measure(model, head_map(model), "genes")
    assert share([1] * 12) == 0
    assert share([0] * 3 + [1] * 9) == 0.25
    assert share(bytes([0] * 12)) == 1


def test_unknown_sparsities() -> None:
    model = build("llama")
    with pytest.raises(
        InputError, match="unknown sparsity_of 'parameter': did you mean 'parameters'"
    ):
        sparsity_measure(model, head_map(model), "parameter")
    codegen = build("codegen")
    with pytest.raises(InputError, match="sparsity_of parameters is undefined: its projection of"):
        sparsity_measure(codegen, head_map(codegen), "parameters")


@pytest.mark.parametrize(
    ("family", "kv_heads"),
    [("bert", None), ("gpt2", None), ("llama", None), ("llama", 4), ("opt", None), ("phi3", None)],
)
def test_sub_models_cost_what_the_sliced_model_s_operations_are(
    family: str, kv_heads: int | None
) -> None:
    model = build(family, kv_heads)
    heads, ids = head_map(model), torch.randint(1, VOCABULARY, (2, 9))
    blocks = blocks_of(model, heads)
    assert blocks is not None

    def count(model: Any) -> int:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            output(model, {"input_ids": ids})
        found: int = counter.get_total_flops()
        return found

    flops = Flops(model, heads, blocks, lambda: output(model, {"input_ids": ids}))
    assert flops.total == count(model) and 0 <= flops.outside < flops.total
    for genes in chromosomes(len(heads), 4):
        mine = flops.outside + sum(
            block - flops.saved(2 * depth, keep)  # of two sites, the attention is the first
            for depth, (block, keep) in enumerate(
                zip(flops.blocks, heads.kept_heads(genes), strict=True)
            )
        )
        assert mine == pytest.approx(count(prune(model, genes)))


@pytest.mark.parametrize(
    ("family", "kv_heads"),
    [("bert", None), ("gpt2", None), ("llama", 2), ("modernbert", None), ("opt", None)],
)
def test_sub_models_with_fewer_channels_cost_what_the_sliced_model_s_operations_are(
    family: str, kv_heads: int | None
) -> None:
    model = build(family, kv_heads)
    genes, ids = gene_map(model, "heads+channels", 4, random_order(model)), torch.ones(2, 9).long()
    blocks = blocks_of(model, genes)
    assert blocks is not None

    def run(model: Any = model) -> Any:
        return output(model, {"input_ids": ids})

    def count(run: Any) -> int:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            run()
        found: int = counter.get_total_flops()
        return found

    flops = Flops(model, genes, blocks, run)
    layers = [[i for i, site in enumerate(genes.sites) if site.block == path] for path in blocks]
    corner = without(genes, {0: {"heads"}, 1: {"channels"}, 2: None})
    several = [corner, *chromosomes(len(genes), 3)]
    for chromosome in several:
        kept = genes.kept(chromosome)
        mine = flops.outside + sum(
            block - sum(flops.saved(site, kept[site]) for site in sites)
            for block, sites in zip(flops.blocks, layers, strict=True)
        )
        assert mine == pytest.approx(count(lambda c=chromosome: run(prune(model, c, genes))))

    # What a shared pass computes: an attention that is used again costs nothing.
    states, mine = States(10**9), 0.0

    def add(layer: int, kept: Kept, attended: bool, rows: int) -> None:
        nonlocal mine
        mine += flops.blocks[layer] - sum(flops.saved(site, kept[site]) for site in kept)
        if not attended:
            site = layers[layer][0]
            mine -= flops.attention(site, kept[site])

    states.on_layer = add
    other = list(corner)
    other[-1], other[-5] = 1, 1  # the last layer's channels, the last of its heads
    batch = [corner, [*corner[:-1], 1], [*corner[:-2], 1, 0], other, several[-1]]

    def at_once() -> None:
        with shared(model, batch, genes, states, None):
            output(model, {"input_ids": ids.repeat(len(batch), 1)})

    total = count(at_once)
    assert mine + flops.outside * len(batch) == pytest.approx(total)


@pytest.mark.parametrize("family", layouts())
def test_operations_are_those_counted_for_the_sliced_model(family: str) -> None:
    model, row = build(family), FAMILIES[family]
    kinds = [] if row.unsliceable else ["heads"]
    genes = gene_map(model, "+".join(kinds + ["channels"] * bool(row.feed_forward)), 4)
    share = sparsity_measure(model, genes, "operations", 9)
    batch = random_inputs(model, 1, 9, 9)

    def count(model: Any) -> int:
        with counting(model) as counter, torch.inference_mode():
            model(**batch)
        found: int = counter.get_total_flops()
        return found

    rng = random.Random(2)
    for chromosome in ([0] * len(genes), [rng.randint(0, 1) for _ in range(len(genes))]):
        left = count(prune(model, chromosome, genes)) / count(model)
        assert share(chromosome) == pytest.approx(1 - left, abs=1e-9)


def test_random_inputs_of_sound_have_as_many_vectors_as_asked_for() -> None:
    # The stock kernels and strides, of which the last convolution leaves no sample out.
    kernels: dict[str, Any] = {
        "conv_kernel": (10, 3, 3, 3, 3, 2, 2),
        "conv_stride": (5, 2, 2, 2, 2, 2, 2),
    }
    sizes: dict[str, Any] = {"conv_dim": (8,) * 7, "num_feat_extract_layers": 7}
    model = build("wav2vec2", **kernels, **sizes)
    for tokens in (1, 2, 7):
        batch = random_inputs(model, 2, tokens)
        assert output(model, batch).shape == (2, tokens, WIDTH)
        shorter = {name: value[:, :-1] for name, value in batch.items()}
        if tokens > 1:
            assert output(model, shorter).shape == (2, tokens - 1, WIDTH)


def test_a_model_that_compares_texts_with_images_has_inputs_of_both() -> None:
    batch = random_inputs(build("siglip"), 2, 5)
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "input_ids": (2, 5),
        "attention_mask": (2, 5),
        "pixel_values": (2, 3, 16, 16),
    }


def test_operations_of_a_function_s_model_are_those_of_128_tokens() -> None:
    model = build("llama", max_position_embeddings=128)
    made = Evaluator(model, lambda model: 0.0, sparsity_of="operations")
    expected = sparsity_measure(model, made.gene_map, "operations", 128)
    one = [0] + [1] * 11
    assert made.sparsity(one) == expected(one)
    assert expected(one) != sparsity_measure(model, made.gene_map, "operations", 1)(one)


def test_heads_is_the_former_name_of_genes() -> None:
    with pytest.raises(InputError, match="sparsity_of heads is now called genes: give"):
        Evaluator(build("llama"), lambda model: 0.0, sparsity_of="heads")


@pytest.mark.parametrize("shared_key", [True, False])
def test_relative_positions_of_deberta_are_counted(shared_key: bool) -> None:
    kinds = ["c2p", "p2c"]
    settings: dict[str, Any] = {"share_att_key": shared_key, "position_buckets": 4}
    settings |= {"norm_rel_ebd": "layer_norm", "relative_attention": True, "pos_att_type": kinds}
    model = build("deberta-v2", **settings)
    heads, batch = head_map(model), {"input_ids": torch.randint(1, VOCABULARY, (2, 9))}
    with torch.inference_mode():
        flops = Flops(model, heads, blocks_of(model, heads) or [], lambda: model(**batch))
    table = 2 * 4  # relative positions, which have a key and a query each
    projections = 2 * WIDTH * WIDTH * (4 * 18 + 2 * table)
    scores = 2 * 2 * WIDTH * (2 * 9 * 9 + 2 * 9 * table)  # by content, and by position
    feed_forward = 2 * 2 * 18 * WIDTH * 48
    assert flops.total == LAYERS * (projections + scores + feed_forward)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_share_of_many_genes_in_8_bits() -> None:
    chromosome = numpy.ones(400, "int8")
    chromosome[:100] = 0
    assert ShareOfGenes(400)(chromosome) == 0.25  # type: ignore[arg-type]
