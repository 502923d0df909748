"""Channels, sub-layers and layers as genes: masked = alone = narrowed = sliced = reloaded."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from sos_deap import InputError, gene_map, load, masked, prune
from sos_deap.models.families import FAMILIES
from sos_deap.models.hidden_states import States
from sos_deap.models.sharing import blocks_of, shared
from tests.rows import corners, differences, gene_map_of, mixed
from tests.tiny import assert_close, build, inputs, output, random_order, repeated

WITH_CHANNELS = sorted(name for name, row in FAMILIES.items() if row.feed_forward)


@pytest.mark.parametrize("kinds", ["attention+ffn", "layers", "channels"])
@pytest.mark.parametrize(
    "family", ["albert", "bart", "bert", "bloom", "gpt2", "llama", "mpnet", "olmo2", "t5", "vit"]
)
def test_whole_sub_layers_and_channels_agree(family: str, kinds: str, tmp_path: Path) -> None:
    model = build(family)
    genes, batch = gene_map_of(model, kinds), inputs(model)
    several = [*corners(genes), mixed(genes, 1), [1] * len(genes)]
    for what, found in differences(model, genes, several, tmp_path):
        assert found <= (0 if what in ("reloaded", "restored") else 1e-5), what
    if blocks_of(model, genes) is not None and family != "bloom":
        with masked(model, several, genes):
            together = output(model, repeated(batch, len(several)))
        with shared(model, several, genes, States(0), None):
            assert_close(output(model, repeated(batch, len(several))), together)


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


@pytest.mark.parametrize("family", ["glm4_moe", "phimoe"])
def test_rows_without_a_feed_forward_have_attention_genes_only(family: str) -> None:
    model = build(family)
    for kinds in ("channels", "heads+ffn", "layers"):
        with pytest.raises(InputError, match=f"a {family} model has no genes of kind") as error:
            gene_map(model, kinds)
        assert str(error.value).endswith(
            "row for its feed-forward; use the genes heads, groups or attention"
        )
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
