"""The refit of each sub-model in a search, against least squares by hand."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sos_deap import Evaluator, InputError, gene_map, prune
from sos_deap.models.compensation import Compensation, compensated
from sos_deap.models.families import FAMILIES
from sos_deap.models.hidden_states import States
from sos_deap.models.least_squares import DAMPINGS
from sos_deap.models.sharing import blocks_of, shared
from sos_deap.run import main
from tests.conftest import small_llama
from tests.rows import Batches
from tests.test_refit import SLICED, fit_by_hand, seen, weights, with_ones
from tests.tiny import build, inputs, output, random_order, repeated


def fitted_by_hand(model: Any, chromosome: list[int], genes: Any, text: Any, damping: float) -> Any:
    """A pruned model, each consumer fitted by NumPy to the dense model's inputs and outputs."""
    found = prune(model, chromosome, genes)
    for site, keep in zip(genes.sites, genes.kept(chromosome), strict=True):
        consumer = model.get_submodule(site.consumer)
        if len(keep) == site.units:
            continue
        x, y = seen(model, site.consumer, text)
        columns = [unit * site.width + i for unit in keep for i in range(site.width)]
        x = with_ones(consumer, x)
        columns += range(site.units * site.width, x.shape[1])  # that of the bias
        if not columns:
            continue
        strength = damping * np.square(x[:, columns]).sum(0).mean()
        own = found.get_submodule(site.consumer)
        fit_by_hand(own, x[:, columns], y, weights(consumer)[:, columns], strength)
    return found


@pytest.mark.parametrize("family", SLICED)
def test_alone_and_shared_are_as_sliced_and_fitted_by_hand(family: str) -> None:
    model = build(family)
    text, batch = Batches(model), inputs(model)
    genes = gene_map(model, "heads+channels", 4, random_order(model))
    generator = torch.Generator().manual_seed(3)
    several = (torch.rand(3, len(genes), generator=generator) > 0.4).int().tolist()
    some = len(genes) // 2 + 2
    several[1][:some] = several[0][:some]  # shares the first layer's attention
    dense = output(model, batch)
    found = Compensation(model, genes, text, damping=0.1)
    expected = [output(fitted_by_hand(model, one, genes, text, 0.1), batch) for one in several]
    scale = max(one.abs().max() for one in expected)
    assert all((a - b).abs().max() > 1e-3 * scale for a, b in pairwise(expected))
    for one, wanted in zip(several, expected, strict=True):
        with compensated(model, genes, one, found):
            assert (output(model, batch) - wanted).abs().max() <= 1e-4 * scale
    if blocks_of(model, genes) is not None and family not in ("bloom", "gemma3n_text", "yolos"):
        with shared(model, several, genes, States(0), None, found):
            together = output(model, repeated(batch, 3)).split(2)
        for one, wanted in zip(together, expected, strict=True):
            assert (one - wanted).abs().max() <= 1e-4 * scale
    assert torch.equal(output(model, batch), dense)


