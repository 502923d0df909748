"""The time table: interpolation, monotone curves, refusals, and times that are injected."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sos_deap import Evaluator, InputError, prune
from sos_deap.evaluation.evaluator import from_recipe
from sos_deap.files.atomic import write_json
from sos_deap.models.costs import Sparsity, sparsity_measure
from sos_deap.models.find_genes import gene_map
from sos_deap.models.genes import GeneMap
from sos_deap.models.site_times import measured_speedup, measured_table
from sos_deap.models.time_options import time_conditions, time_table_of
from sos_deap.models.time_table import (
    Conditions,
    Curve,
    Point,
    Row,
    TimeTable,
    monotone,
    read_time_table,
    table_of,
)
from tests.conftest import small_llama
from tests.tiny import build, chromosomes


def by_parameters(models: Mapping[str, Any]) -> dict[str, list[list[float]]]:
    """Times that are additive: the number of parameters, in rounds of different speed."""
    return {
        name: [[speed * model.num_parameters()] for speed in (1.0, 3.0, 2.0)]
        for name, model in models.items()
    }


def all_and_random(genes: int) -> list[list[int]]:
    rng = random.Random(4)
    several = [[rng.randint(0, 1) for _ in range(genes)] for _ in range(6)]
    return [[1] * genes, [0] * genes, *several]


def by_time(model: Any, genes: GeneMap, timer: Any = by_parameters) -> tuple[TimeTable, Sparsity]:
    table = measured_table(model, genes, time_conditions(model, "prefill", 9), timer)
    return table, sparsity_measure(model, genes, "time", times=table)


@pytest.mark.parametrize(
    ("kv_heads", "kinds"),
    [
        (8, "heads+channels"),
        (2, "heads+channels"),
        (1, "heads+ffn"),
        (2, "groups+channels"),
        (4, "attention+channels"),
        (2, "layers"),
    ],
)
def test_additive_times_give_the_share_of_the_pruned_model(kv_heads: int, kinds: str) -> None:
    model = build("llama", kv_heads, num_attention_heads=8, head_dim=4)
    genes = gene_map(model, kinds, 8)
    _, share = by_time(model, genes)
    parameters = sparsity_measure(model, genes, "parameters")
    for chromosome in all_and_random(len(genes)):
        left = prune(model, chromosome, genes).num_parameters() / model.num_parameters()
        assert share(chromosome) == pytest.approx(1 - left, abs=1e-9)
    assert share([1] * len(genes)) == 0
    assert share.costs == pytest.approx(parameters.costs, abs=1e-9)


def test_sites_of_one_geometry_are_measured_once_and_only_where_genes_remove() -> None:
    asked: list[set[str]] = []

    def timer(models: Mapping[str, Any]) -> dict[str, list[list[float]]]:
        asked.append(set(models))
        return by_parameters(models)

    model = build("bart")
    table, _ = by_time(model, gene_map(model), timer)
    # Encoder, decoder and cross-attention; four sizes each.
    assert [len(row.sites) for row in table.rows] == [3, 3, 3]
    assert asked == [{"dense", "0 of 4", "1 of 4", "2 of 4", "3 of 4"}] * 3


def test_interpolation_by_hand() -> None:
    # Two sites; the model without both takes half of the time, with half of their units 0.7.
    row = Row(8, 8, ("a", "b"), (Point(0, 0, 0.5), Point(4, 4, 0.7)))
    assert [row.saved(n, n) for n in (0, 2, 4, 6, 8)] == pytest.approx(
        [0.25, 0.2, 0.15, 0.075, 0.0]
    )


def test_grouped_heads_by_hand() -> None:
    # One site of 8 heads in 2 groups. Each head takes 0.05 and each group 0.1.
    points = (Point(0, 0, 0.4), Point(4, 1, 0.7), Point(2, 2, 0.7), Point(5, 2, 0.85))
    row = Row(8, 2, ("a",), points)
    for heads, groups in ((8, 2), (7, 2), (2, 2), (4, 1), (3, 1), (1, 1), (0, 0)):
        expected = (8 - heads) * 0.05 + (2 - groups) * 0.1
        assert row.saved(heads, groups) == pytest.approx(expected)


def test_times_of_layers_by_hand() -> None:
    """Two layers are 80 % of the dense model's time, and reduced layers take half as long.

    In the second round the machine is half as fast, and the whole of a model is never compared.
    """

    def timer(models: Mapping[str, Any]) -> dict[str, list[list[float]]]:
        reduced = [[9.0, 2.0, 2.0], [99.0, 4.0, 4.0], [0.1, 77.0, 2.0]]
        dense = [[10.0, 4.0, 4.0], [20.0, 8.0, 8.0], [10.0, 4.0, 4.0]]
        return {name: dense if name == "dense" else reduced for name in models}

    table, share = by_time(build("llama"), gene_map(build("llama"), "attention"), timer)
    assert [point.time for row in table.rows for point in row.points] == pytest.approx([0.6] * 4)
    assert table.seconds == 10 and share([0, 0, 0]) == pytest.approx(0.4)


def test_fewer_units_are_never_slower() -> None:
    curve = monotone({0: 0.2, 1: 0.3, 2: 0.1, 3: -0.05}, 4)
    assert curve.points == ((0, 0.25), (1, 0.25), (2, 0.1), (3, 0.0), (4, 0.0))
    rng = random.Random(0)
    for _ in range(50):
        values = {x: rng.gauss(0.3 - 0.05 * x, 0.1) for x in range(6)}
        found = monotone(values, 6)
        ys = [found(x) for x in range(7)]
        assert ys == sorted(ys, reverse=True) and ys[-1] == 0
    assert Curve(((0, 2.0), (4, 0.0)))(1) == 1.5


def test_noisy_times_are_monotone_in_every_gene() -> None:
    rng = random.Random(1)

    def noisy(models: Mapping[str, Any]) -> dict[str, list[list[float]]]:
        return {name: [[rng.uniform(0.5, 1.5)]] for name in models}

    model = build("llama", 2)
    genes = gene_map(model, "heads+channels", 4)
    _, share = by_time(model, genes, noisy)
    assert share([1] * len(genes)) == 0
    for chromosome in chromosomes(len(genes), 20):
        for gene in (i for i, value in enumerate(chromosome) if value):
            fewer = [*chromosome[:gene], 0, *chromosome[gene + 1 :]]
            assert share(fewer) >= share(chromosome) - 1e-12


def test_models_are_timed_as_they_would_be_pruned_and_share_other_weights() -> None:
    seen: list[dict[str, Any]] = []

    def timer(models: Mapping[str, Any]) -> dict[str, list[list[float]]]:
        seen.append(dict(models))
        return by_parameters(models)

    model = build("gpt2")
    genes = gene_map(model, "heads+ffn")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    by_time(model, genes, timer)
    half = seen[0]["2 of 4"]
    expected = prune(model, [1, 1, 0, 0, 1] * 3, genes)
    assert {n: t.shape for n, t in half.state_dict().items()} == {
        n: t.shape for n, t in expected.state_dict().items()
    }
    assert half.transformer.wte.weight is model.transformer.wte.weight
    assert all(torch.equal(model.state_dict()[name], t) for name, t in before.items())


@pytest.mark.parametrize("of", ["prefill", "decode"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "bart", "bert", "vit"])
def test_real_times(family: str, of: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sos_deap.models.site_times.SECONDS", 0.0)
    model = build(family)
    if of == "decode" and not model.can_generate():
        with pytest.raises(InputError, match="does not generate text: use time_of prefill"):
            time_conditions(model, of, None)
        return
    genes = gene_map(model, "layers")
    table = time_table_of(model, genes, time_of=of)
    most = 128 if family == "vit" else 64
    assert table.conditions.tokens == (56 if of == "decode" else most)
    assert table.seconds > 0 and {site.module for site in genes.sites} == {
        path for row in table.rows for path in row.sites
    }
    assert measured_speedup(model, model, table.conditions, 0.0) > 0


def test_a_table_is_the_same_after_a_file(tmp_path: Path) -> None:
    model = build("llama", 2)
    genes = gene_map(model, "heads+channels", 4)
    table, share = by_time(model, genes)
    path = tmp_path / "time_table.json"
    write_json(path, table.content())
    again = time_table_of(model, genes, path)
    assert again == table
    other = sparsity_measure(model, genes, "time", times=again)
    assert all(share(c) == other(c) for c in chromosomes(len(genes), 10))
    assert time_table_of(model, genes, str(path), 9, "prefill") == table


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": "v2-0"}, "is for the model v2-0, the run has v2-"),
        ({"device": "abacus"}, "is for the device abacus, the run has"),
        (
            {"dtype": "float16"},
            "is for the dtype float16, the run has float32: give that, or leave",
        ),
    ],
)
def test_a_table_of_other_conditions_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = build("llama")
    genes = gene_map(model)
    table, _ = by_time(model, genes)
    path = tmp_path / "table.json"
    write_json(path, replace(table, conditions=replace(table.conditions, **change)).content())
    with pytest.raises(InputError, match=message) as caught:
        time_table_of(model, genes, path)
    assert "\n" not in str(caught.value)


def test_a_table_of_other_tokens_kind_or_genes_is_refused(tmp_path: Path) -> None:
    model = build("llama")
    table, _ = by_time(model, gene_map(model))
    path = tmp_path / "table.json"
    write_json(path, table.content())
    with pytest.raises(InputError, match="is for the time_tokens 9, the run has 8"):
        time_table_of(model, gene_map(model), path, 8)
    with pytest.raises(InputError, match="is for the time_of prefill, the run has decode"):
        time_table_of(model, gene_map(model), path, None, "decode")
    with pytest.raises(InputError, match=r"has no times of model\.layers\.0\.mlp"):
        time_table_of(model, gene_map(model, "heads+channels", 4), path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist"),
        ("{", "cannot be read"),
        ("[]", "holds no time table: give the time_table.json of a run"),
        ('{"conditions": {}}', "holds no time table"),
        ("seconds", "holds no time table"),
        ("points", "holds no time table"),
        ("units", "holds no time table"),
    ],
)
def test_damaged_tables(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    table = TimeTable(
        Conditions("v2-0", "cpu", "float32", "prefill", 9),
        0.5,
        (Row(4, 4, ("a",), (Point(0, 0, 0.5),)),),
        1,
        "2",
    )
    content = table.content()
    assert table_of(json.loads(json.dumps(content))) == table
    if text == "seconds":
        text = json.dumps({**content, "seconds": float("nan")})
    elif text == "points":
        text = json.dumps({**content, "rows": [{**content["rows"][0], "points": []}]})
    elif text == "units":
        text = json.dumps({**content, "rows": [{**content["rows"][0], "units": "4"}]})
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_time_table(path)


def test_bad_options() -> None:
    model = build("llama")
    with pytest.raises(InputError, match="unknown time_of 'prefil': did you mean 'prefill'"):
        time_conditions(model, "prefil", None)
    for tokens in (0, 65):
        with pytest.raises(InputError, match=f"time_tokens is {tokens}: give at least 1, and at"):
            time_conditions(model, "prefill", tokens)
    with pytest.raises(InputError, match="at most 56 of the model's 64 positions, 8 of which"):
        time_conditions(model, "decode", 57)


def test_the_recipe_holds_the_table(
    model_folder: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sos_deap.models.site_times.SECONDS", 0.0)
    options: dict[str, Any] = {"dataset": str(text_file), "samples": 1, "seqlen": 16}
    made = Evaluator.from_pretrained(str(model_folder), sparsity_of="time", **options)
    recipe = made.recipe

    def never(*args: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("sos_deap.models.time_options.measured_table", never)
    other = from_recipe(recipe)
    assert other is not made and other.time_table == made.time_table
    assert all(made.sparsity(c) == other.sparsity(c) for c in chromosomes(12, 5))
    assert other.sparsity.costs == made.sparsity.costs


def test_options_without_the_sparsity_of_time() -> None:
    options: dict[str, Any] = {"time_table": "x", "time_tokens": 3, "time_of": "decode"}
    for name, value in options.items():
        with pytest.raises(InputError, match=f"{name} is only for the sparsity_of time"):
            Evaluator(small_llama(), lambda model: 0.0, **dict[str, Any]({name: value}))
