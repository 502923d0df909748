"""Shared prefixes and narrowed layers against masking and slicing."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from sos_deap import InputError, gene_map, head_map, masked, prune
from sos_deap.models.hidden_states import States
from sos_deap.models.memory import is_out_of_memory
from sos_deap.models.sharing import blocks_of, shared, shares
from tests.rows import layouts
from tests.tiny import (
    VOCABULARY,
    assert_close,
    build,
    chromosomes,
    inputs,
    output,
    random_order,
    repeated,
)

GROUPED = {"gemma3_text": 2, "llama": 2, "mistral": 1, "phi3": 2, "qwen3": 2}
_SETTINGS = {"falcon": {"multi_query": True, "new_decoder_architecture": False, "alibi": False}}
# A position bias with a row per head, not per sequence; hidden states with four values per token.
NOT_SHARED = ("bloom", "gemma3n_text")
CHAINS = [
    (family, kv_heads)
    for family, kv_heads in [(name, None) for name in layouts()] + list(GROUPED.items())
    if set(inputs(m := build(family, kv_heads))) == {"input_ids"}
    and blocks_of(m, head_map(m)) is not None
    and family not in NOT_SHARED
]


def related(genes: int) -> list[list[int]]:
    """Random chromosomes, some that share prefixes, and duplicates."""
    rng = random.Random(7)
    several = chromosomes(genes, 4)
    for parent in list(several):
        child = list(parent)
        child[rng.randrange(genes)] ^= 1
        several.append(child)
    return [*several, several[0], several[6]]


def run(model: Any, several: list[list[int]], ids: torch.Tensor, states: States) -> torch.Tensor:
    with shared(model, several, head_map(model), states, "x"):
        return output(model, {"input_ids": ids.repeat(len(several), 1)})


@pytest.mark.parametrize(("family", "kv_heads"), CHAINS)
def test_sharing_gives_the_result_of_masking(family: str, kv_heads: int | None) -> None:
    model = build(family, kv_heads, **_SETTINGS.get(family, {}))
    ids = torch.randint(1, VOCABULARY, (2, 9))
    several = related(len(head_map(model)))
    with masked(model, several):
        expected = output(model, {"input_ids": ids.repeat(len(several), 1)})
    forwards = {name: module.forward for name, module in model.named_modules()}
    weights = {name: id(weight) for name, weight in model.named_parameters()}
    implementation = model.config._attn_implementation
    for states in (States(0), States(1_000), States(10**9)):  # none, some and all are cached
        for _ in range(2):
            assert_close(run(model, several, ids, states), expected)
    assert all(module.forward == forwards[name] for name, module in model.named_modules())
    assert {name: id(weight) for name, weight in model.named_parameters()} == weights
    assert model.config._attn_implementation == implementation


def test_a_sub_model_does_not_depend_on_the_others_bit_for_bit() -> None:
    model, ids = build("llama", 2), torch.randint(1, VOCABULARY, (2, 9))
    several = related(12)
    alone = torch.cat([run(model, [genes], ids, States(0)) for genes in several])
    together, cached = States(10**9), States(3_000)
    assert torch.equal(run(model, several, ids, together), alone)
    for genes, expected in zip(several, alone.split(2), strict=True):
        assert torch.equal(run(model, [genes], ids, together), expected)
        assert torch.equal(run(model, [genes], ids, cached), expected)


def test_every_distinct_prefix_is_computed_once() -> None:
    model, ids = build("llama"), torch.randint(1, VOCABULARY, (2, 9))
    calls: list[tuple[int, int]] = []
    for depth, block in enumerate(model.model.layers):
        block.self_attn.register_forward_pre_hook(
            lambda module, args, kwargs, depth=depth: calls.append(
                (depth, len(kwargs["hidden_states"]))
            ),
            with_kwargs=True,
        )
    a, b, c = [1] * 12, [1] * 8 + [0, 1, 1, 1], [1] * 4 + [0] * 8
    states = States(10**9)
    run(model, [a, b, c, a], ids, states)
    # Layer 0 once for all, layer 1 for a and b together and for c, layer 2 for each.
    assert calls == [(0, 2), (1, 2), (1, 2), (2, 2), (2, 2), (2, 2)]
    calls.clear()
    run(model, [[1] * 8 + [0, 0, 1, 1]], ids, states)
    assert calls == [(2, 2)]  # the rest is known


@pytest.mark.parametrize(("family", "kv_heads"), [("llama", 2), ("gpt2", None), ("bert", None)])
def test_attention_is_shared_up_to_the_first_other_feed_forward(
    family: str, kv_heads: int | None
) -> None:
    model, ids = build(family, kv_heads), torch.randint(1, VOCABULARY, (2, 9))
    genes = gene_map(model, "heads+channels", 4, random_order(model))
    assert [part.size for part in genes.parts] == [4, 4] * 3
    attention, consumers = list[int](), list[int]()
    for site in genes.sites:
        if site.kind == "attention":
            query = f"{site.module}.{genes.family.query}"
            watched, calls = model.get_submodule(query), attention
        else:
            watched, calls = model.get_submodule(site.consumer), consumers
        layer = [one.block for one in genes.attention].index(site.block)
        watched.register_forward_pre_hook(
            lambda *_, calls=calls, layer=layer: calls.append(layer),
        )
    dense, heads = [1] * 24, [1, 0, 1, 1]
    a = [*heads, *dense[:4], *heads, 1, 1, 0, 0, *dense[:8]]
    b = [*heads, *dense[:4], *heads, 1, 0, 1, 0, *dense[:8]]  # in the feed-forward of layer 1
    c = [*heads, *dense[:4], 0, 0, 1, 0, 1, 0, 1, 0, *dense[:8]]  # in the attention of layer 1
    d = [*heads, *dense[:4], 0, 0, 1, 0, 0, 0, 0, 0, *dense[:8]]  # in its feed-forward
    e = [*heads, *dense[:4], *heads, 1, 1, 0, 0, *dense[:4], 0, 1, 1, 1]  # of a, in layer 2
    computed: list[tuple[int, bool]] = []

    def evaluate(several: list[list[int]], states: States) -> torch.Tensor:
        attention.clear()
        consumers.clear()
        computed.clear()
        states.on_layer = lambda layer, kept, attended, rows: computed.append((layer, attended))
        with shared(model, several, genes, states, "x"):
            return output(model, {"input_ids": ids.repeat(len(several), 1)})

    several = [a, b, c, d, e, a]
    states = States(10**9)
    found = evaluate(several, states).split(2)
    # Layer 1 has two attentions, each with two feed-forwards; layer 2 continues each of the four.
    assert attention == [0, 1, 1, 2, 2, 2, 2]
    assert consumers == [0] + [1] * 4 + [2] * 5
    assert [attended for layer, attended in computed if layer == 1].count(True) == 2
    assert [layer for layer, _ in computed] == consumers
    with masked(model, several, genes):
        expected = output(model, {"input_ids": ids.repeat(len(several), 1)}).split(2)
    for chromosome, one, other in zip(several, found, expected, strict=True):
        assert_close(one, other)
        assert torch.equal(evaluate([chromosome], States(0)), one)
        assert torch.equal(evaluate([chromosome], states), one)
        assert attention == [2]  # the hidden state after layer 1 is cached
    assert torch.equal(
        torch.cat(evaluate([d, a, e], States(0)).split(2)),
        torch.cat([found[3], found[0], found[4]]),
    )


def test_the_memory_is_bounded_and_the_last_used_stay() -> None:
    states, state = States(3 * 40), torch.zeros(10)
    for key in "abc":
        states.put(key, state.clone())
    assert states.get("a") is not None
    states.put("d", state.clone())
    assert [key for key in "abcd" if states.get(key) is not None] == ["a", "c", "d"]
    assert states.bytes == 120
    states.put("e", torch.zeros(100))  # larger than all of it
    assert states.get("e") is None and states.bytes == 120
    states.clear()
    assert states.bytes == 0 and states.get("a") is None


def test_padding_and_a_classifier() -> None:
    for family in ("bert", "llama", "modernbert"):
        model = build(family, auto=AutoModelForSequenceClassification, num_labels=3, pad_token_id=0)
        ids = torch.randint(1, VOCABULARY, (3, 9))
        mask = torch.ones_like(ids)
        mask[0, 5:] = ids[0, 5:] = 0
        several = related(12)
        batch = {"input_ids": ids, "attention_mask": mask}
        many = {name: value.repeat(len(several), 1) for name, value in batch.items()}
        with shared(model, several, head_map(model), States(10**9), "x"):
            found = output(model, many)
        for genes, logits in zip(several, found.split(3), strict=True):
            assert_close(logits, output(prune(model, genes), batch))


def test_a_tensor_as_long_as_the_batch_by_chance_is_not_cut() -> None:
    """DeBERTa passes its layers a table of 2 * position_buckets rows, here as many as the batch."""
    model = build("deberta-v2", relative_attention=True, pos_att_type=["c2p", "p2c"])
    several = related(len(head_map(model)))[:8]
    table = model.deberta if hasattr(model, "deberta") else model
    length = len(table.encoder.get_rel_embedding())
    ids = torch.randint(1, VOCABULARY, (length // len(several), 9))
    assert len(ids) * len(several) == length
    with masked(model, several):
        expected = output(model, {"input_ids": ids.repeat(len(several), 1)})
    assert_close(run(model, several, ids, States(0)), expected)


def test_bad_batches_and_errors_leave_the_model_as_it_was() -> None:
    model, ids = build("llama"), torch.randint(1, VOCABULARY, (3, 9))
    forwards = {name: module.forward for name, module in model.named_modules()}
    with (
        pytest.raises(InputError, match="the batch has 3 rows for 2 sub-models"),
        shared(model, [[1] * 12] * 2, head_map(model), States(0), "x"),
    ):
        model(ids)
    assert all(module.forward == forwards[name] for name, module in model.named_modules())
    bart = build("bart")
    assert blocks_of(bart, head_map(bart)) is None


def test_models_that_cannot_be_shared_are_detected() -> None:
    for family, fits in (("llama", True), ("t5", False), ("bart", False), ("bloom", False)):
        model = build(family)
        batch = inputs(model)

        def run_once(model: Any = model, batch: Any = batch) -> None:
            output(model, repeated(batch, 2))

        assert shares(model, head_map(model), run_once) is fits, family


@pytest.mark.parametrize("kinds", ["heads+channels", "channels", "attention+ffn", "layers"])
def test_models_can_be_shared_whatever_the_genes(kinds: str) -> None:
    model = build("gpt2")
    genes, batch = gene_map(model, kinds, 4), repeated(inputs(model), 2)
    assert shares(model, genes, lambda: output(model, batch))
    attention = model.transformer.h[0].attn
    stock, calls = attention.forward, list[int]()

    def of_all_rows(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        first, *rest = stock(*args, **kwargs)
        return (first + len(first), *rest)

    attention.forward = of_all_rows  # what it computes depends on the rows of the batch
    assert not shares(model, genes, lambda: output(model, batch))
    assert calls


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError("std::bad_alloc"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried"), True),
        (RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA"), True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (ValueError("std::bad_alloc"), False),
    ],
)
def test_errors_of_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected
