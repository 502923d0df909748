"""Speed-ups and target sizes: how they are read, and the maximum sparsity that follows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from sos_deap import Evaluator, InputError, prune
from sos_deap.budget import Budget, budget_of
from sos_deap.config import RunConfig
from sos_deap.files.atomic import write_json
from sos_deap.files.run_folder import TIME_TABLE
from sos_deap.models.costs import MAX_SPARSITY
from sos_deap.plan import evaluator_of, plan_of
from sos_deap.search.chromosome import within
from sos_deap.tasks.settings import TaskSettings
from tests.tiny import build


def evaluator(genes: str, kv_heads: int = 4, of: str = "parameters") -> Evaluator:
    model = build("llama", kv_heads, max_position_embeddings=128)
    return Evaluator(model, lambda model: 0.0, genes=genes, channel_blocks=4, sparsity_of=of)


def filled(made: Evaluator, bound: float, order: list[int]) -> list[int]:
    """Remove each gene in an order if the sparsity stays within a bound."""
    chromosome = [1] * len(made.gene_map)
    for gene in order:
        chromosome[gene] = 0
        if not within(made.sparsity(chromosome), bound):
            chromosome[gene] = 1
    return chromosome


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("200M", 200_000_000),
        ("1.5b", 1_500_000_000),
        ("0.07 G", 70_000_000),
        ("12k", 12_000),
        ("12345", 12_345),
        (".0015k", 1),
    ],
)
def test_parameters_are_read(text: str, count: int) -> None:
    assert budget_of("heads", None, None, target_parameters=text).parameters == count


@pytest.mark.parametrize(
    ("text", "count"),
    [("150MB", 150 * 10**6), ("100MiB", 100 * 2**20), ("1.5 GiB", 3 * 2**29), ("7kb", 7000)],
)
def test_bytes_are_read(text: str, count: int) -> None:
    assert budget_of("heads", None, None, target_bytes=text).bytes == count


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"speedup": 1.0}, "speedup is 1.0: give a number above 1"),
        ({"speedup": math.inf}, "speedup is inf"),
        ({"speedup": 2.0, "max_sparsity": 0.2}, "and so does max_sparsity: give one of them"),
        ({"speedup": 2.0, "target_bytes": "1MB"}, "and so does target_bytes"),
        ({"speedup": 2.0, "sparsity_of": "genes"}, "is for the sparsity_of time, and sparsity_of"),
        ({"target_bytes": "9MB", "sparsity_of": "time"}, "is for the sparsity_of parameters"),
        ({"target_parameters": "2Q"}, "target_parameters is '2Q': give a number, with k, M, G"),
        ({"target_parameters": "1e6"}, "target_parameters is '1e6'"),
        ({"target_bytes": "-1MB"}, "target_bytes is '-1MB': give a number, with kB, MB"),
        ({"target_bytes": "0.1"}, "target_bytes is '0.1': give at least 1"),
    ],
)
def test_bad_budgets(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        budget_of("heads", **{"sparsity_of": None, "max_sparsity": None, **given})


def test_without_shorthands_the_budget_is_the_default() -> None:
    assert budget_of("heads+channels", None, None) == Budget(
        "parameters", MAX_SPARSITY["parameters"]
    )
    assert budget_of("heads", None, 0.2) == Budget("genes", 0.2)
    assert budget_of("heads", "time", None, 1.25) == Budget("time", 1 - 1 / 1.25, 1.25)


@pytest.mark.parametrize(("genes", "kv_heads"), [("heads", 4), ("heads", 2), ("ffn", 4)])
def test_a_target_is_reached_and_not_by_one_gene_more(genes: str, kv_heads: int) -> None:
    made = evaluator(genes, kv_heads)
    model, length = made.model, len(made.gene_map)
    sizes = [
        prune(model, [0] * n + [1] * (length - n), made.gene_map).num_parameters()
        for n in range(length + 1)
    ]
    for n in range(1, length + 1):
        for target in {sizes[n], sizes[n - 1] - 1}:
            bound = Budget("parameters", 0.5, parameters=target).bound(made)
            chromosome = filled(made, bound, list(range(length)))
            assert prune(model, chromosome, made.gene_map).num_parameters() <= target
            if kv_heads == 4:  # all genes have one cost: no gene too many is removed
                assert chromosome.count(0) == n


def test_a_target_is_reached_by_genes_of_unequal_costs() -> None:
    made = evaluator("heads+channels")
    total, length = made.model.num_parameters(), len(made.gene_map)
    least = prune(made.model, [0] * length, made.gene_map).num_parameters()
    costs = sorted({round(cost * total) for cost in made.sparsity.costs})
    assert len(costs) > 1
    for seed in range(20):
        torch.manual_seed(seed)
        order = torch.randperm(length).tolist()
        target = total - int((total - least) * 0.05 * (1 + seed % 10))
        bound = Budget("parameters", 0.5, parameters=target).bound(made)
        left = prune(made.model, filled(made, bound, order), made.gene_map).num_parameters()
        assert target - costs[0] < left <= target


def test_bytes_are_those_of_the_stored_weights() -> None:
    made = evaluator("heads")
    target = made.model.num_parameters() - 1000
    in_parameters = Budget("parameters", 0.5, parameters=target).bound(made)
    assert Budget("parameters", 0.5, bytes=4 * target + 3).bound(made) == in_parameters
    made.stored_dtype = torch.float16
    assert Budget("parameters", 0.5, bytes=2 * target + 1).bound(made) == in_parameters


def test_impossible_targets() -> None:
    made = evaluator("heads")
    total = made.model.num_parameters()
    least = prune(made.model, [0] * 12).num_parameters()
    with pytest.raises(InputError, match=f"the model still has {least:,} parameters; give at lea"):
        Budget("parameters", 0.5, parameters=least - 1).bound(made)
    assert within(made.sparsity([0] * 12), Budget("parameters", 0.5, parameters=least).bound(made))
    with pytest.raises(InputError, match=f"the dense model has {total:,} parameters, so nothing"):
        Budget("parameters", 0.5, parameters=total).bound(made)
    with pytest.raises(InputError, match=f"the dense model has {4 * total:,} bytes of weights"):
        Budget("parameters", 0.5, bytes=4 * total).bound(made)


def test_a_speedup_beyond_the_empty_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def timer(*_: Any) -> Any:  # the model without any gene takes half of the time
        return lambda models: {name: [[1.0 if name == "dense" else 0.5]] for name in models}

    monkeypatch.setattr("sos_deap.models.site_times.timer_of", timer)
    made = evaluator("attention", of="time")
    assert made.sparsity([0, 0, 0]) == pytest.approx(0.5)
    assert Budget("time", 1 - 1 / 1.99, 1.99).bound(made) == 1 - 1 / 1.99
    with pytest.raises(InputError, match="with every gene removed the model is 2 times as fast"):
        Budget("time", 1 - 1 / 2.01, 2.01).bound(made)


def test_a_run_sets_its_bound_and_a_resumed_run_reads_its_times(
    model_folder: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sos_deap.models.site_times.SECONDS", 0.0)
    options: dict[str, Any] = {"model": str(model_folder), "dataset": str(text_file)}
    settings = TaskSettings(samples=1, seqlen=16)
    first = evaluator_of(plan_of(RunConfig(**options, speedup=1.001), settings))
    assert (first.sparsity_of, first.max_sparsity) == ("time", 1 - 1 / 1.001)
    assert first.time_table is not None
    write_json(tmp_path / TIME_TABLE, first.time_table.content())
    again = RunConfig(**options, speedup=1.001, resume=str(tmp_path), time_table="elsewhere.json")
    resumed = evaluator_of(plan_of(again, settings))
    assert resumed.time_table == first.time_table
    assert resumed.sparsity.costs == first.sparsity.costs
    (tmp_path / TIME_TABLE).unlink()
    with pytest.raises(InputError, match=r"time_table\.json does not exist"):
        evaluator_of(plan_of(again, settings))
    small = evaluator_of(plan_of(RunConfig(**options, target_parameters="146k"), settings))
    assert small.sparsity_of == "parameters" and small.max_sparsity > 0
