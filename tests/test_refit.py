"""The refit of pruned models, against least squares by hand with whole forward passes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from sos_deap import InputError, gene_map, load, prune, refit
from sos_deap.models.families import FAMILIES
from sos_deap.models.least_squares import DAMPINGS, SingularError, Sums
from tests.conftest import small_llama
from tests.rows import Batches, has_experts, layouts
from tests.tiny import build, inputs, output, random_order

#: Rows with both kinds of sites, without those whose layers share their weights.
SLICED = layouts(
    [
        name
        for name, row in FAMILIES.items()
        if row.feed_forward and not row.unsliceable and name != "albert"
    ]
)


def pruned_at_random(model: Any, seed: int = 3) -> tuple[Any, list[int], Any]:
    """A model with 40 % of its heads and channel blocks removed, the chromosome and its map."""
    genes = gene_map(model, "heads+channels", 4, random_order(model))
    generator = torch.Generator().manual_seed(seed)
    chromosome = (torch.rand(len(genes), generator=generator) > 0.4).int().tolist()
    return prune(model, chromosome, genes), chromosome, genes


def seen(model: Any, path: str, text: Batches) -> tuple[np.ndarray[Any, Any], ...]:
    """Inputs and outputs of a module in passes through the whole model."""
    found: list[tuple[Tensor, Tensor]] = []
    hook = model.get_submodule(path).register_forward_hook(
        lambda module, given, result: found.append((given[0].clone(), result.clone()))
    )
    with torch.inference_mode():
        text.score(model, slice(0, len(text)), 1)
    hook.remove()
    given, result = (torch.cat([one[i].flatten(0, -2) for one in found]) for i in (0, 1))
    return given.double().numpy(), result.double().numpy()


def weights(module: Any) -> np.ndarray[Any, Any]:
    weight = module.weight.T if isinstance(module, Conv1D) else module.weight
    columns = [weight.detach()]
    if module.bias is not None:
        columns.append(module.bias.detach()[:, None])
    return torch.cat(columns, dim=1).double().numpy()


def fit_by_hand(consumer: Any, x: Any, y: Any, present: Any, damping: float) -> None:
    """Fit a consumer's weight and bias to outputs: ridge regression as least squares, more rows.

    :param x: the inputs: those of kept units and for a bias the last one, which is 1.
    """
    pull = np.sqrt(damping)
    rows = np.concatenate((x, pull * np.eye(x.shape[1])))
    wanted = np.concatenate((y, pull * present.T))
    solution = torch.from_numpy(np.linalg.lstsq(rows, wanted, rcond=None)[0].T).float()
    with torch.no_grad():
        if consumer.bias is not None:
            consumer.bias.copy_(solution[:, -1])
            solution = solution[:, :-1]
        consumer.weight.copy_(solution.T if isinstance(consumer, Conv1D) else solution)


def with_ones(consumer: Any, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Inputs with a column of ones, if the consumer has a bias."""
    return x if consumer.bias is None else np.concatenate((x, np.ones((len(x), 1))), axis=1)


#: Architectures whose layers normalise or scale what their projections return, or the sum.
NOT_ADDED = {
    *("bart", "beit", "bert", "big_bird", "camembert", "data2vec-audio", "deberta", "deberta-v2"),
    *("dinov2", "dinov3_vit", "distilbert", "electra", "gemma2", "gemma3_text", "layoutlmv3"),
    *("jina_embeddings_v3", "mobilebert", "mpnet", "mvp"),
    *("flaubert", "olmo2", "roberta", "t5gemma", "xlm", "xlm-roberta"),
}


