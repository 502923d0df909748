"""Genes of kind experts: the mixture of experts computed by hand, costs, importances, errors."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot, silu

from sos_deap import InputError, gene_map, masked, prune
from sos_deap.models.costs import dense_flops, sparsity_measure
from sos_deap.models.families import FAMILIES
from sos_deap.models.flops import counting
from sos_deap.models.importance import importance
from sos_deap.presets import named_flags
from tests.rows import Batches, gene_map_of
from tests.tiny import build, inputs, output, repeated

MIXTURES = sorted(name for name, row in FAMILIES.items() if row.experts)
EXPERTS = 4  # in each of the tiny models, of which each token is sent to 2


class Named(Batches):
    name = "random"


def kept_everywhere(genes: Any, *experts: int) -> list[int]:
    """A chromosome that keeps these experts in every layer."""
    return [int(gene in experts) for part in genes.parts for gene in range(part.size)]


def router_of(mixture: Any) -> Any:
    return getattr(mixture, "gate", None) or mixture.router


def by_hand(model: Any, mixture: Any, states: Tensor, keep: list[int]) -> Tensor:
    """The output of a mixture that has some of its experts, expert by expert and token by token."""
    router = router_of(mixture)
    logits = (states @ router.weight.T)[:, keep]
    first = model.config.model_type in ("granitemoe", "granitemoeshared", "gpt_oss")
    if getattr(router, "bias", None) is not None:
        logits = logits + router.bias[keep]
    most = min(router.top_k, len(keep))
    scores, chosen = (logits if first else logits.softmax(-1)).topk(most)
    if first:
        scores = scores.softmax(-1)
    elif getattr(router, "norm_topk_prob", True):  # Mixtral has no such attribute
        scores = scores / scores.sum(-1, keepdim=True)
    result = torch.zeros_like(states)
    for token, (weights, places) in enumerate(zip(scores, chosen, strict=True)):
        for weight, place in zip(weights, places.tolist(), strict=True):
            result[token] += weight * one_expert(mixture.experts, states[token], keep[place])
    return result


def one_expert(experts: Any, state: Tensor, number: int) -> Tensor:
    both, down = experts.gate_up_proj[number], experts.down_proj[number]
    if hasattr(experts, "gate_up_proj_bias"):  # gpt-oss
        mixed = state @ both + experts.gate_up_proj_bias[number]
        gate = mixed[::2].clamp(max=experts.limit)
        up = mixed[1::2].clamp(-experts.limit, experts.limit)
        inner = (up + 1) * gate * torch.sigmoid(gate * experts.alpha)
        biased: Tensor = inner @ down + experts.down_proj_bias[number]
        return biased
    gate, up = (both @ state).chunk(2)
    plain: Tensor = down @ (silu(gate) * up)
    return plain


def mixture_of(model: Any, layer: int) -> Any:
    block = model.model.layers[layer]
    return getattr(block, "mlp", None) or block.block_sparse_moe


@pytest.mark.parametrize("keep", [[0, 2, 3], [1], []])
@pytest.mark.parametrize("family", MIXTURES)
def test_a_mixture_without_experts_is_that_computed_by_hand(family: str, keep: list[int]) -> None:
    model = build(family)
    genes, states = gene_map(model, "experts"), torch.randn(1, 7, 32)
    pruned: Any = prune(model, kept_everywhere(genes, *keep), genes)
    with torch.inference_mode():
        whole = mixture_of(model, 1)
        expected = by_hand(model, whole, states[0], keep)
        if family == "qwen2_moe":  # every token also goes to the shared expert
            gate = torch.sigmoid(whole.shared_expert_gate(states[0]))
            expected += gate * whole.shared_expert(states[0])
        found = mixture_of(pruned, 1)(states)
    found = (found[0] if isinstance(found, tuple) else found)[0]
    assert (found - expected).abs().max() <= 1e-5 * max(1e-3, float(expected.abs().max()))
    routers = [router_of(mixture_of(pruned, layer)) for layer in range(3)]
    assert [len(router.weight) for router in routers] == [len(keep)] * 3


@pytest.mark.parametrize("family", MIXTURES)
def test_the_uniform_layout_is_a_stock_model(family: str, tmp_path: Path) -> None:
    model, name = build(family), "num_experts"
    genes, batch = gene_map(model, "experts"), inputs(model)
    for keep in ([0, 3], [2]):
        pruned: Any = prune(model, kept_everywhere(genes, *keep), genes, "uniform")
        pruned.save_pretrained(tmp_path / str(len(keep)))
        stock: Any = type(model).from_pretrained(tmp_path / str(len(keep))).eval()
        with masked(model, [kept_everywhere(genes, *keep)], genes):
            expected = output(model, batch)
        assert (output(stock, batch) - expected).abs().max() <= 1e-5 * expected.abs().max()
        name = FAMILIES[family].experts.sizes[0]  # type: ignore[union-attr]
        assert getattr(stock.config, name) == len(keep)
        assert stock.config.num_experts_per_tok == len(keep)
    with pytest.raises(InputError, match="equally many experts, at least one, in every layer"):
        prune(model, [0, *[1] * (len(genes) - 1)], genes, "uniform")


def test_kinds_that_contain_a_mixture() -> None:
    model = build("mixtral")
    batch = inputs(model)
    for kind, chromosome in (("ffn", [1, 0, 1]), ("layers", [1, 1, 0])):
        genes = gene_map(model, kind)
        pruned = prune(model, chromosome, genes)
        gone = chromosome.index(0)
        reference: Any = copy.deepcopy(model)
        with torch.no_grad():
            reference.model.layers[gone].mlp.experts.down_proj.zero_()
            if kind == "layers":
                reference.model.layers[gone].self_attn.o_proj.weight.zero_()
        expected = output(reference, batch)
        assert (output(pruned, batch) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_rows_that_cannot_be_divided_among_sub_models() -> None:
    model = build("mixtral")
    genes = gene_map(model, "experts")
    ids = torch.randint(1, 61, (3, 4))  # 12 tokens could be divided in two, 3 rows cannot
    several = [[1] * len(genes), [0, *[1] * (len(genes) - 1)]]
    wrong = pytest.raises(InputError, match="the batch has 3 rows for 2 sub-models")
    with masked(model, several, genes), wrong:
        model(ids)


def test_a_copy_made_while_masked_has_all_experts() -> None:
    model = build("qwen3_moe")
    genes, batch = gene_map(model, "experts"), inputs(model)
    dense = output(model, batch)
    several = [kept_everywhere(genes, 1), [0] * len(genes)]
    with masked(model, several, genes):
        copied = copy.deepcopy(model)
        assert (output(model, repeated(batch, 2))[:2] - dense).abs().max() > 1e-3
    assert (output(copied, batch) - dense).abs().max() <= 1e-5 * dense.abs().max()
    assert torch.equal(output(model, batch), dense)


def test_costs() -> None:
    model = build("mixtral")
    genes, hidden, inner, tokens = gene_map(model, "experts"), 32, 48, 18
    expert = 3 * hidden * inner
    share = sparsity_measure(model, genes, "parameters")
    removed = 5 * (expert + hidden)
    chromosome = [0] * 5 + [1] * (len(genes) - 5)
    assert share(chromosome) == pytest.approx(removed / model.num_parameters())
    assert sum(share.costs) == pytest.approx(3 * 4 * (expert + hidden) / model.num_parameters())
    # With two experts left, each token is still sent to two: only the router is smaller.
    flops = dense_flops(model, genes, tokens)
    first = next(number for number, own in enumerate(genes.site_genes) if own)
    assert flops.saved(first, [0, 1]) == 2 * tokens * 2 * hidden
    assert flops.saved(first, [3]) == 2 * tokens * (3 * hidden + expert)
    assert flops.saved(first, []) == 2 * tokens * (4 * hidden + 2 * expert)


def test_operations_are_those_counted() -> None:
    model = build("mixtral")
    model.set_experts_implementation("eager")
    genes, ids = gene_map(model, "experts"), torch.randint(1, 61, (1, 18))
    flops = dense_flops(model, genes, 18)
    for chromosome in (kept_everywhere(genes, 0, 2), kept_everywhere(genes, 1), [0] * len(genes)):
        with counting(prune(model, chromosome, genes)) as counter, torch.inference_mode():
            prune(model, chromosome, genes)(ids)
        share = sparsity_measure(model, genes, "operations", 18)(chromosome)
        assert share == pytest.approx(1 - counter.get_total_flops() / flops.total)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_importance_output_is_what_experts_add(family: str) -> None:
    model = build(family)
    genes, text = gene_map(model, "experts"), Named(model)
    found = torch.tensor(importance("output", model, genes, text)).reshape(3, EXPERTS)
    for layer in range(3):
        mixture, seen = mixture_of(model, layer), list[Any]()
        handle = mixture.experts.register_forward_pre_hook(
            lambda _, given, seen=seen: seen.append(given)
        )
        with torch.inference_mode():
            for one in range(len(text)):
                text.score(model, slice(one, one + 1), 1)
        handle.remove()
        squares, tokens = torch.zeros(EXPERTS, dtype=torch.float64), 0
        for states, indices, weights in seen:
            by_expert = (one_hot(indices, EXPERTS) * weights[..., None]).sum(1)
            for expert in range(EXPERTS):
                with torch.inference_mode():
                    outputs = [one_expert(mixture.experts, state, expert) for state in states]
                    added = by_expert[:, expert, None] * torch.stack(outputs)
                    squares[expert] += added.double().square().sum()
            tokens += len(states)
        expected = (squares / tokens).sqrt()
        expected = (expected - expected.mean()) / expected.std(correction=0)
        assert torch.allclose(found[layer], expected.float(), atol=1e-4)


def test_importance_taylor_is_the_gradient_of_a_factor_on_an_expert() -> None:
    model: Any = build("mixtral")
    genes, batches = gene_map(model, "experts"), Batches(model, 2)

    class Losses(Named):
        def loss(self, model: Any, examples: slice) -> Tensor:
            ids = batches.batches[examples.start]["input_ids"]
            loss: Tensor = model(ids, labels=ids).loss
            return loss

    found = torch.tensor(importance("taylor", model, genes, Losses(model, 2))).reshape(3, EXPERTS)
    expected = torch.zeros(3, EXPERTS)
    for one in batches.batches:
        model.zero_grad()
        model(one["input_ids"], labels=one["input_ids"]).loss.backward()
        for layer in range(3):
            down = mixture_of(model, layer).experts.down_proj
            expected[layer] += (down.grad * down.detach()).sum((1, 2)).abs() / 2
    assert torch.allclose(found.float(), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("kv_heads", "genes"), [(4, "heads+experts"), (2, "groups+experts")])
def test_best_removes_experts(kv_heads: int, genes: str, tmp_path: Path) -> None:
    build("qwen3_moe", kv_heads).config.save_pretrained(tmp_path)
    flags = named_flags("best", str(tmp_path), "kl", ())
    assert f"--genes={genes}" in flags


def test_errors() -> None:
    model = build("mixtral")
    genes = gene_map(model, "experts")
    with pytest.raises(InputError, match="the layout zeroed cannot remove experts.*sliced"):
        prune(model, [0] * len(genes), genes, "zeroed")
    with pytest.raises(InputError, match="wanda is defined by the projection.*output, taylor or"):
        importance("wanda", model, genes, Named(model))
    with pytest.raises(InputError, match=r"is a mixture of experts; use the genes heads.*layers$"):
        gene_map(model, "channels")
    with pytest.raises(InputError, match="a llama model has no genes of kind experts"):
        gene_map(build("llama"), "experts")
    with pytest.raises(InputError, match="the genes experts and ffn overlap"):
        gene_map(model, "experts+ffn")
    assert len(gene_map_of(model, "heads+experts")) == 3 * (4 + EXPERTS)
