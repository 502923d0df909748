"""Priors of a genetic algorithm: in the initial population, in mutation and in repair."""

from __future__ import annotations

import json
import random
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from deap import base

from sos_deap import Chromosome, Evaluator, InputError, prune, register
from sos_deap.run import main
from sos_deap.search.chromosome import random_genes
from sos_deap.search.operators import mutSparsityFlipBit
from sos_deap.search.prior import drawn, removal_weights
from sos_deap.search.repairs import limit_sparsity
from tests.test_resume import lines

FLAGS = ["--dataset=builtin:pydoc", "--samples=1", "--seqlen=16", "--heldout_samples=1"]
IMPORTANCE = [5.0, 1.0, 4.0, 2.0, 3.0, 0.0]


def test_weights_go_by_rank_and_have_mean_1() -> None:
    weights = removal_weights(IMPORTANCE)
    assert weights == pytest.approx([1 / 6, 9 / 6, 3 / 6, 7 / 6, 5 / 6, 11 / 6])
    some = removal_weights(IMPORTANCE, exploration=0.15)
    assert some == pytest.approx([0.15 + 0.85 * weight for weight in weights])
    assert mean(some) == pytest.approx(1)


def test_the_first_draw_is_in_proportion_to_the_weights() -> None:
    random.seed(0)
    weights = [1.0, 2.0, 4.0, 1.0]
    firsts = [drawn([0, 1, 2], weights, 1)[0] for _ in range(14_000)]
    shares = [firsts.count(gene) / len(firsts) for gene in range(4)]
    assert shares == pytest.approx([1 / 7, 2 / 7, 4 / 7, 0], abs=0.015)
    assert sorted(drawn(range(4), weights, 4)) == [0, 1, 2, 3]


def test_new_individuals_mutation_and_repair_remove_what_matters_least() -> None:
    weights = removal_weights(IMPORTANCE)
    random.seed(1)
    new = [random_genes(6, 1 / 3, weights) for _ in range(3000)]
    assert all(genes.count(0) == 2 for genes in new)
    mutated = [mutSparsityFlipBit([1] * 6, 0.2, weights=weights)[0] for _ in range(6000)]
    restored = [mutSparsityFlipBit([0] * 6, 0.2, weights=weights)[0] for _ in range(6000)]
    repaired = [limit_sparsity(0.5, weights=weights)(lambda: ([0] * 6,))()[0] for _ in range(3000)]
    assert all(genes.count(0) == 3 for genes in repaired)
    shares_removed = {
        what: [mean(1 - genes[i] for genes in found) for i in range(6)]
        for what, found in (("new", new), ("mutated", mutated), ("repaired", repaired))
    }
    for shares in shares_removed.values():
        assert sorted(range(6), key=shares.__getitem__) == [0, 2, 4, 3, 1, 5]
    assert shares_removed["mutated"] == pytest.approx(
        [0.2 * weight for weight in weights], abs=0.02
    )
    back = [mean(genes[i] for genes in restored) for i in range(6)]
    assert back == pytest.approx([0.2 * (2 - weight) for weight in weights], abs=0.02)


def test_without_weights_every_draw_is_as_it_was() -> None:
    random.seed(2)
    before = [random.random() < 0.3 for _ in range(8)]
    random.seed(2)
    assert mutSparsityFlipBit([1] * 8, 0.3)[0] == [int(not flip) for flip in before]


def test_an_ablation_is_of_each_gene_alone(evaluator: Evaluator) -> None:
    toolbox: Any = base.Toolbox()
    register(toolbox, evaluator, prior="ablation", initial_sparsity=0.25, max_sparsity=0.5)
    assert evaluator.accounting.evaluations == 0  # not before the search
    first = toolbox.population(n=3)[0]
    assert evaluator.accounting.forward_evaluations == 13
    dense = evaluator.metric_of(evaluator.model, evaluator.task)
    alone = [[int(gene != i) for gene in range(12)] for i in range(12)]
    lost = [
        evaluator.metric_of(prune(evaluator.model, genes), evaluator.task) - dense
        for genes in alone
    ]
    assert evaluator.importance("ablation") == pytest.approx(lost, abs=1e-4)
    order = sorted(range(12), key=lost.__getitem__)
    assert sorted(i for i, gene in enumerate(first) if not gene) == sorted(order[:3])
    assert evaluator.accounting.forward_evaluations == 13


def test_a_run_with_the_prior_ablation_is_resumed(model_folder: Path, tmp_path: Path) -> None:
    """What it computes is a part of the search, in its journal and on its page."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    flags = [*FLAGS, f"--model={model_folder}", "--population_size=4", "--prior=ablation"]
    assert main([*flags, "--generations=2", f"--output_dir={whole}"]) == 0
    assert main([*flags, "--generations=1", f"--output_dir={parts}"]) == 0
    (parts / "result.json").unlink()
    assert main([f"--resume={parts}", "--generations=2"]) == 0
    results = [json.loads((folder / "result.json").read_text()) for folder in (whole, parts)]
    assert results[0]["best"] == results[1]["best"]
    first, second = (lines(folder / "journal.jsonl") for folder in (whole, parts))
    assert [line for line in first if "sums" in line] == [line for line in second if "sums" in line]
    assert results[0]["search"]["forward_evaluations"] >= 13


def test_a_toolbox_by_a_prior(evaluator: Evaluator) -> None:
    toolbox: Any = base.Toolbox()
    register(toolbox, evaluator, prior="wanda", initial_sparsity=0.25, max_sparsity=0.5)
    importance = evaluator.importance("wanda")
    order = sorted(range(len(importance)), key=importance.__getitem__)
    random.seed(3)
    first, *others = toolbox.population(n=5)
    assert sorted(i for i, gene in enumerate(first) if not gene) == sorted(order[:3])
    assert isinstance(first, Chromosome)
    assert all(one.count(0) == 3 for one in others)
    with pytest.raises(InputError, match="unknown importance 'wand': did you mean 'wanda'"):
        register(toolbox, evaluator, prior="wand")
