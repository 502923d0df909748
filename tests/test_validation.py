"""The winner is chosen on examples that the search has not used."""

from __future__ import annotations

import json
import random
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from deap import base, tools

from sos_deap import Evaluator, InputError, evolve, register
from sos_deap.run import main
from sos_deap.search.limits import Limits
from sos_deap.search.validation import Validation
from tests.test_drive import toolbox_for

DATA: dict[str, Any] = {
    "dataset": "builtin:pydoc",
    "samples": 2,
    "seqlen": 32,
    "heldout_samples": 2,
}
FLAGS = [f"--{name}={value}" for name, value in DATA.items()]


DRAW = random.Random(8)
WORTH = [DRAW.random() for _ in range(20)]


def elsewhere(individual: Any) -> tuple[float]:
    """A fitness that is unrelated to the search's."""
    return (sum(w for w, gene in zip(WORTH, individual, strict=True) if gene),)


@pytest.mark.parametrize("algorithm", ["sos-repaired", "eaMuPlusLambda", "swap", "sweep"])
def test_the_winner_is_the_best_finalist_on_the_other_examples(algorithm: str) -> None:
    def run(validation: Validation | None) -> Any:
        random.seed(3)
        toolbox = toolbox_for()
        if validation is not None:
            toolbox.search = replace(toolbox.search, validation=validation)
        hall = tools.HallOfFame(5)
        return evolve(toolbox, algorithm, generations=9, population=8, halloffame=hall).halloffame

    asked: list[int] = []

    def score(evaluate: Any, individuals: Any) -> list[tuple[float, ...]]:
        asked.append(len(individuals))
        return list(map(elsewhere, individuals))

    finalists = run(None)
    chosen = run(Validation(score, 5, evaluations=0, tokens=0))
    assert asked == [len(finalists)] and len(finalists) > 1
    assert sorted(map(list, chosen)) == sorted(map(list, finalists))
    assert list(chosen[0]) == list(max(finalists, key=elsewhere))
    assert chosen[0].fitness.values == elsewhere(chosen[0])


def test_the_choice_is_a_part_of_the_budget() -> None:
    validation = Validation(
        lambda _, individuals: [(0.0,)] * len(individuals), 4, evaluations=30, tokens=600
    )
    assert validation.remaining(Limits(evaluations=100, seconds=9)) == Limits(
        evaluations=70, seconds=9
    )
    assert validation.remaining(Limits(tokens=601)) == Limits(tokens=1)
    with pytest.raises(InputError, match="takes 30 evaluations, and 30 are allowed"):
        validation.remaining(Limits(evaluations=30))
    toolbox = toolbox_for()
    toolbox.search = replace(toolbox.search, validation=validation)
    random.seed(0)
    evolution = evolve(toolbox, "swap", population=8, limits=Limits(evaluations=100))
    assert sum(evolution.logbook.select("nevals")) <= 70


def test_the_examples_are_others_and_are_counted() -> None:
    evaluator = Evaluator.from_pretrained(**DATA, validation_samples=3)
    assert evaluator.validation is not None
    plain = Evaluator.from_pretrained(**{**DATA, "samples": 5})
    toolbox = base.Toolbox()
    register(toolbox, evaluator, finalists=4)
    individuals = toolbox.population(n=4)
    seen, fitness = evaluator.many(individuals), evaluator.validate(individuals)
    assert evaluator.accounting.tokens == 4 * 2 * 32 + 4 * 3 * 32
    validation = toolbox.search.validation
    assert validation.tokens == 4 * 3 * 32 and validation.evaluations == 4 * 3 / 2
    # Mean negative log-likelihoods of the first two and the other three of the same five examples.
    density = [sum(genes) / len(genes) for genes in individuals]
    metrics = plain.metrics(individuals)
    for five, (two,), (three,), kept in zip(metrics, seen, fitness, density, strict=True):
        parts = (-two / kept) ** 2 * (-three / kept) ** 3
        assert parts ** (1 / 5) == pytest.approx(five, rel=2e-3)
    assert plain.validation is None
    with pytest.raises(InputError, match="there are no validation examples"):
        plain.validate(individuals)


def test_validation_text_that_a_model_writes_is_another(tmp_path: Path) -> None:
    own = Evaluator.from_pretrained(**{**DATA, "dataset": "builtin:self"}, validation_samples=2)
    assert own.validation is not None and own.heldout is not None
    tasks = (own.task, own.validation.task, own.heldout)
    assert len({task.describe()["token_hash"] for task in tasks}) == 3


def test_a_run_chooses_its_winner_and_reports_it(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--validation_samples=4", "--finalists=3", "--generations=3"]
    assert main([*FLAGS, f"--model={model_folder}", *more, f"--output_dir={tmp_path / 'run'}"]) == 0
    assert "the winner is the best of 3 on the validation examples" in capsys.readouterr().out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["search"]["validated"] == 3
    hashes = {part["token_hash"] for part in result["data"].values()}
    assert set(result["data"]) == {"calibration", "held-out", "validation"} and len(hashes) == 3
    evaluator = Evaluator.from_pretrained(str(model_folder), **DATA, validation_samples=4)
    rows = (tmp_path / "run" / "evaluations.csv").read_text().splitlines()[1:]
    met = [list(map(int, row.split(",")[0])) for row in rows]
    finalists = sorted(met, key=lambda genes: -evaluator(genes, 0.31)[0])[:3]
    winner = max(finalists, key=lambda genes: evaluator.validate([genes])[0])
    assert winner == result["best"]["chromosome"]


def test_a_signal_while_the_winner_is_chosen(
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It ends the run as at any other moment, and the resumed run has the same result."""
    more = [*FLAGS, f"--model={model_folder}", "--validation_samples=4", "--finalists=3"]
    more += ["--generations=2"]
    assert main([*more, f"--output_dir={tmp_path / 'whole'}"]) == 0
    validating = Evaluator.validating

    def disturbed(self: Evaluator) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return validating(self)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "validating", disturbed)
        assert main([*more, f"--output_dir={tmp_path / 'run'}"]) == 143
    assert "to resume: python -m sos_deap.run --resume" in capsys.readouterr().err
    assert main([f"--resume={tmp_path / 'run'}"]) == 0
    results = [
        json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "run")
    ]
    assert results[0]["best"] == results[1]["best"]
    assert results[0]["search"]["tokens"] == results[1]["search"]["tokens"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--validation_samples=0"], "validation_samples is 0"),
        (["--validation_samples=2", "--finalists=0"], "finalists is 0"),
        (["--validation_samples=2", "--algorithm=nsga2"], "choose one winner"),
        (["--validation_samples=9", "--max_evaluations=20"], "takes 45 evaluations, and 20"),
        (["--validation_samples=2", "--samples=100000"], "no example is left for validation"),
    ],
)
def test_what_does_not_fit_is_refused(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*FLAGS, *flags, f"--output_dir={tmp_path / 'run'}"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_channels_given_in_order_are_not_measured_again() -> None:
    evaluator = Evaluator.from_pretrained(**DATA, validation_samples=3, genes="channels")
    assert evaluator.validation is not None
    before, task = evaluator.accounting.tokens, evaluator.validation.task
    evaluator.validate([[1] * len(evaluator.gene_map)])
    assert evaluator.accounting.tokens - before == task.tokens + task.reference_tokens


def test_validation_can_be_interrupted() -> None:
    evaluator = Evaluator.from_pretrained(**DATA, validation_samples=3)

    def check() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), evaluator.interruptible(check):
        evaluator.validate([[1] * len(evaluator.gene_map)])
    assert evaluator.validate([[1] * len(evaluator.gene_map)])
