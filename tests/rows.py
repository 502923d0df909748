"""Comparisons of one row of the table of architectures, for its tests and its evidence."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from sos_deap import gene_map, load, masked, prune
from sos_deap.models.costs import sparsity_measure
from sos_deap.models.families import FAMILIES
from sos_deap.models.genes import GeneMap
from sos_deap.models.narrow import narrowed
from tests.tiny import inputs, output, random_order, repeated, without

#: Settings of the tiny models of further variants of a row.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "falcon": [
        {"multi_query": False},
        {"alibi": True},
        {"alibi": True, "multi_query": False},
        {"new_decoder_architecture": True, "num_kv_heads": 2},
    ],
    "gpt_bigcode": [{"multi_query": False}],
    "cohere": [{"use_qk_norm": True}],
    "deberta": [{"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}],
    "layoutlmv3": [{"has_relative_attention_bias": True, "has_spatial_attention_bias": True}],
    "stablelm": [{"qk_layernorm": True, "num_key_value_heads": 2}],
}


def layouts(among: Sequence[str] = tuple(sorted(FAMILIES))) -> list[str]:
    """One architecture for each different row, for tests of what rows have in common.

    :param among: the architectures to choose from, in order.
    """
    # Llama stands for its row, and otherwise the first in the alphabet.
    ranked = sorted(among, key=lambda name: (name != "llama", name), reverse=True)
    return sorted({FAMILIES[name]: name for name in ranked}.values())


def has_experts(model: Any) -> bool:
    """Whether a model is a mixture of experts.

    Its kernels sum in an order that depends on the weights' addresses.
    """
    return any(name.endswith("experts") for name, _ in model.named_modules())


class Batches:
    """Calibration text of random examples, each an input of the model."""

    one_pass = True
    seqlen = 9

    def __init__(self, model: Any, count: int = 6) -> None:
        torch.manual_seed(11)
        self.batches = [inputs(model) for _ in range(count)]

    def __len__(self) -> int:
        return len(self.batches)

    def describe(self) -> dict[str, Any]:
        return {"split": "random", "batches": len(self)}

    def score(self, model: Any, examples: slice, sub_models: int) -> Any:
        batches = self.batches[examples]
        joined = {name: torch.cat([one[name] for one in batches]) for name in batches[0]}
        return model(**joined, use_cache=False) if _takes_cache(model) else model(**joined)


def _takes_cache(model: Any) -> bool:
    return model.main_input_name != "pixel_values" and hasattr(model.config, "use_cache")


def kv_heads_of(family: str) -> int | None:
    """The number of key/value heads of a tiny model: 2 where 4 query heads can share them."""
    return 2 if hasattr(AutoConfig.for_model(family), "num_key_value_heads") else None


def kinds_of(family: str) -> str:
    """The finest genes that a row claims: heads, of which a group is several, and others."""
    row = FAMILIES[family]
    return "heads" + "+channels" * bool(row.feed_forward) + "+experts" * bool(row.experts)


def gene_map_of(model: Any, kinds: str) -> GeneMap:
    """The gene map of a model, with channels in a random order."""
    order = random_order(model) if "channels" in kinds else None
    return gene_map(model, kinds, 4, order)


def corners(genes: GeneMap) -> list[list[int]]:
    """A layer without attention, one without feed-forward and one without both; nothing left."""
    attention = {"layers", "attention", "heads", "groups"}
    last = max(part.layer for part in genes.parts)
    forward: dict[int, set[str] | None] = {1: {"ffn", "channels", "experts"}} if last else {}
    return [
        without(genes, {0: attention, **forward, **({2: None} if last > 1 else {})}),
        [0] * len(genes),
    ]


def mixed(genes: GeneMap, seed: int) -> list[int]:
    """A random chromosome that has no attention in the second layer."""
    rng, corner = random.Random(seed), without(genes, {1: {"heads", "groups", "attention"}})
    return [gene and int(rng.random() < 0.6) for gene in corner]


def difference(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, over the largest expected value."""
    return float((actual - expected).abs().max() / expected.abs().max())


def differences(
    model: Any, genes: GeneMap, several: list[list[int]], folder: Path
) -> Iterator[tuple[str, float]]:
    """Compare sub-models masked in one batch with the same sub-models computed in other ways.

    :param model: the dense model.
    :param genes: its gene map.
    :param several: chromosomes; the last one keeps everything.
    :param folder: an empty folder.
    :returns: what was compared, and by how much it differs.
    """
    batch = inputs(model)
    dense = output(model, batch)
    with masked(model, several, genes):
        together = output(model, repeated(batch, len(several))).split(2)
    yield "dense", difference(together[-1], dense)
    share = sparsity_measure(model, genes, "parameters")
    for number, (chromosome, expected) in enumerate(zip(several, together, strict=True)):
        with masked(model, [chromosome], genes):
            yield "alone", difference(output(model, batch), expected)
        with ExitStack() as stack:
            for site, keep in zip(genes.sites, genes.kept(chromosome), strict=True):
                if len(keep) < site.units:
                    stack.enter_context(narrowed(model, genes.family, site, keep))
            yield "narrowed", difference(output(model, batch), expected)
        pruned = prune(model, chromosome, genes)
        left = output(pruned, batch)
        yield "sliced", difference(left, expected)
        removed = 1 - pruned.num_parameters() / model.num_parameters()
        yield "parameters", abs(share(chromosome) - removed)
        if number % 2 == 0:
            pruned.save_pretrained(folder / str(number))
            reloaded = load(folder / str(number))
            assert isinstance(reloaded, type(model)) and not reloaded.training
            yield "reloaded", difference(output(reloaded, batch), left)
    yield "restored", difference(output(model, batch), dense)


def generates_alike(model: Any, genes: GeneMap, chromosome: list[int]) -> bool:
    """Whether a sliced model generates with its cache what it does without, and as if masked."""
    batch = inputs(model)
    given = {model.main_input_name: batch[model.main_input_name]}
    if "input_ids" in given:
        given["input_ids"] = given["input_ids"][:, :5]
    how: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    if model.config.is_encoder_decoder:
        how["decoder_start_token_id"] = 1  # some mask the padding, which is 0 here
    pruned: Any = prune(model, chromosome, genes)
    with_cache = pruned.generate(**given, use_cache=True, **how)
    without_cache = pruned.generate(**given, use_cache=False, **how)
    with masked(model, [chromosome], genes):
        expected = model.generate(**given, **how)
    return torch.equal(with_cache, without_cache) and torch.equal(with_cache, expected)


def generates(model: Any) -> bool:
    """Whether a tiny model generates text from one kind of input."""
    sub_configs = type(model.config).sub_configs
    return model.can_generate() and "vision_config" not in sub_configs
