"""Channels, sub-layers and layers as genes: masked = alone = narrowed = sliced = reloaded."""

from __future__ import annotations

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
        for number, (chromosome, batched) in enumerate(zip(several[:-1], together[:-1], strict=True)):
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