def test_the_damping_has_the_least_error_without_every_other_unit() -> None:
    """On the last of five batches, by hand; with no lower error than the weight itself: none."""
    model, chosen = small_llama(), set[float | None]()
    genes = gene_map(model, "heads+channels", 4)
    for count in (10, 60):
        text = Batches(model, count)
        found = Compensation(model, genes, text)
        for site, damping in zip(genes.sites, found.dampings, strict=True):
            x, y = seen(model, site.consumer, text)
            rows = np.arange(len(x)) // (len(x) // 5)  # of one token, the batch
            consumer = model.get_submodule(site.consumer)
            kept = [i for i in range(x.shape[1]) if i // site.width % 2 == 0]
            first, last = rows < 4, rows == 4
            errors: dict[float | None, float] = {}
            for one in (None, *DAMPINGS):
                own = copy.deepcopy(consumer)
                own.weight = torch.nn.Parameter(own.weight[:, kept].detach().clone())
                if one is not None:
                    some = x[first][:, kept]
                    strength = one * np.square(some).sum(0).mean()
                    fit_by_hand(own, some, y[first], weights(own), strength)
                errors[one] = np.square(x[last][:, kept] @ weights(own).T - y[last]).sum()
            assert errors[damping] <= min(errors.values()) * (1 + 1e-4)
            chosen.add(damping)
    assert len(chosen) > 2


def test_a_damping_of_zero_is_refused_as_some_sub_model_may_have_no_unique_fit() -> None:
    model = small_llama()
    with pytest.raises(InputError, match="refit during the search is 0: give a number above 0"):
        Compensation(model, gene_map(model), Batches(model), damping=0.0)


def test_an_architecture_that_cannot_be_sliced_is_refused() -> None:
    family = next(name for name, row in FAMILIES.items() if row.unsliceable)
    model = build(family)
    with pytest.raises(InputError, match="cannot be refitted during the search: .* use the refit"):
        Compensation(model, gene_map(model), Batches(model))


Make = Callable[..., Evaluator]


@pytest.fixture
def evaluator(model_folder: Path, text_file: Path) -> Make:
    """Makes an evaluator on the small model and text, with refit examples."""

    def make(**more: Any) -> Evaluator:
        settings = {"samples": 2, "seqlen": 32, "heldout_samples": 2, "refit_samples": 20, **more}
        return Evaluator.from_pretrained(
            str(model_folder),
            dataset=str(text_file),
            genes="heads+channels",
            channel_blocks=4,
            device="cpu",
            dtype="float32",
            **settings,
        )

    return make


def test_an_evaluator_scores_the_fitted_sub_model_and_nothing_is_mixed_up(evaluator: Make) -> None:
    plain, during = evaluator(), evaluator(refit="during", refit_damping=0.1)
    assert plain.scope != during.scope
    assert evaluator(refit="during", refit_damping=0.2).scope != during.scope
    generator = torch.Generator().manual_seed(3)
    one = (torch.rand(len(plain.gene_map), generator=generator) > 0.3).int().tolist()
    text = during.refit_task
    assert text is not None
    by_hand = fitted_by_hand(during.model, one, during.gene_map, text, 0.1)
    wanted = plain.metrics_of(by_hand, plain.task)["perplexity"]
    assert during.metric(one) == pytest.approx(wanted, rel=1e-4)
    assert plain.metric(one) != pytest.approx(wanted, rel=1e-3)
    assert during.metric([1] * len(one)) == plain.metric([1] * len(one))
    masked = evaluator(refit="during", refit_damping=0.1, batching="masked")
    assert masked.metric(one) == pytest.approx(wanted, rel=1e-4)
    # The pass over the refit examples is counted.
    assert during.accounting.tokens - plain.accounting.tokens == text.tokens
    other = json.loads(during.recipe)
    assert (other["refit"], other["refit_samples"]) == ("during", 20)
    assert json.loads(plain.recipe)["refit_samples"] is None


def test_a_change_of_the_weights_is_noticed(evaluator: Make) -> None:
    during = evaluator(refit="during", refit_damping=0.1)
    one = [0, 1] * (len(during.gene_map) // 2)
    during.metric(one)
    with torch.no_grad():
        during.model.get_submodule("model.layers.1.mlp.down_proj").weight.mul_(0.5)  # type: ignore[operator]
    changed = copy.deepcopy(during.model)
    text = during.refit_task
    by_hand = fitted_by_hand(changed, one, during.gene_map, text, 0.1)
    wanted = during.metrics_of(by_hand, during.task)["perplexity"]
    assert during.metric(one) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.usefixtures("copied_workers")
def test_a_run_that_refits_during_the_search(refit_flags: list[str], tmp_path: Path) -> None:
    # Workers draw the same refit examples, those after the validation examples.
    more = ["--refit=during", "--refit_samples=30", "--validation_samples=4"]
    parallel_flags = ["--engine=process", "--workers=2"]
    serial, parallel = tmp_path / "serial", tmp_path / "parallel"
    assert main([*refit_flags, *more, f"--output_dir={serial}"]) == 0
    assert main([*refit_flags, *more, *parallel_flags, f"--output_dir={parallel}"]) == 0
    logs = [(folder / "evaluations.csv").read_bytes() for folder in (serial, parallel)]
    assert logs[0] == logs[1]
    result = json.loads((serial / "result.json").read_text())
    assert result["refit"]["how"] == "during"