def before_layer(model: Any, path: str, text: Batches) -> np.ndarray[Any, Any]:
    """Hidden states before a layer in a pass through the whole model."""
    found: list[Tensor] = []
    hook = model.get_submodule(path).register_forward_pre_hook(
        lambda module, args, kwargs: found.append(args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    with torch.inference_mode():
        text.score(model, slice(0, len(text)), 1)
    hook.remove()
    return torch.cat([one.flatten(0, -2) for one in found]).double().numpy()


def lost_before(model: Any, found: Any, site: Any, genes: Any, text: Batches) -> Any:
    """What the hidden states lack in a pruned model, to which a site's output will be added."""
    dense, own = (before_layer(one, site.block, text) for one in (model, found))
    lost = dense - own
    for other in genes.sites[: genes.sites.index(site)]:
        if other.block == site.block:
            dense, own = (seen(one, other.consumer, text)[1] for one in (model, found))
            lost += dense - own
    return lost


def refitted_by_hand(model: Any, pruned: Any, genes: Any, text: Batches, damping: float) -> Any:
    """A copy of the pruned model, each consumer fitted by NumPy in passes through all of it."""
    found, changed = copy.deepcopy(pruned), False
    for site in genes.sites:
        consumer = found.get_submodule(site.consumer)
        x, (_, y) = seen(found, site.consumer, text)[0], seen(model, site.consumer, text)
        scale = getattr(model.config, "residual_multiplier", 1.0)
        layer = model.get_submodule(site.block).named_modules()
        others = any(name.endswith(("conv", "linear_attn", "experts")) for name, _ in layer)
        if model.config.model_type not in NOT_ADDED and scale == 1 and not others:
            y = y + lost_before(model, found, site, genes, text)
        changed |= x.shape[1] < site.units * site.width
        if not changed or not (x.shape[1] or consumer.bias is not None):
            continue
        x = with_ones(consumer, x)
        fit_by_hand(consumer, x, y, weights(consumer), damping * np.square(x).sum(0).mean())
    return found


@pytest.mark.parametrize("family", SLICED)
def test_every_architecture_is_refitted_as_by_hand(family: str, tmp_path: Path) -> None:
    model = build(family)
    text, batch = Batches(model), inputs(model)
    dense = output(model, batch)
    pruned, chromosome, genes = pruned_at_random(model)
    before = output(pruned, batch)
    expected = output(refitted_by_hand(model, pruned, genes, text, 0.1), batch)
    fits = refit(model, pruned, text, damping=0.1)
    found, scale = output(pruned, batch), expected.abs().max()
    assert (before - expected).abs().max() > 1e-3 * scale  # the refit changes something
    assert (found - expected).abs().max() <= 1e-4 * scale
    assert all(fit.error <= fit.error_before + 1e-9 for fit in fits)
    assert torch.equal(output(model, batch), dense)
    pruned.save_pretrained(tmp_path)
    reloaded = (output(load(tmp_path), batch) - found).abs().max()
    assert reloaded <= 1e-6 * scale * has_experts(model)
    zeroed = prune(model, chromosome, genes, "zeroed")
    refit(model, zeroed, text, damping=0.1)
    assert (output(zeroed, batch) - found).abs().max() <= 1e-4 * scale


def test_layers_that_share_their_weights_are_refused() -> None:
    model = build("albert")
    pruned, _, _ = pruned_at_random(model)
    with pytest.raises(InputError, match="type albert share their weights"):
        refit(model, pruned, Batches(model))


def test_an_output_that_a_layer_scales_is_fitted_alone() -> None:
    model = build("granite", residual_multiplier=0.22)
    text, batch = Batches(model), inputs(model)
    pruned, _, genes = pruned_at_random(model)
    expected = output(refitted_by_hand(model, pruned, genes, text, 0.1), batch)
    refit(model, pruned, text, damping=0.1)
    assert (output(pruned, batch) - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_without_removed_units_nothing_changes() -> None:
    model = small_llama()
    pruned = prune(model, [1] * 12)
    assert refit(model, pruned, Batches(model)) == []
    assert all(map(torch.equal, model.parameters(), pruned.parameters()))


def test_sites_before_the_first_removal_stay() -> None:
    model = small_llama()
    pruned = prune(model, [1] * 4 + [0, 1, 1, 1] + [1] * 4)
    fits = refit(model, pruned, Batches(model))
    layers = [fit.consumer.split(".")[2] for fit in fits]
    assert layers == ["1", "1", "2", "2"]


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_the_bias_alone_gives_the_mean_output(family: str) -> None:
    model = build(family)
    text = Batches(model)
    pruned, _, genes = pruned_at_random(model)
    first = next(s for s in genes.sites if seen(pruned, s.consumer, text)[0].shape[1] < s.units)
    stock = copy.deepcopy(pruned)
    refit(model, pruned, text, "bias")
    for site in genes.sites:
        consumers = [one.get_submodule(site.consumer) for one in (stock, pruned)]
        assert torch.equal(consumers[0].weight, consumers[1].weight)
    dense, found = (seen(one, first.consumer, text)[1].mean(0) for one in (model, pruned))
    assert np.abs(found - dense).max() <= 1e-5 * np.abs(dense).max()


def test_the_damping_is_chosen_on_other_examples() -> None:
    """Few tokens for many inputs need much damping; many tokens of a linear map need little."""
    model = small_llama()
    chosen = []
    for count in (5, 120):
        pruned = prune(model, [0, 1, 1, 1] + [1] * 8)
        fits = refit(model, pruned, Batches(model, count))
        assert {fit.damping for fit in fits} <= {None, *DAMPINGS}
        assert fits[0].tokens == count * 2 * 9
        chosen.append(max(DAMPINGS) if fits[0].damping is None else fits[0].damping)
    assert chosen[0] > chosen[1]


def test_the_errors_are_those_of_the_outputs() -> None:
    model = small_llama()
    pruned = prune(model, [0, 1, 1, 1] + [1] * 8)
    text, stock = Batches(model), copy.deepcopy(pruned)
    first = refit(model, pruned, text)[0]
    wanted = seen(model, first.consumer, text)[1]
    for changed, error in ((stock, first.error_before), (pruned, first.error)):
        found = seen(changed, first.consumer, text)[1]
        assert error == pytest.approx(
            np.square(found - wanted).sum() / np.square(wanted).sum(), rel=1e-4
        )


def test_a_system_that_rounding_made_singular_is_solved_with_more_damping() -> None:
    torch.manual_seed(2)
    x, weight = torch.randn(60, 4), torch.randn(3, 4).double()
    sums = Sums(4, 3, x)
    sums.add(x, torch.randn(60, 3))
    values, vectors = torch.linalg.eigh(sums.xx)
    values[0] = -0.05 * values.mean()
    sums.xx = vectors @ torch.diag(values) @ vectors.T
    strength = 0.1 * sums.xx.diagonal().mean()  # of 0.001, 0.01 and 0.1 the first that suffices
    wanted = np.linalg.solve(
        sums.xx.numpy() + float(strength) * np.eye(4), (sums.xy + strength * weight.T).numpy()
    ).T
    assert np.allclose(sums.solution(weight, 0.001).numpy(), wanted)
    with pytest.raises(SingularError):
        sums.solution(weight, 0.0)


def test_inputs_that_are_always_zero_keep_their_weights() -> None:
    weight, sums = torch.randn(3, 4), Sums(4, 3, torch.zeros(1))
    sums.add(torch.zeros(50, 4), torch.randn(50, 3))
    assert torch.allclose(sums.solution(weight.double(), 0.01), weight.double())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"how": "during"}, "unknown refit 'during'"),
        ({"damping": -1.0}, "damping of the refit is -1.0: give a number, at least 0"),
        ({"damping": float("nan")}, "damping of the refit is nan"),
        ({"how": "bias"}, "output projections of a llama model have no biases"),
    ],
)
def test_bad_values(given: dict[str, Any], message: str) -> None:
    model = small_llama()
    with pytest.raises(InputError, match=message):
        refit(model, prune(model, [0] + [1] * 11), Batches(model), **given)


def test_bad_text() -> None:
    model = small_llama()
    pruned = prune(model, [0] + [1] * 11)
    with pytest.raises(InputError, match="a refit on 3 examples cannot choose .* at least 5"):
        refit(model, pruned, Batches(model, 3))
    generates = Batches(model)
    generates.one_pass = False
    with pytest.raises(InputError, match="this task generates text: leave the refit out"):
        refit(model, pruned, generates)
    with pytest.raises(InputError, match="singular: 18 tokens for 24 inputs; give more text"):
        refit(model, pruned, Batches(model, 1), damping=0.0)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3] = float("inf")
    broken = prune(model, [0] + [1] * 11)
    with pytest.raises(InputError, match=r"layers.1.mlp.down_proj is not finite .* float32"):
        refit(model, broken, Batches(model))
