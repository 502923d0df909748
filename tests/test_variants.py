from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from benchmarks.variants import iohfiles, job, page, plan, results, tables, work
from benchmarks.variants.__main__ import main
from benchmarks.variants.heldout import completed
from benchmarks.variants.settings import parse
from sos_deap import prune
from sos_deap.plan import evaluator_of, plan_of
from sos_deap.search.space import Part, Space

BUDGET = 16
REMOVED = 4  # a third of 12 heads

Flags = Callable[..., list[str]]

TOO_FEW = (
    "With 2 seeds and 1 comparison the smallest possible p-value is 0.5: "
    "no difference can be significant; give --seeds 6 or more"
)

#: What of a job's file the tables are made of.
USED = ("checkpoints", "measured", "metric", "trace", "variant", "seed", "seconds", "genes")


@pytest.fixture(scope="session")
def flags(model_folder: Path, text_file: Path) -> Flags:
    def flags(folder: Path, variants: str = "sos-repaired,swap", **more: Any) -> list[str]:
        settings: dict[str, Any] = {
            "model": model_folder, "dataset": text_file, "variants": variants, "budget": BUDGET,
            "sparsity": 0.34, "seeds": 2, "output_dir": folder, "seqlen": 16, "samples": 2,
            "heldout_samples": 4, "population_size": 4, "dtype": "float32", **more,
        }  # fmt: skip
        return [f"--{name}={value}" for name, value in settings.items() if value is not None]

    return flags


