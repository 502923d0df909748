"""Importances of heads against computations by hand, on models in which every head matters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from deap import base
from torch import Tensor
from transformers import AutoModelForCausalLM

from sos_deap import Evaluator, InputError, register
from sos_deap.models.find_genes import head_map
from sos_deap.models.importance import IMPORTANCES, importance
from sos_deap.search.space import Space
from sos_deap.tasks.classification import Accuracy
from sos_deap.tasks.data.encoded import Encoded
from sos_deap.tasks.data.sequences import Sequences
from sos_deap.tasks.divergence import KL
from sos_deap.tasks.language import Perplexity
from sos_deap.tasks.likelihood import CausalTask
from tests.conftest import small_llama
from tests.tiny import HEAD_DIM, HEADS, LAYERS, VOCABULARY, WIDTH, build, inputs

FORWARD = [name for name, row in IMPORTANCES.items() if not row.backward]


def text(vocabulary: int = 2048) -> Perplexity:
    return Perplexity(Sequences("random", torch.randint(0, vocabulary, (3, 16))))


def contexts(model: Any, ids: Tensor) -> list[Tensor]:
    """The inputs of each output projection, (tokens, heads * head_dim), layer by layer."""
    seen: list[Tensor] = []
    hooks = [
        model.get_submodule(layer.consumer).register_forward_pre_hook(
            lambda module, given: seen.append(given[0].flatten(0, 1).double())
        )
        for layer in head_map(model).attention
    ]
    with torch.no_grad():
        model(ids)
    for hook in hooks:
        hook.remove()
    return seen


def standardised(values: list[float]) -> Tensor:
    every = torch.tensor(values, dtype=torch.float64)
    return (every - every.mean()) / every.std(correction=0)


def by_hand(name: str, weight: Tensor, x: Tensor) -> list[float]:
    """A layer's importances channel by channel; ``weight`` is (outputs, channels)."""
    channels = []
    for j in range(weight.shape[1]):
        if name == "wanda":
            channels.append(sum(abs(w) for w in weight[:, j].tolist()) * x[:, j].norm().item())
        else:
            channels.append(weight[:, j].norm().item() ** 2 * x[:, j].var().item())
    every = standardised(channels)
    return [float(every[h * HEAD_DIM : (h + 1) * HEAD_DIM].mean()) for h in range(HEADS)]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gptj"])  # gpt2: transposed
@pytest.mark.parametrize("name", FORWARD)
def test_forward_only_importances_by_hand(name: str, family: str) -> None:
    model = build(family)
    task = text(VOCABULARY)
    found = importance(name, model, head_map(model), task)
    expected = []
    for layer, x in zip(
        head_map(model).attention, contexts(model, task.sequences.input_ids), strict=True
    ):
        weight = model.get_submodule(layer.consumer).weight.detach().double()
        weight = weight.T if family == "gpt2" else weight
        parts = [slice(h * HEAD_DIM, (h + 1) * HEAD_DIM) for h in range(HEADS)]
        if name == "magnitude":
            norms = [weight[:, part].norm().item() for part in parts]
            expected += standardised(norms).tolist()
        elif name == "activation":
            examples = x.split(len(x) // len(task))
            expected += [
                sum(one[:, part].norm().item() for one in examples) / len(examples)
                for part in parts
            ]
        elif name == "output":
            added = [x[:, part] @ weight[:, part].T for part in parts]  # (tokens, outputs)
            sizes = [one.square().sum(1).mean().sqrt().item() for one in added]
            expected += standardised(sizes).tolist()
        else:
            expected += by_hand(name, weight, x)
    assert len(found) == LAYERS * HEADS
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)


class Reading:
    """Calibration text for any model, one example at a time."""

    name = "reading"
    seqlen = 8

    def __init__(self, inputs: dict[str, Tensor]) -> None:
        self.inputs = inputs

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def score(self, model: Any, examples: slice, sub_models: int) -> None:
        model(**{name: one[examples] for name, one in self.inputs.items()})


