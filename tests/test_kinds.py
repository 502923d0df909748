"""Channels, sub-layers and layers as genes: masked = alone = narrowed = sliced = reloaded."""

from __future__ import annotations

import copy
import random
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from sos_deap import InputError, gene_map, load, masked, prune
from sos_deap.models.families import FAMILIES
from sos_deap.models.genes import GeneMap
from sos_deap.models.hidden_states import States
from sos_deap.models.narrow import narrowed
from sos_deap.models.sharing import blocks_of, shared
from tests.tiny import assert_close, build, inputs, output, random_order, repeated, without

WITH_CHANNELS = sorted(name for name, row in FAMILIES.items() if row.feed_forward)
SLICED = [name for name in WITH_CHANNELS if not FAMILIES[name].unsliceable]
MASKED_ONLY = [name for name in WITH_CHANNELS if FAMILIES[name].unsliceable]
GROUPED = [name for name in SLICED if hasattr(AutoConfig.for_model(name), "num_key_value_heads")]


def corners(genes: GeneMap) -> list[list[int]]:
    """A layer without attention, one without feed-forward and one without both; nothing left."""
    sub_layers = "layers" if genes.genes == "layers" else "attention"
    return [
        without(genes, {0: {sub_layers, "heads", "groups"}, 1: {"ffn", "channels"}, 2: None}),
        [0] * len(genes),
    ]


def mixed(genes: GeneMap, seed: int) -> list[int]:
    """A random chromosome that has no attention in the second layer."""
    rng, corner = random.Random(seed), without(genes, {1: {"heads", "groups", "attention"}})
    return [gene and int(rng.random() < 0.6) for gene in corner]


def kinds_of(family: str) -> list[tuple[int | None, str]]:
    """Numbers of key/value heads (default: the stock number) and kinds of genes to test.

    Other kinds remove the same units; each row is tested with one of them in turn.
    """
    others = ("attention+ffn", "layers", "channels")
    other = others[WITH_CHANNELS.index(family) % len(others)]
    unsliceable = [] if family in SLICED or other == "channels" else [(None, "channels")]
    first = (2, "groups+channels") if family in GROUPED else (None, "heads+channels")
    return [first, (None, other), *unsliceable]


@pytest.mark.parametrize("family", WITH_CHANNELS)
def test_masked_single_narrowed_sliced_and_reloaded_agree(family: str, tmp_path: Path) -> None:
    for kv_heads, kinds in kinds_of(family):
        model = build(family, kv_heads)
        genes, batch = gene_map(model, kinds, 4, random_order(model)), inputs(model)
        several = [*corners(genes), mixed(genes, 1), [1] * len(genes)]
        with masked(model, several, genes):
            together = output(model, repeated(batch, len(several))).split(2)
        dense = output(model, batch)
        assert_close(together[-1], dense)
        assert (together[1] - dense).abs().max() > 0.05 * dense.abs().max()
        chain = blocks_of(model, genes) is not None and family != "bloom"
        if chain:
            with shared(model, several, genes, States(0), None):
                at_once = output(model, repeated(batch, len(several))).split(2)
        sliceable = family in SLICED or kinds == "channels"
        for number, (chromosome, batched) in enumerate(
            zip(several[:-1], together[:-1], strict=True)
        ):
            with masked(model, [chromosome], genes):
                assert_close(output(model, batch), batched)
            if chain:
                assert_close(at_once[number], batched)
            if not sliceable:
                zeroed = prune(model, chromosome, genes, "zeroed")
                assert_close(output(zeroed, batch), batched)
                continue
            with ExitStack() as stack:
                for site, keep in zip(genes.sites, genes.kept(chromosome), strict=True):
                    if len(keep) < site.units:
                        stack.enter_context(narrowed(model, genes.family, site, keep))
                assert_close(output(model, batch), batched)
            check_sliced(model, genes, chromosome, batch, batched, tmp_path / f"{kinds}{number}")
        assert torch.equal(output(model, batch), dense)
        if not sliceable:
            with pytest.raises(InputError, match=f"a {family} model cannot be sliced: .* zeroed"):
                prune(model, several[0], genes)


def check_sliced(
    model: Any,
    genes: GeneMap,
    chromosome: list[int],
    batch: dict[str, torch.Tensor],
    expected: torch.Tensor,
    folder: Path,
) -> None:
    pruned = prune(model, chromosome, genes)
    assert_close(output(pruned, batch), expected)
    pruned.save_pretrained(folder)
    reloaded = load(folder)
    assert isinstance(reloaded, type(model)) and not reloaded.training
    assert torch.equal(output(reloaded, batch), output(pruned, batch))