@pytest.fixture(scope="session")
def compared(tmp_path_factory: pytest.TempPathFactory, flags: Flags) -> Path:
    """A comparison that ran through."""
    folder = tmp_path_factory.mktemp("compared") / "out"
    assert main([*flags(folder), "--ioh"]) == 0
    return folder


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take a second."""
    monkeypatch.setattr("benchmarks.variants.page.save", lambda folder, name, draw: "")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def without_seconds(path: Path) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in rows(path)]


def jobs_of(flags: Flags, folder: Path, variants: str, **more: Any) -> list[plan.Job]:
    return plan.jobs(parse(flags(folder, variants, **more)))


def one(flags: Flags, folder: Path, variant: str, **more: Any) -> dict[str, Any]:
    return job.run_job(jobs_of(flags, folder, variant, seeds=1, **more)[0])


def test_end_to_end(compared: Path) -> None:
    final = rows(compared / "final.csv")
    assert [(row["variant"], row["seed"], row["form"]) for row in final] == [
        (variant, seed, form)
        for variant in ("sos-repaired", "swap")
        for seed in "01"
        for form in ("raw", "equal")
    ]
    for row in final:
        removed = row["chromosome"].count("0")
        assert removed == int(row["removed"]) <= REMOVED
        assert row["form"] == "raw" or removed == REMOVED
        assert int(row["evaluations"]) <= BUDGET
        assert {"heldout_perplexity", "heldout_kl", "calibration_perplexity"} <= row.keys()
    assert len({row["dense_heldout_perplexity"] for row in final}) == 1  # one text for all seeds
    assert len({row["dense_calibration_perplexity"] for row in final}) == 2
    wilcoxon = rows(compared / "tests.csv")[0]
    assert (wilcoxon["test"], wilcoxon["n"], wilcoxon["verdict"]) == (
        "wilcoxon",
        "2",
        "too few pairs",
    )
    assert {row["reached"] for row in rows(compared / "targets.csv")} <= {"0", "1", "2"}
    assert not list(compared.rglob("*.part"))


def test_traces_record_what_was_spent(compared: Path) -> None:
    each = 2 * 16  # tokens of an evaluation
    for row in rows(compared / "traces.csv"):
        # What the dense model reads, to be compared with, is spent too.
        dense = each if row["search_metric"] == "kl" else 0
        assert int(row["tokens"]) == int(row["evaluations"]) * each + dense
        assert float(row["share"]) == pytest.approx(int(row["tokens"]) / each / BUDGET)


def test_the_page_is_self_contained(compared: Path) -> None:
    text = (compared / "index.html").read_text(encoding="utf-8")
    assert text.count("<svg") == 4
    for outside in ("src=", "@import", "<script", "<link"):
        assert outside not in text
    assert "too few pairs" in text and f"<p>{TOO_FEW}.</p>" in text
    plots = {path.suffix for path in (compared / "plots").iterdir()}
    assert plots == {".png", ".svg"}


def test_held_out_figures_are_those_of_the_sliced_model(compared: Path, flags: Flags) -> None:
    row = next(r for r in rows(compared / "final.csv") if r["form"] == "equal")
    settings = parse(flags(compared))
    first = plan.jobs(settings)[0]
    evaluator = evaluator_of(plan_of(*first.yardstick()))
    assert evaluator.heldout is not None
    sliced = prune(evaluator.model, [int(gene) for gene in row["chromosome"]])
    for name, value in evaluator.metrics_of(sliced, evaluator.heldout).items():
        assert float(row[f"heldout_{name}"]) == pytest.approx(value, rel=1e-5)


def test_files_for_iohanalyzer(compared: Path) -> None:
    described = json.loads(next((compared / "ioh" / "swap").glob("*.json")).read_text())
    assert described["algorithm"]["name"] == "swap"
    runs = described["scenarios"][0]["runs"]
    assert [run["seed"] for run in runs] == [0, 1]
    final = [row for row in rows(compared / "checkpoints.csv") if row["form"] == "equal"]
    for run in runs:
        mine = [
            float(r["heldout_perplexity"])
            for r in final
            if (r["variant"], int(r["seed"])) == ("swap", run["seed"])
        ]
        assert run["best"]["y"] == pytest.approx(min(mine))


def test_a_missing_ioh_is_reported_before_anything_is_done(
    tmp_path: Path,
    flags: Flags,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(iohfiles, "import_module", missing)
    assert main([*flags(tmp_path / "out"), "--ioh"]) == 2
    assert "pip install ioh" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_figures")
def test_a_killed_comparison_is_resumed(
    compared: Path, tmp_path: Path, flags: Flags, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run is done, the second is killed; the rest is done by two processes later."""
    folder, run_job, calls = tmp_path / "out", job.run_job, []

    def killed_at_the_second(one: plan.Job) -> dict[str, Any]:
        calls.append(one.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run_job(one)

    monkeypatch.setattr(job, "run_job", killed_at_the_second)
    assert main(flags(folder)) == 130
    assert [path.stem for path in (folder / "jobs").iterdir()] == calls[:1]
    monkeypatch.setattr(job, "run_job", run_job)
    before = next((folder / "jobs").iterdir()).stat().st_mtime_ns
    assert main(flags(folder, workers=2)) == 0
    assert (folder / "jobs" / f"{calls[0]}.json").stat().st_mtime_ns == before
    for name in ("traces.csv", "final.csv", "checkpoints.csv", "tests.csv", "targets.csv"):
        assert without_seconds(folder / name) == without_seconds(compared / name)


def test_a_warm_store_gives_the_run_of_a_cold_one(tmp_path: Path, flags: Flags) -> None:
    """An evaluation in the store counts as if it were computed."""
    same: list[dict[str, Any]] = []
    for _ in range(2):
        found = one(flags, tmp_path, "sos-repaired")
        for row in [*found["trace"], *found["checkpoints"], found]:
            for name in [name for name in row if "seconds" in name]:
                del row[name]
        same.append(found)
    assert same[0] == same[1]
    evaluator = evaluator_of(jobs_of(flags, tmp_path, "sos-repaired")[0].plan())
    evaluator.open_store(tmp_path / "store.sqlite")
    evaluator.metrics([[int(gene) for gene in text] for text in same[0]["initial"]])
    evaluator.close_store()
    assert evaluator.accounting.forward_evaluations == 0  # it was warm


def test_the_same_seed_gives_the_same_initial_population(tmp_path: Path, flags: Flags) -> None:
    loops = [one(flags, tmp_path, name)["initial"] for name in ("sos", "sos-repaired", "nsga2")]
    assert loops[0] == loops[1] == loops[2]
    exchange = one(flags, tmp_path, "swap")["initial"]
    # `swap` changes the same individuals to its sparsity, so it removes what they remove.
    for text in loops[0]:
        assert any(
            all(new == "0" for old, new in zip(text, other, strict=True) if old == "0")
            for other in exchange
        )


def test_more_calibration_text_means_fewer_evaluations(tmp_path: Path, flags: Flags) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("large: {algorithm: sos-repaired, samples: 4}\n")
    found = one(flags, tmp_path / "out", "large", variants_file=own, budget=20)
    last = found["checkpoints"][-1]
    assert found["stopped_by"] == "tokens"
    assert last["evaluations"] <= 10
    assert last["tokens"] == last["evaluations"] * 4 * 16 <= found["budget_tokens"] == 20 * 2 * 16


def test_a_budget_in_tokens(tmp_path: Path, flags: Flags) -> None:
    found = one(flags, tmp_path, "swap", budget=None, budget_tokens=10 * 32)
    assert found["stopped_by"] == "tokens"
    # What the dense model reads for the divergence is as much as one of the ten.
    assert (found["budget_tokens"], found["checkpoints"][-1]["evaluations"]) == (320, 9)


def test_what_comes_after_the_budget_does_not_count(tmp_path: Path, flags: Flags) -> None:
    found = one(flags, tmp_path, "eaMuPlusLambda", budget=8, mutation_rate=0.5)
    evaluations = [row["evaluations"] for row in found["trace"]]
    assert evaluations[-1] > 8  # a generation of a loop is never cut short
    assert found["checkpoints"][-1]["evaluations"] == evaluations[-2] < 8


@pytest.mark.usefixtures("no_figures")
def test_a_front_has_a_hypervolume(tmp_path: Path, flags: Flags) -> None:
    assert main(flags(tmp_path / "out", "nsga2", seeds=1)) == 0
    volumes = rows(tmp_path / "out" / "fronts.csv")
    assert [row["part"] for row in volumes] == ["calibration", "heldout"]
    assert all(0 < float(row["hypervolume"]) <= 1.5 for row in volumes)  # 1 is as good as dense
    final = rows(tmp_path / "out" / "final.csv")
    front = json.loads(next((tmp_path / "out" / "jobs").iterdir()).read_text())["front"]
    assert final[0]["chromosome"] in front  # what removes most of it
    assert final[0]["removed"] == str(max(text.count("0") for text in front))


@pytest.mark.usefixtures("no_figures")
def test_a_failed_run_is_named(
    tmp_path: Path,
    flags: Flags,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, run_job = tmp_path / "out", job.run_job

    def fails(one: plan.Job) -> dict[str, Any]:
        if (one.variant, one.seed) == ("swap", 1):
            raise RuntimeError("no luck\nat all")
        return run_job(one)

    monkeypatch.setattr(job, "run_job", fails)
    assert main(flags(folder)) == 1
    assert "swap_seed1: RuntimeError: no luck" in capsys.readouterr().err
    assert len(rows(folder / "final.csv")) == 6
    assert "1 runs failed" in (folder / "index.html").read_text()
    assert "no luck" in next((folder / "jobs").glob("*.error.txt")).read_text()
    monkeypatch.setattr(job, "run_job", run_job)
    assert main(flags(folder)) == 0
    assert len(rows(folder / "final.csv")) == 8
    assert not list((folder / "jobs").glob("*.error.txt"))


@pytest.mark.usefixtures("no_figures")
def test_other_settings_are_refused_and_more_of_the_same_are_not(
    compared: Path, tmp_path: Path, flags: Flags, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(compared, folder)
    before = (folder / "settings.json").read_text()
    assert main(flags(folder, heldout_samples=5)) == 2
    assert "heldout_samples 4, not 5" in capsys.readouterr().err
    assert (folder / "settings.json").read_text() == before
    assert main(flags(folder, seeds=1)) == 0
    assert len(rows(folder / "final.csv")) == 4


@pytest.mark.usefixtures("no_figures")
def test_damaged_files_of_jobs_are_computed_again(
    compared: Path,
    tmp_path: Path,
    flags: Flags,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, sound = tmp_path / "out", {}
    shutil.copytree(compared, folder)
    for path in (folder / "jobs").glob("*.json"):
        sound[path.stem] = json.loads(path.read_text())
    again: list[str] = []

    def run_job(one: plan.Job) -> Any:
        again.append(one.name)
        return sound[one.name]

    monkeypatch.setattr(job, "run_job", run_job)
    monkeypatch.setattr(job, "try_out", lambda kind, metric: None)
    assert main(flags(folder)) == 0 and not again
    capsys.readouterr()
    name, whole = next(iter(sound.items()))
    text = json.dumps(whole)
    others: Any = cycle((None, "x", [[]]))
    wrong = (
        *("", "[]", "null", "3", "{}", "[" * 100_000, text[: len(text) // 2], "\0" * 100),
        *(json.dumps({**whole, key: next(others)}) for key in USED),
    )
    for content in wrong:
        (folder / "jobs" / f"{name}.json").write_text(content)
        again.clear()
        assert main(flags(folder)) == 0
        assert again == [name], content[:200]
        few, error = capsys.readouterr().err.splitlines()
        assert few == TOO_FEW and f"{name}.json is damaged: renamed to" in error
    (folder / "settings.json").write_text("[]")
    assert main(flags(folder)) == 2
    assert "settings.json cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "warning"),
    [
        ({}, TOO_FEW),
        ({"seeds": 6}, ""),
        ({"seeds": 6, "budget": 16, "variants": "sos,sos-repaired,swap"}, "--seeds 7 or more"),
        ({"seeds": 6, "variants": "sos,nsga2,swap", "control": "sos"}, "p-value is 0.0625"),
        ({"seeds": 1, "variants": "swap"}, "one variant has nothing to be compared with"),
    ],
)
def test_too_few_seeds_are_told_before_the_first_run(
    more: dict[str, Any],
    warning: str,
    tmp_path: Path,
    flags: Flags,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop(one: plan.Job) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "run_job", stop)
    monkeypatch.setattr(job, "try_out", lambda kind, metric: None)
    assert main(flags(tmp_path / "out", **more)) == 130
    *lines, last = capsys.readouterr().err.splitlines()
    assert last == "interrupted" and len(lines) == bool(warning)
    assert warning in "".join(lines)


def test_budgets_are_compared_together(tmp_path: Path, flags: Flags) -> None:
    settings = parse([*flags(tmp_path, "sos,swap,nsga2"), "--budget", "20", "30"])
    found = [(p.model, p.dataset, p.sparsity) for p in plan.problems(settings)]
    assert tables.comparisons(settings) == len(found) * 3 == 9  # one model, data set and sparsity


def test_a_variant_whose_genes_the_completion_chose_is_named(tmp_path: Path, flags: Flags) -> None:
    def runs(*raw: str) -> dict[int, Any]:
        return {i: {"checkpoints": [{"raw": r, "equal": "000011"}]} for i, r in enumerate(raw)}

    problem = plan.problems(parse(flags(tmp_path)))[0]
    by_variant = {
        "completed": runs("011111", "011111", "000011"),
        "found": runs("011111", "000111", "000011"),
        "half": runs("001111"),
        "failed": {},
    }
    group = results.Group(problem, by_variant, "perplexity", False)
    (line,) = page.completion(group)
    assert line.startswith("completed: the search chose 1 of 4 removed genes")


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        ({"variants": "sos,swpa"}, "unknown variant 'swpa': did you mean 'swap'?"),
        ({"seedz": 3}, "unknown flag '--seedz': did you mean '--seeds'? --help lists"),
        ({"seed": 3}, "the command line sets seed"),
        ({"output_dir": None}, "--output_dir is missing"),
        ({"sparsity": 31}, "sparsity is 31.0"),
        ({"sparsity": 0.01, "initial_sparsity": 0}, "sparsity 0.01 of 12 genes removes none"),
        ({"seeds": 0}, "seeds is 0"),
        ({"seeds": 10**18}, "seeds is 1000000000000000000: give a number from 1 to 10,000"),
        ({"first_seed": 2**32}, "first_seed is 4294967296: give a number from 0 to"),
        ({"workers": 0}, "workers is 0"),
        ({"workers": 10**40}, "workers is 1000000000... (41 digits): give a number from 1"),
        ({"workers": "9" * 5000}, "invalid int value"),
        ({"budget": 10**400}, "budget is 1000000000... (401 digits)"),
        ({"target": "nan"}, "target is nan"),
        ({"config": "."}, "configuration file . cannot be read"),
        ({"budget": 3}, "population of 4, more than the budget of 3"),
        (
            {"budget": None, "budget_tokens": 99},
            "a population of 4 needs as many evaluations of 32 tokens",
        ),
        ({"budget_tokens": 99}, "both given"),
        ({"budget": "many"}, "invalid int value: 'many'"),
        ({"reference": "sos"}, "unknown reference 'sos'"),
        ({"control": "sos"}, "unknown control 'sos'"),
        ({"heldout_metric": "kll"}, "unknown heldout_metric 'kll': did you mean 'kl'?"),
        ({"model": "no/such"}, "no/such"),
        ({"dataset": "no.txt"}, "no.txt"),
        ({"config": "no.yaml"}, "configuration file no.yaml does not exist"),
        ({"variants_file": "no.yaml"}, "variants file no.yaml does not exist"),
    ],
)
def test_bad_input_is_one_line(
    given: dict[str, Any],
    answer: str,
    tmp_path: Path,
    flags: Flags,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(flags(**{"folder": tmp_path / "out", **given})) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert answer in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ("mine: {algorithm: swap, seqlen: 8}", "sets seqlen, which all variants must share"),
        ("mine: {algorithm: swap, max_tokens: 8}", "sets max_tokens, which the benchmark sets"),
        ("mine: {algoritm: swap}", "did you mean 'algorithm'?"),
        ("mine: {algorithm: swpa}", "variant mine: unknown algorithm 'swpa'"),
        ("mine: swap", "variant mine in"),
        ("'my own': {algorithm: swap}", "use letters, digits"),
        ("mine: [", "cannot be read"),
        ("", "is empty"),
        ("mine: &a [x, x]\nother: [*a, *a]", "references such as *name are not read"),
        ("mine: !!int ''", "cannot be read"),
        ("mine: !!timestamp x", "cannot be read"),
        ("mine: !!python/name:os.system", "cannot be read"),
        ("[" * 100_000, "lists and mappings are nested more than 20 levels deep"),
        ("mine: " + "x" * 100_000, "100,006 characters are too many"),
        ("1: {algorithm: swap}", "the name 1 is not a text: write it in quotes"),
        ("mine: {seed: 1}\nmine: {seed: 2}", "'mine' is given twice: write it once"),
        ("mine: {task: accuracy}", "the variants have different tasks"),
    ],
)
def test_bad_variants_are_one_line(
    content: str, answer: str, tmp_path: Path, flags: Flags, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(content)
    assert main(flags(tmp_path / "out", "sos,mine", variants_file=own)) == 2
    error = capsys.readouterr().err
    assert answer in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_file_and_flags_give_the_same_settings(tmp_path: Path) -> None:
    path = tmp_path / "compare.yaml"
    path.write_text(
        "model: [a, b]\nvariants: [sos, swap]\nbudget: 20\nioh: true\nseqlen: 8\nworkers: 2\n"
    )
    found = parse(["--config", str(path), "--workers", "3", "--output_dir", "o", "--dtype=float32"])
    given = "--model a b --variants sos swap --budget 20 --ioh --seqlen 8 --workers 3"
    assert found == parse([*given.split(), "--output_dir", "o", "--dtype", "float32"])
    assert (found.models, found.workers, found.heldout_task) == (("a", "b"), 3, "kl")
    assert len(plan.jobs(found)) == 2 * 2 * 15
    path.write_text("modle: a\n")
    with pytest.raises(ValueError, match="did you mean 'model'"):
        parse(["--config", str(path), "--output_dir", "o"])


def test_a_folder_of_something_else_is_unchanged(
    tmp_path: Path, flags: Flags, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert main(flags(tmp_path)) == 2
    assert "has other content" in capsys.readouterr().err


def space(genes: int, max_sparsity: float) -> Space:
    return Space((Part(0, "heads", genes),), max_sparsity)


def test_heads_are_taken_that_the_search_removes_most() -> None:
    others = [[1, 0, 0, 1, 0], [1, 0, 1, 1, 0], [1, 1, 0, 1, 0]]
    assert completed([1, 1, 1, 1, 0], space(5, 0.6), others, seed=0) == [1, 0, 0, 1, 0]
    assert completed([0, 0, 1, 1, 1], space(5, 0.4), others, seed=0) == [0, 0, 1, 1, 1]
    drawn = {tuple(completed([1, 1, 1, 1], space(4, 0.25), [], seed)) for seed in range(20)}
    assert len(drawn) == 4  # a tie is drawn by the seed
    assert completed([1, 1, 1, 1], space(4, 0.25), [], 7) == completed(
        [1, 1, 1, 1], space(4, 0.25), [], 7
    )


def test_a_process_that_dies_is_reported(
    tmp_path: Path, flags: Flags, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = jobs_of(flags, tmp_path, "sos,swap", seeds=1)

    class Pool:
        def __init__(self, *_: Any) -> None:
            pass

        def submit(self, *_: Any) -> Any:
            future: Any = Future()
            future.set_exception(BrokenProcessPool())
            return future

        def shutdown(self, **_: Any) -> None:
            pass

    monkeypatch.setattr("sos_deap.engines.process.ProcessPoolExecutor", Pool)
    said: list[str] = []
    failed = work.work(tmp_path, planned, 2, said.append)
    assert len(failed) == len(said) == 2
    assert all("a process died" in line for line in said)


def test_what_has_one_name_in_the_tables_is_refused(
    tmp_path: Path, flags: Flags, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder / "data").mkdir(parents=True)
        (tmp_path / folder / "data" / "words.txt").write_text("words")
    both = [f"--dataset={tmp_path / folder / 'data' / 'words.txt'}" for folder in ("one", "two")]
    assert main([*flags(tmp_path / "out"), *both]) == 2
    assert "are both data/words.txt in the tables" in capsys.readouterr().err
