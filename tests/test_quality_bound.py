"""The smallest sub-model within a bound on the loss, against sliced models."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest

from sos_deap import Evaluator, prune
from sos_deap.__main__ import main as command
from sos_deap.evaluation.uncertainty import loss
from sos_deap.models.loading import load
from sos_deap.quality_bound import QualityBound
from sos_deap.refitting import Refit
from sos_deap.report.tables import bound_lines
from sos_deap.run import main
from tests.test_uncertainty import mean_task


def loaded(folder: Path, text: Path, **settings: Any) -> Evaluator:
    return Evaluator.from_pretrained(
        str(folder),
        dataset=str(text),
        **{
            "samples": 4,
            "validation_samples": 4,
            "heldout_samples": 4,
            "seqlen": 32,
            "max_sparsity": 1.0,
        }
        | settings,
    )


def front_of(evaluator: Evaluator) -> list[list[int]]:
    """Sub-models with 1 to 7 heads removed."""
    order = random.Random(3).sample(range(12), 7)
    return [[int(i not in order[:count]) for i in range(12)] for count in range(1, 8)]


def losses_by_hand(evaluator: Evaluator, repair: Any = None) -> list[float]:
    """The losses in percent of the sliced models' perplexity on the validation examples."""
    assert evaluator.validation is not None
    found = []
    for genes in [[1] * 12, *front_of(evaluator)]:
        pruned = prune(evaluator.model, genes)
        if repair is not None and 0 in genes:
            repair(pruned)
        found.append(evaluator.metrics_of(pruned, evaluator.validation.task)["perplexity"])
    return [100 * (value / found[0] - 1) for value in found[1:]]


@pytest.mark.parametrize("rank", [0, 2, 5, 6, None])
def test_the_sparsest_within_the_bound_is_chosen(
    model_folder: Path, text_file: Path, rank: int | None
) -> None:
    evaluator = loaded(model_folder, text_file)
    losses = losses_by_hand(evaluator)
    most = -50.0 if rank is None else sorted(losses)[rank] + 1e-3
    bound = QualityBound(evaluator, most, None)
    chosen = bound.choose(front_of(evaluator))
    within = [i for i, value in enumerate(losses) if value <= most]
    if not within:
        assert chosen == [1] * 12 and bound.result["loss"] == 0
        return
    assert chosen == front_of(evaluator)[max(within)]
    assert bound.result["loss"] == pytest.approx(losses[max(within)], abs=1e-3)
    assert bound.result["sub_models"] == 7 and bound.result["metric"] == "perplexity"
    assert evaluator.validation is not None and evaluator.heldout is not None
    dense = evaluator.metrics_of(evaluator.model, evaluator.validation.task)["perplexity"]
    for genes, row, value in zip(front_of(evaluator), bound.columns, losses, strict=True):
        assert row["loss_validation"] == pytest.approx(value, abs=1e-3)
        assert row["perplexity_validation"] == pytest.approx(dense * (1 + value / 100), rel=1e-5)
        sliced = evaluator.metrics_of(prune(evaluator.model, genes), evaluator.heldout)
        assert row["perplexity_heldout"] == pytest.approx(sliced["perplexity"], rel=1e-5)


def test_sub_models_are_also_tried_with_their_refit(model_folder: Path, text_file: Path) -> None:
    evaluator = loaded(model_folder, text_file, refit_samples=40)
    refit = Refit(evaluator, "after", 0.1)
    plain, repaired = losses_by_hand(evaluator), losses_by_hand(evaluator, refit.repair)
    most = sorted(plain)[1] + 1e-3
    chosen = QualityBound(evaluator, most, refit).choose(front_of(evaluator))
    index = front_of(evaluator).index(chosen)
    unrepaired = max(i for i, value in enumerate(plain) if value <= most)
    assert index == unrepaired or (index > unrepaired and repaired[index] <= most + 1e-3)
    assert index == 6 or repaired[index + 1] > most - 1e-3


def test_loss_is_in_points_of_shares_and_percent_of_the_rest() -> None:
    accuracy, custom = mean_task("accuracy", True), mean_task("rouge1_f1", True)
    assert loss(accuracy, "accuracy", 0.8, 0.79) == pytest.approx(1.0)
    assert loss(custom, "rouge1_f1", 0.2, 0.25) == pytest.approx(-5.0)
    assert loss(mean_task("kl", False), "accuracy", 0.8, 0.79) == pytest.approx(1.0)
    assert loss(mean_task("perplexity", False), "perplexity", 20.0, 21.0) == pytest.approx(5.0)


def test_no_sub_model_above_the_maximum_sparsity_is_chosen(
    model_folder: Path, text_file: Path
) -> None:
    evaluator = loaded(model_folder, text_file, max_sparsity=0.34, refit_samples=40)
    for refit in (None, Refit(evaluator, "after", 0.1)):
        bound = QualityBound(evaluator, 1e9, refit)
        assert bound.choose(front_of(evaluator)) == front_of(evaluator)[3]  # 4 of 12 heads
        assert bound.result["sub_models"] == 4 and len(bound.columns) == 7


@pytest.mark.parametrize("algorithm", ["sos-repaired", "nsga2"])
def test_a_run_with_a_bound(
    model_folder: Path, text_file: Path, tmp_path: Path, capsys: Any, algorithm: str
) -> None:
    folder = tmp_path / "run"
    flags = {"model": model_folder, "dataset": text_file, "samples": 4, "seqlen": 32, "max_loss": 3}
    flags |= {"generations": 4, "heldout_samples": 4, "device": "cpu", "output_dir": folder}
    flags["algorithm"] = algorithm
    assert main([f"--{name}={value}" for name, value in flags.items()]) == 0
    result = json.loads((folder / "result.json").read_text())
    bound, best = result["bound"], result["best"]
    assert bound["max_loss"] == 3 and bound["loss"] <= 3
    assert result["data"]["validation"]["sequences"] == 4
    assert bound_lines(result)[0] in capsys.readouterr().out
    rows = list(csv.DictReader((folder / "pareto.csv").read_text().splitlines()))
    genes = "".join(map(str, best["chromosome"]))
    [row] = [i for i, one in enumerate(rows) if one["chromosome"] == genes]
    shown = float(rows[row]["perplexity_heldout"])
    assert shown == pytest.approx(best["heldout"]["perplexity"], rel=1e-5)
    place = tmp_path / "again"
    given = ["--chromosome", folder / "pareto.csv", "--row", row, "--output_dir", place]
    assert command(["prune", str(model_folder), *map(str, given)]) == 0
    once, again = load(folder / "pruned").state_dict(), load(place).state_dict()
    assert all(value.equal(again[name]) for name, value in once.items())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--max_loss=-1"], "max_loss is -1.0: give 0 or more"),
        (["--max_loss=nan"], "max_loss is nan: give 0 or more"),
        (["--max_loss=1", "--algorithm=one-shot"], "one-shot evaluates one: use sweep,curve=12"),
        (["--max_loss=1", "--algorithm=sweep"], "sweep evaluates one: use sweep,curve=12"),
    ],
)
def test_bounds_that_cannot_be_met(flags: list[str], words: str, capsys: Any) -> None:
    assert main(flags) == 2
    assert words in capsys.readouterr().err
