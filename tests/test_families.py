"""Masked = single = sliced = reloaded, for every row of the table of architectures."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from sos_deap import InputError, head_map, load, masked, prune
from sos_deap.models.families import FAMILIES

LAYERS, HEADS, WIDTH = 3, 4, 32
# Nothing here names an architecture's parts: a new row of FAMILIES is tested by its name alone.
SMALL = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "vocab_size": 61,
    "max_position_embeddings": 64,
}
CASES = [*((family, None) for family in sorted(FAMILIES)), ("llama", 2), ("llama", 1)]
CAUSAL = [(family, kv) for family, kv in CASES if family in ("gpt2", "llama")]


def build(family: str, kv_heads: int | None = None, auto: Any = None) -> Any:
    """A tiny random model whose weights, biases included, are all far from zero."""
    torch.manual_seed(5)
    extra = {} if kv_heads is None else {"num_key_value_heads": kv_heads}
    stock = AutoConfig.for_model(family)
    known = {k: v for k, v in SMALL.items() if hasattr(stock, k)}
    config = AutoConfig.for_model(family, **known, **extra, pad_token_id=0)
    auto = auto or (AutoModelForCausalLM if family in ("gpt2", "llama") else AutoModel)
    model = auto.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def chromosomes(count: int) -> list[list[int]]:
    """Random chromosomes, the corner cases first: all, none, one head, an empty first layer."""
    rng = random.Random(3)
    corners = [
        [1] * LAYERS * HEADS,
        [0] * LAYERS * HEADS,
        [0] * (LAYERS * HEADS - 1) + [1],
        [0] * HEADS + [1, 0, 1, 1] * (LAYERS - 1),
        [1, 0, 0, 1] * (LAYERS - 1) + [0] * HEADS,
    ]
    return corners + [[rng.randint(0, 1) for _ in range(LAYERS * HEADS)] for _ in range(count)]


def output(model: PreTrainedModel, ids: torch.Tensor, **extra: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(ids, **extra)[0]  # type: ignore[no-any-return]


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    scale = expected.abs().max()
    assert (actual - expected).abs().max() <= 1e-5 * scale


@pytest.mark.parametrize(("family", "kv_heads"), CASES)
def test_masked_single_sliced_and_reloaded_agree(
    family: str, kv_heads: int | None, tmp_path: Path
) -> None:
    model, ids = build(family, kv_heads), torch.randint(1, 61, (2, 9))
    several = chromosomes(20)
    with masked(model, several):
        together = output(model, ids.repeat(len(several), 1)).split(len(ids))
    dense = output(model, ids)
    assert_close(together[0], dense)
    for number, (genes, batched) in enumerate(zip(several, together, strict=True)):
        with masked(model, [genes]):
            assert_close(output(model, ids), batched)
        pruned = prune(model, genes)
        assert_close(output(pruned, ids), batched)
        pruned.save_pretrained(tmp_path / str(number))
        reloaded = load(tmp_path / str(number))
        assert type(reloaded) is type(model) and not reloaded.training
        assert torch.equal(output(reloaded, ids), output(pruned, ids))
    assert not torch.allclose(together[1], dense, rtol=1e-2)  # heads matter in these models
    assert torch.equal(output(model, ids), dense)  # and the model is as it was


@pytest.mark.parametrize("auto", [AutoModelForSequenceClassification, AutoModelForMaskedLM])
@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"gpt2", "llama"}))
def test_encoders_with_a_task_head(family: str, auto: Any, tmp_path: Path) -> None:
    model, ids = build(family, auto=auto), torch.randint(1, 61, (2, 9))
    for number, genes in enumerate(chromosomes(3)):
        with masked(model, [genes]):
            expected = output(model, ids)
        pruned = prune(model, genes)
        assert_close(output(pruned, ids), expected)
        pruned.save_pretrained(tmp_path / str(number))
        assert torch.equal(output(load(tmp_path / str(number)), ids), output(pruned, ids))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("family", "kv_heads"), CASES)
def test_padding(family: str, kv_heads: int | None, side: str) -> None:
    model, ids = build(family, kv_heads), torch.randint(1, 61, (2, 9))
    attention_mask = torch.ones_like(ids)
    attention_mask[0, slice(0, 3) if side == "left" else slice(6, 9)] = 0
    genes = chromosomes(0)[3]
    with masked(model, [genes, genes]):
        both = output(model, ids.repeat(2, 1), attention_mask=attention_mask.repeat(2, 1))
    sliced = output(prune(model, genes), ids, attention_mask=attention_mask)
    visible = attention_mask.bool()
    assert_close(both[:2][visible], sliced[visible])
    assert_close(both[:2][visible], both[2:][visible])


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize(("family", "kv_heads"), CAUSAL)
def test_generation_uses_the_cache(
    family: str, kv_heads: int | None, eager: bool, tmp_path: Path
) -> None:
    model, ids = build(family, kv_heads), torch.randint(1, 61, (2, 5))
    if eager:
        model.set_attn_implementation("eager")
    how: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    for number, genes in enumerate(chromosomes(4)):
        pruned: Any = prune(model, genes)
        pruned.save_pretrained(tmp_path / str(number))
        reloaded: Any = load(tmp_path / str(number))
        with_cache = pruned.generate(ids, use_cache=True, **how)
        assert torch.equal(with_cache, pruned.generate(ids, use_cache=False, **how))
        assert torch.equal(with_cache, reloaded.generate(ids, **how))
        with masked(model, [genes]):
            assert torch.equal(with_cache, model.generate(ids, **how))


@pytest.mark.parametrize(("family", "kv_heads"), CASES)
def test_pruning_takes_parameters_and_leaves_the_model(family: str, kv_heads: int | None) -> None:
    model = build(family, kv_heads)
    before, config = copy.deepcopy(model.state_dict()), model.config.to_dict()
    genes = [1, 1, 1, 0] + [1] * HEADS + [0, 0, 1, 1]
    pruned = prune(model, genes)
    assert model.config.to_dict() == config
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    own = {p.data_ptr() for p in model.parameters()}
    assert not own & {p.data_ptr() for p in pruned.parameters() if p.numel()}
    # By hand: a query head costs its rows of q and columns of o, a key/value head its rows of k, v.
    kv = kv_heads or HEADS
    head_dim, group = WIDTH // HEADS, HEADS // kv
    gone_kv = sum(not any(genes[i : i + group]) for i in range(0, len(genes), group))
    biased = any(name.endswith("bias") and "norm" not in name.lower() for name in before)
    expected = 3 * head_dim * (2 * WIDTH + biased) + gone_kv * head_dim * 2 * (WIDTH + biased)
    assert model.num_parameters() - pruned.num_parameters() == expected


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    model = build("gpt2")
    pruned = prune(model, [1, 0, 1, 1] * LAYERS)
    assert pruned.get_output_embeddings().weight is pruned.get_input_embeddings().weight
    pruned.save_pretrained(tmp_path)
    reloaded = load(tmp_path)
    assert reloaded.get_output_embeddings().weight is reloaded.get_input_embeddings().weight


def test_a_key_value_head_goes_with_its_last_query_head() -> None:
    pruned: Any = prune(build("llama", 2), [1, 0, 0, 0] + [0, 0, 1, 1] + [1, 1, 1, 0])
    attention: Any = [block.self_attn for block in pruned.model.layers]
    widths = [(a.q_proj.out_features // 8, a.k_proj.out_features // 8) for a in attention]
    assert widths == [(1, 1), (2, 1), (3, 2)]


def test_head_map() -> None:
    heads = head_map(build("llama", 2))
    assert len(heads) == LAYERS * HEADS
    assert heads.heads_per_layer == (HEADS,) * LAYERS
    assert {layer.kv_heads for layer in heads.layers} == {2}


def test_a_model_without_its_architecture_s_layers_is_refused() -> None:
    model = build("llama")
    del model.model.layers[:]
    with pytest.raises(InputError, match=r"no attention layer of the llama architecture"):
        head_map(model)


def test_unknown_architecture_names_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"'Linear'.*known are bert, distilbert"):
        head_map(torch.nn.Linear(2, 2))


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


def test_the_model_is_left_as_found_after_an_exception() -> None:
    model, ids = build("llama"), torch.randint(1, 61, (3, 9))
    dense = output(model, ids)
    with pytest.raises(InputError, match="3 rows for 2 sub-models"), masked(model, [[0] * 12] * 2):
        output(model, ids)
    assert torch.equal(output(model, ids), dense)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_quantised_projections_are_refused() -> None:
    model = build("llama")
    projection = model.model.layers[0].self_attn.q_proj
    projection.weight = torch.nn.Parameter(projection.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(InputError, match="without quantisation"):
        prune(model, [0, 1, 1, 1] * LAYERS)