@pytest.mark.parametrize("family", ["bert", "falcon", "gpt2", "gpt_neox", "opt", "t5", "vit"])
def test_what_a_head_adds_is_what_masking_removes(family: str) -> None:
    """For projections of every layout: the output with a head minus the output without it."""
    model = build(family)
    heads, batch = head_map(model), inputs(model)
    found = importance("output", model, heads, Reading(batch))
    expected: list[float] = []

    def compare(module: Any, given: tuple[Tensor, ...], answer: Tensor) -> None:
        norms = []
        for head in range(HEADS):
            without = given[0].clone()
            without[..., head * HEAD_DIM : (head + 1) * HEAD_DIM] = 0
            added = answer - torch.Tensor(type(module).forward(module, without))
            norms.append(added.double().square().sum(-1).mean().sqrt())
        layer = torch.stack(norms)
        expected.extend(((layer - layer.mean()) / layer.std(correction=0)).tolist())

    hooks = [
        model.get_submodule(layer.consumer).register_forward_hook(compare)
        for layer in heads.attention
    ]
    with torch.no_grad():
        model(**batch)
    for hook in hooks:
        hook.remove()
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_taylor_in_inference_mode_and_without_cross_attention() -> None:
    settings = {"is_decoder": True, "add_cross_attention": True}
    model = build("bert", auto=AutoModelForCausalLM, **settings)
    heads = head_map(model)
    assert len(heads.attention) == 2 * LAYERS
    with torch.inference_mode():
        found = importance("taylor", model, heads, text(VOCABULARY))
    for i, layer in enumerate(heads.attention):
        own = found[HEADS * i : HEADS * (i + 1)]
        assert (own == [0] * HEADS) if "crossattention" in layer.module else min(own) > 0


def loss_with_masks(model: Any, task: CausalTask, factors: dict[tuple[int, int], float]) -> float:
    """The mean loss with the output projection's columns of some heads scaled."""
    columns = {}
    for (number, head), factor in factors.items():
        projection = model.get_submodule(head_map(model).attention[number].consumer)
        columns[projection, head] = projection.weight[:, head * HEAD_DIM : (head + 1) * HEAD_DIM]
        columns[projection, head].mul_(factor)
    loss = float(task.loss(model, slice(0, 1)))
    for (number, head), factor in factors.items():
        projection = model.get_submodule(head_map(model).attention[number].consumer)
        columns[projection, head].div_(factor)
    return loss


@pytest.mark.parametrize("task_of", [lambda ids, _: Perplexity(ids), KL])
def test_gradients_against_finite_differences_of_the_mask(task_of: Any) -> None:
    model = build("llama").double()
    sequences = Sequences("random", torch.randint(0, VOCABULARY, (1, 16)))
    found = importance("taylor", model, head_map(model), task_of(sequences, model))
    step = 1e-2  # the loss is computed in float32
    with torch.no_grad():
        for number in range(LAYERS):
            for head in range(HEADS):
                up, down = (
                    loss_with_masks(model, Perplexity(sequences), {(number, head): 1 + sign * step})
                    for sign in (1, -1)
                )
                assert found[number * HEADS + head] == pytest.approx(
                    abs(up - down) / (2 * step), rel=3e-3, abs=1e-4
                )


def test_taylor_is_the_mean_of_absolute_gradients() -> None:
    model, task = build("llama"), text(VOCABULARY)
    heads = head_map(model)
    each = [
        importance("taylor", model, heads, Perplexity(Sequences("one", ids[None])))
        for ids in task.sequences.input_ids
    ]
    expected = [sum(values) / 3 for values in zip(*each, strict=True)]
    assert importance("taylor", model, heads, task) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", IMPORTANCES)
def test_a_group_has_the_mean_of_its_heads_and_the_model_stays_as_it_was(name: str) -> None:
    model = build("llama", kv_heads=2)
    for parameter in list(model.parameters())[::2]:
        parameter.requires_grad_(False)
    learned = [parameter.requires_grad for parameter in model.parameters()]
    task = text(VOCABULARY)
    by_head = importance(name, model, head_map(model), task)
    by_group = importance(name, model, head_map(model, "group"), task)
    pairs = zip(by_head[::2], by_head[1::2], strict=True)
    share = 2 if IMPORTANCES[name].standardised else 1  # others have the sum
    assert by_group == pytest.approx([(a + b) / share for a, b in pairs], rel=1e-6, abs=1e-9)
    assert [parameter.requires_grad for parameter in model.parameters()] == learned
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", sorted(set(IMPORTANCES) - {"activation"}))  # reads no weights
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_head_without_weights_matters_least(name: str, dtype: torch.dtype) -> None:
    model = build("llama", num_hidden_layers=1).to(dtype)
    heads = head_map(model)
    with torch.no_grad():
        projection = model.get_submodule(heads.attention[0].consumer)
        projection.weight[:, 2 * HEAD_DIM : 3 * HEAD_DIM] = 0
    found = importance(name, model, heads, text(VOCABULARY))
    assert min(range(HEADS), key=found.__getitem__) == 2
    if name == "taylor":
        assert found[2] == 0


