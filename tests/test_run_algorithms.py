"""Algorithms and operators from the command line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.variants.settings import VARIANTS_FILE
from sos_deap.config import parse
from sos_deap.presets import PRESETS
from sos_deap.report.formats import measurement
from sos_deap.run import main
from tests.test_run import read, rows
from tests.tiny import build

BEST = {"algorithm": PRESETS["best"]["algorithm"], **PRESETS["best"]["kl"]}

MINE = '''
import random
from deap import algorithms, tools


def climb(population, toolbox, rate, ngen, stats, halloffame, verbose, cxpb):
    """DEAP's eaSimple with a mutation probability of its own."""
    return algorithms.eaSimple(
        population, toolbox, cxpb, rate, ngen, stats, halloffame, verbose=verbose
    )


def cxSwapHalves(ind1, ind2, at=0.5):
    half = round(len(ind1) * at)
    ind1[:half], ind2[:half] = ind2[:half], ind1[:half]
    return ind1, ind2


def mutAll(individual):
    individual[:] = [0] * len(individual)
    return (individual,)


def selTop(individuals, k):
    return [max(individuals, key=lambda i: i.fitness) for _ in range(k)]


def cxGrow(ind1, ind2):
    ind1.append(1)
    return ind1, ind2


def divides(population, toolbox, by=0):
    yield population
    yield [toolbox.clone(one) for one in population][: 4 // by]
'''


@pytest.fixture
def small(
    model_folder: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Flags of a run of a second or two, in a folder with a module of the user's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_search.py").write_text(MINE)
    flags = {
        "model": model_folder,
        "dataset": text_file,
        "output_dir": tmp_path / "run",
        "population_size": 6,
        "generations": 3,
        "samples": 2,
        "seqlen": 32,
        "heldout_samples": 2,
        "mutation_rate": 0.1,
        "max_sparsity": 0.34,
        "device": "cpu",
    }
    return [f"--{name}={value}" for name, value in flags.items()]


@pytest.mark.usefixtures("drawn_figures")
def test_the_preset_best_and_flags_over_it(small: list[str], tmp_path: Path) -> None:
    flags = [flag for flag in small if not flag.startswith("--samples")]
    assert main(["best", *flags, "--metric=kl"]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    # This model has two query heads for each of two key/value heads.
    changed = {"genes": "groups+channels", "metric": "kl", "heldout_samples": 2}
    expected = {"task": "kl", **BEST, **changed}
    assert {name: config[name] for name in expected} == expected
    result = read(tmp_path / "run")
    dense, best = result["dense"], result["best"]
    genes = rows(tmp_path / "run" / "genes.csv")
    assert [int(row["kept"]) for row in genes] == best["chromosome"]
    removed = sum(float(row["cost"]) for row in genes if row["kept"] == "0")
    assert removed == pytest.approx(best["sparsity"], rel=0.2)  # groups' costs are not additive
    assert all(math.isfinite(float(row["loss"])) for row in genes)
    assert result["search"]["genes"] == "groups+channels"
    assert best["parameters"] == round((1 - best["sparsity"]) * dense["parameters"])
    assert 0 < best["sparsity"] <= 0.34
    budget = BEST["max_evaluations"] * result["data"]["calibration"]["tokens"]
    assert 0 < result["search"]["tokens"] <= budget


def test_a_genetic_algorithm_at_constant_sparsity_from_a_prior(
    small: list[str], tmp_path: Path
) -> None:
    chosen = ["--crossover=balanced", "--mutation=swap", "--objective=metric", "--prior=wanda"]
    assert main([*small, *chosen, "--initial_sparsity=0.3"]) == 0
    found = rows(tmp_path / "run" / "evaluations.csv")
    assert len(found) > 6
    assert {row["chromosome"].count("0") for row in found} == {round(0.3 * 12)}


def test_the_preset_is_the_variant_that_was_compared() -> None:
    variants = yaml.safe_load(VARIANTS_FILE.read_text())
    assert variants["sweep-near"].items() <= {"task": "kl", **BEST}.items()
    heads = {**PRESETS["best-heads"], **PRESETS["best-heads"]["kl"]}
    assert variants["sweep"].items() <= {"task": "kl", **heads}.items()


def test_best_removes_heads_where_channels_cannot_be_removed(
    small: list[str], tmp_path: Path
) -> None:
    build("phimoe").save_pretrained(tmp_path / "phimoe")
    config, _ = parse(["best", f"--model={tmp_path / 'phimoe'}"])
    assert (config.genes, config.algorithm) == ("heads", "sweep,prior=wanda")
    config, _ = parse(["best", "--genes=heads", *small])
    assert config.genes == "heads"
    config, _ = parse(["best", "--model=builtin:tiny"])
    assert (config.genes, config.algorithm) == ("heads+channels", BEST["algorithm"])


def test_json_lines_for_programs(small: list[str], tmp_path: Path, capsys: Any) -> None:
    assert main([*small, "--json_lines"]) == 0
    first, *generations, last = map(json.loads, capsys.readouterr().out.splitlines())
    result, log = read(tmp_path / "run"), rows(tmp_path / "run" / "logbook.csv")
    assert first["event"] == "run" and first["folder"] == str(tmp_path / "run")
    assert [event["generation"] for event in generations] == [0, 1, 2, 3]
    assert [event["tokens"] for event in generations] == [int(row["tokens"]) for row in log]
    assert last == {"event": "result", **result, "measured": []}


def test_quiet_prints_nothing_but_errors(small: list[str], tmp_path: Path, capsys: Any) -> None:
    assert main([*small, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert (tmp_path / "run" / "report.html").is_file()
    assert main([*small, "--quiet"]) == 2
    assert "holds a run already" in capsys.readouterr().err


def test_an_unknown_preset(capsys: Any) -> None:
    assert main(["bets"]) == 2
    assert "unknown preset 'bets': did you mean 'best'?" in capsys.readouterr().err


def test_everything_of_the_user_s_own(small: list[str], tmp_path: Path) -> None:
    chosen = [
        "--algorithm=mine_search:climb,rate=1",
        "--crossover=mine_search:cxSwapHalves,at=0.25",
        "--mutation=mine_search:mutAll",
        "--selection=mine_search:selTop",
    ]
    assert main([*small, *chosen]) == 0
    result = read(tmp_path / "run")
    assert result["search"]["algorithm"] == "mine_search:climb,rate=1"
    assert result["search"]["objective"] == "paper"
    # Every child lost all its heads and got back as many as the bound allows: 4 of 12 are removed.
    evaluations = rows(tmp_path / "run" / "evaluations.csv")
    assert {row["chromosome"].count("0") for row in evaluations} == {1, 4}
    assert [int(row["nevals"]) for row in rows(tmp_path / "run" / "logbook.csv")] == [6] * 4


def test_an_error_in_an_algorithm_of_the_user_s_is_one_line(
    small: list[str], tmp_path: Path, capsys: Any
) -> None:
    assert main([*small, "--algorithm=mine_search:divides", "--quiet"]) == 2
    error = capsys.readouterr().err
    line = MINE.splitlines().index(
        "    yield [toolbox.clone(one) for one in population][: 4 // by]"
    )
    assert error.startswith(
        f"error: divides (mine_search.py, line {line + 1}) raised ZeroDivisionError: "
    )
    assert error.endswith(f"to resume: python -m sos_deap.run --resume {tmp_path / 'run'}\n")
    assert error.count("\n") == 1


def test_an_error_of_the_package_is_not_the_user_s(
    small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr("sos_deap.evaluation.fitness.FitnessEvaluator.many", broken)
    with pytest.raises(ZeroDivisionError):
        main([*small, "--algorithm=mine_search:divides", "--quiet"])


def test_operators_by_name_keep_the_bound(small: list[str], tmp_path: Path) -> None:
    chosen = [
        "--algorithm=eaSimple,mutpb=0.9",
        "--crossover=cxUniform,indpb=0.3",
        "--mutation=mutShuffleIndexes",
        "--selection=roulette",
    ]
    assert main([*small, *chosen]) == 0
    evaluations = rows(tmp_path / "run" / "evaluations.csv")
    assert len({row["chromosome"] for row in evaluations}) > 6
    assert all(float(row["sparsity"]) <= 0.34 for row in evaluations)


@pytest.mark.parametrize("algorithm", ["pbil", "umda,children=8", "swap"])
def test_constant_sparsity(small: list[str], tmp_path: Path, algorithm: str) -> None:
    assert main([*small, f"--algorithm={algorithm}"]) == 0
    result = read(tmp_path / "run")
    assert result["search"]["objective"] == "metric"
    evaluations = rows(tmp_path / "run" / "evaluations.csv")
    assert {row["chromosome"].count("0") for row in evaluations} == {4}
    best = min(evaluations, key=lambda row: float(row["perplexity"]))
    assert "".join(map(str, result["best"]["chromosome"])) == best["chromosome"]


@pytest.mark.parametrize(
    ("algorithm", "task"),
    [("nsga2", "perplexity"), ("spea2", "kl"), ("nsga3", "perplexity")],
)
def test_a_front_and_its_hypervolume(
    small: list[str], tmp_path: Path, capsys: Any, algorithm: str, task: str
) -> None:
    assert main([*small, f"--algorithm={algorithm}", f"--task={task}", "--generations=6"]) == 0
    result, front = read(tmp_path / "run"), rows(tmp_path / "run" / "pareto.csv")
    assert result["search"]["objective"] == "pareto"
    assert len(front) > (task == "kl")  # of random weights some do harm, so perplexity may fall
    # By hand: the strips between one point's sparsity and the next one's.
    worst = math.log(2) if task == "kl" else 2 * result["dense"]["calibration"]["perplexity"]
    area, low = 0.0, 0.0
    for row in sorted(front, key=lambda row: float(row["sparsity"])):
        area += (float(row["sparsity"]) - low) * (worst - float(row[task]))
        low = float(row["sparsity"])
    found = result["search"]["hypervolume"]
    assert found["value"] == pytest.approx(area) and area > 0
    assert found["reference"] == {task: pytest.approx(worst), "sparsity": 0.0}
    shown = f"hypervolume of the Pareto front: {measurement(area)} (reference point: {task} "
    assert shown in capsys.readouterr().out
    assert result["best"]["sparsity"] > 0


def test_mutation_bias_as_a_parameter(small: list[str], tmp_path: Path) -> None:
    """A mutation that only removes, under the uniform layout, which evens it out."""
    flags = ["--mutation=flip,bias=100", "--genes=groups", "--layout=uniform", "--max_sparsity=0.5"]
    assert main([*small, *flags]) == 0
    for row in rows(tmp_path / "run" / "evaluations.csv"):
        assert len({row["chromosome"][start : start + 2].count("1") for start in (0, 2, 4)}) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--crossover=cxTwoPont"], "unknown crossover 'cxTwoPont': did you mean 'cxTwoPoint'"),
        (["--crossover=cxPartialyMatched"], "cxPartialyMatched is for permutations, not for lists"),
        (["--mutation=mutGaussian"], "the mutation mutGaussian is for real numbers"),
        (["--mutation=mine_search:mutAl"], "unknown function in mine_search 'mutAl': did you mean"),
        (["--mutation=flip,bias=many"], "bias of the mutation flip is 'many'"),
        (["--crossover=mine_search:cxGrow"], "expected children of 12 genes, it made 13, 12"),
        (["--selection=nsga3"], "NSGA-III is for fitness of several values"),
        (["--selection=no:thing"], "cannot import no of no:thing"),
        (["--algorithm=mine_search:climb"], "lacks rate: write mine_search:climb,rate=..."),
        (["--algorithm=mine_search:selTop"], "cannot be called like DEAP's"),
        (["--algorithm=eaMuCommaLambda,lambda_=2"], "lambda_ is 2: give at least mu, 6"),
        (["--algorithm=pbil,margin=1"], "margin is 1"),
        (["--algorithm=pbil", "--mutation=flip"], "without a mutation: leave --mutation out"),
        (
            ["--algorithm=swap", "--prior=wanda"],
            "does not use --prior: leave it out, or use sweep,prior=wanda",
        ),
        (["--algorithm=best"], "give it first, python -m sos_deap.run best"),
        (["--prior=wnda"], "unknown importance 'wnda': did you mean 'wanda'"),
        (["--algorithm=pbil", "--objective=pareto"], "the algorithm pbil is for one fitness value"),
        (["--algorithm=nsga2", "--objective=paper"], "nsga2 is for several fitness values"),
        (["--algorithm=nsga2", "--selection=roulette"], "has a selection of its own: leave"),
        (
            ["--algorithm=swap", "--layout=uniform", "--genes=groups"],
            "the algorithm swap does not keep the same number of heads in every layer",
        ),
    ],
)
def test_bad_names_are_one_line_and_write_nothing(
    small: list[str], tmp_path: Path, flags: list[str], message: str, capsys: Any
) -> None:
    assert main([*small, *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "run").exists()