@pytest.mark.parametrize(
    ("family", "layer", "consumer", "conv"),
    [
        ("bert", "encoder.layer.{}", "output.dense", False),
        ("gpt2", "transformer.h.{}", "mlp.c_proj", True),
        ("llama", "model.layers.{}", "mlp.down_proj", False),
        ("phi3", "model.layers.{}", "mlp.down_proj", False),
    ],
)
def test_channels_removed_by_hand(family: str, layer: str, consumer: str, conv: bool) -> None:
    model = build(family)
    order, batch = random_order(model), inputs(model)
    genes = gene_map(model, "channels", 5, order)  # blocks of 10, 10, 9, 10 and 9 channels
    assert [(part.layer, part.kind, part.size) for part in genes.parts] == [
        (number, "channels", 5) for number in range(3)
    ]
    chromosome = [1, 0, 1, 0, 1] + [0] * 5 + [1, 1, 1, 1, 0]
    removed = [order[0][10:20] + order[0][29:39], order[1], order[2][39:]]
    by_hand, channels = copy.deepcopy(model), []
    for number, lost in enumerate(removed):
        weight = by_hand.get_submodule(f"{layer.format(number)}.{consumer}").weight.data
        (weight if conv else weight.T)[lost] = 0
        channels.append(48 - len(lost))
    expected = output(by_hand, batch)
    with masked(model, [chromosome], genes):
        assert_close(output(model, batch), expected)
    pruned = prune(model, chromosome, genes)
    assert_close(output(pruned, batch), expected)
    kept = [sorted(set(range(48)) - set(lost)) for lost in removed]
    assert genes.kept_channels(chromosome) == kept
    for number, keep in enumerate(kept):
        mine: Any = pruned.get_submodule(f"{layer.format(number)}.{consumer}").weight
        stock: Any = model.get_submodule(f"{layer.format(number)}.{consumer}").weight
        assert torch.equal(mine if conv else mine.T, (stock if conv else stock.T)[keep])
    assert pruned.config.kept_channels == channels == [28, 0, 39]
    assert pruned.config.kept_heads == [[0, 1, 2, 3]] * 3


def test_layers_removed_by_hand() -> None:
    model = build("llama")
    genes, batch = gene_map(model, "layers"), inputs(model)
    assert [(part.layer, part.kind, part.size) for part in genes.parts] == [
        (number, "layers", 1) for number in range(3)
    ]
    shorter = copy.deepcopy(model)
    del shorter.model.layers[1]
    expected = output(shorter, batch)
    with masked(model, [[1, 0, 1]], genes):
        assert_close(output(model, batch), expected)
    sub_layers = gene_map(model, "attention+ffn")
    for pruned in (prune(model, [1, 0, 1], genes), prune(model, [1, 1, 0, 0, 1, 1], sub_layers)):
        assert_close(output(pruned, batch), expected)
        assert (pruned.config.kept_heads[1], pruned.config.kept_channels) == ([], [48, 0, 48])


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(WITH_CHANNELS)))
def test_rows_without_a_feed_forward_have_attention_genes_only(family: str) -> None:
    model = build(family)
    for kinds in ("channels", "heads+ffn", "layers"):
        with pytest.raises(InputError, match=f"a {family} model has no genes of kind") as error:
            gene_map(model, kinds)
        assert "\n" not in str(error.value) and "mixture of experts; use the" in str(error.value)
    genes, batch = gene_map(model, "attention"), inputs(model)
    assert len(genes) == 3
    with masked(model, [[0, 1, 0]], genes):
        expected = output(model, batch)
    pruned = prune(model, [0, 1, 0], genes)
    assert_close(output(pruned, batch), expected)
    assert not hasattr(pruned.config, "kept_channels")
    pruned = prune(model, [0, 1] * 6, gene_map(model, "heads"))
    assert pruned.config.kept_heads == [[1, 3]] * 3


GENERATE = [("gpt2", None), ("llama", 2), ("phi3", None), ("bart", None), ("gpt_neox", None)]


@pytest.mark.parametrize(("family", "kv_heads"), GENERATE)
def test_generation_with_and_without_cache(
    family: str, kv_heads: int | None, tmp_path: Path
) -> None:
    model = build(family, kv_heads)
    ids = inputs(model)["input_ids"][:, :5]
    how: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    genes = gene_map(model, "heads+channels", 4, random_order(model))
    for number, chromosome in enumerate([*corners(genes), mixed(genes, 3)]):
        pruned: Any = prune(model, chromosome, genes)
        pruned.save_pretrained(tmp_path / str(number))
        with_cache = pruned.generate(ids, use_cache=True, **how)
        assert torch.equal(with_cache, pruned.generate(ids, use_cache=False, **how))
        reloaded: Any = load(tmp_path / str(number))
        assert torch.equal(with_cache, reloaded.generate(ids, **how))
        with masked(model, [chromosome], genes):
            assert torch.equal(with_cache, model.generate(ids, **how))


@pytest.mark.parametrize(("family", "kv_heads"), [("gpt2", None), ("llama", 2), ("bart", None)])
def test_a_loaded_pruned_model_is_trained(
    family: str, kv_heads: int | None, tmp_path: Path
) -> None:
    model = build(family, kv_heads)
    genes = gene_map(model, "heads+channels", 4, random_order(model))
    prune(model, corners(genes)[0], genes).save_pretrained(tmp_path / "pruned")
    reloaded: Any = load(tmp_path / "pruned").train()
    assert reloaded.config.kept_heads[0] == []
    ids = inputs(model)["input_ids"]
    before = {name: weight.detach().clone() for name, weight in reloaded.named_parameters()}
    optimizer = torch.optim.AdamW(reloaded.parameters(), lr=1e-2)
    losses = []
    for _ in range(4):
        loss = reloaded(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, weight in reloaded.named_parameters():
        if weight.numel():
            assert weight.grad is not None and not torch.equal(weight, before[name]), name
    reloaded.eval().save_pretrained(tmp_path / "trained")
    batch = inputs(model)
    assert torch.equal(output(load(tmp_path / "trained"), batch), output(reloaded, batch))