def test_the_evaluator_counts_what_an_importance_costs_once(evaluator: Evaluator) -> None:
    evaluator.metric([1] * 12)
    dense = evaluator.accounting.flops
    assert dense
    tokens = {}
    for name in IMPORTANCES:
        before = evaluator.accounting.tokens
        first = evaluator.importance(name)
        tokens[name] = evaluator.accounting.tokens - before
        assert evaluator.importance(name) == first
        assert evaluator.accounting.tokens - before == tokens[name]
    assert tokens.pop("activation") == 48
    assert tokens == {"flap": 48, "magnitude": 0, "output": 48, "taylor": 144, "wanda": 48}
    assert evaluator.accounting.flops == pytest.approx(8 * dense)
    assert evaluator.accounting.forward_evaluations == 1
    assert evaluator.metric([1] * 12)  # and the cache still holds


def test_priors_of_the_space_are_the_importances(evaluator: Evaluator) -> None:
    toolbox = base.Toolbox()
    register(toolbox, evaluator)
    space: Space = toolbox.search.space
    assert list(space.priors) == [*IMPORTANCES, "ablation"]
    before = evaluator.accounting.tokens
    costs = {name: space.cost_of(name) for name in (None, *space.priors)}
    assert costs.pop("ablation") == 13 and costs.pop("taylor") == 3
    assert costs.pop("activation") == 1
    assert costs == {None: 0, "magnitude": 0, "flap": 1, "output": 1, "wanda": 1}
    assert evaluator.accounting.tokens == before  # until it is requested
    assert space.importance("wanda") == evaluator.importance("wanda")


def test_padding_does_not_count() -> None:
    """Examples of different lengths in a batch against one at a time without padding."""
    model = build("bert")
    ids = torch.randint(1, VOCABULARY, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, 5:] = ids[1, 5:] = 0
    short = {"input_ids": ids[1:, :5], "attention_mask": mask[1:, :5]}
    model.forward = _with_logits(model.forward)
    heads = head_map(model)
    padded = labelled({"input_ids": ids, "attention_mask": mask}, [0, 1])
    long = {"input_ids": ids[:1], "attention_mask": mask[:1]}
    alone = _Both(labelled(long, [0]), labelled(short, [0]))
    for name in FORWARD:
        expected = importance(name, model, heads, alone)
        assert importance(name, model, heads, padded) == pytest.approx(expected, rel=1e-5)


class _Both:
    """Two tasks with one example each, alternating."""

    name = "both"
    seqlen = 8

    def __init__(self, *tasks: Accuracy) -> None:
        self.tasks = tasks

    def __len__(self) -> int:
        return 2

    def score(self, model: Any, examples: slice, sub_models: int) -> Tensor:
        scores: Tensor = self.tasks[examples.start].score(model, slice(0, 1), sub_models)
        return scores


def _with_logits(forward: Any) -> Any:
    class Output:
        def __init__(self, states: Any) -> None:
            self.logits = states[0][:, 0, :2]

    return lambda **inputs: Output(forward(**inputs))


def labelled(inputs: dict[str, Tensor], order: list[int]) -> Accuracy:
    encoded = Encoded("some", inputs, order, left=False)
    return Accuracy(encoded, torch.zeros(len(order), dtype=torch.long))


def test_errors() -> None:
    model = small_llama()
    heads = head_map(model)
    with pytest.raises(InputError, match="unknown importance 'wand': did you mean 'wanda'"):
        importance("wand", model, heads, text())
    ids = torch.ones(1, 4, dtype=torch.long)
    accuracy = labelled({"input_ids": ids, "attention_mask": ids}, [0])
    with pytest.raises(InputError, match="taylor needs a loss with a gradient, and accuracy has"):
        importance("taylor", model, heads, accuracy)
    evaluator = Evaluator(model, task=weights_alone)
    assert len(evaluator.importance("magnitude")) == 12
    toolbox = base.Toolbox()
    register(toolbox, evaluator)
    with pytest.raises(InputError, match="taylor needs a loss with a gradient, and weights_alone"):
        toolbox.search.space.cost_of("taylor")
    with pytest.raises(InputError, match=r"weights_alone does not run model\.layers\.0\.self_attn"):
        evaluator.importance("wanda")
    with torch.no_grad():
        model.get_submodule(heads.attention[1].consumer).weight[0, 0] = torch.nan
    with pytest.raises(InputError, match="importance magnitude of gene 4 is nan"):
        importance("magnitude", model, heads, text())
    assert WIDTH == HEADS * HEAD_DIM


def weights_alone(model: Any) -> float:
    return float(next(model.parameters()).sum())
