"""Views of a running search: its page, and TensorBoard's event files."""

from __future__ import annotations

import io
import os
import random
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deap.tools import HallOfFame, Logbook
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sos_deap import Evaluator
from sos_deap.report.console import Progress
from sos_deap.report.formats import measurement
from sos_deap.report.live import LivePage
from sos_deap.run import main
from sos_deap.search.limits import Limits
from tests.processes import status_of
from tests.test_page import Words
from tests.test_run import read, rows


@pytest.fixture
def flags(model_folder: Path, text_file: Path) -> list[str]:
    """Flags of a run of a second."""
    given = {
        "model": model_folder,
        "dataset": text_file,
        "population_size": 4,
        "generations": 3,
        "samples": 2,
        "seqlen": 32,
        "heldout_samples": 2,
        "mutation_rate": 0.1,
        "max_sparsity": 0.34,
        "device": "cpu",
        "dtype": "float32",
    }
    return [f"--{name}={value}" for name, value in given.items()]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page after each generation."""
    for name in ("_FIRST", "_PAUSE", "_SHARE"):
        monkeypatch.setattr(f"sos_deap.report.live.{name}", 0)


def generators() -> tuple[Any, ...]:
    """The states of all random generators that a search uses."""
    numpy_state: Any = np.random.get_state()
    return random.getstate(), numpy_state[1].tobytes(), torch.get_rng_state().numpy().tobytes()


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--algorithm=nsga2"],
        ["--algorithm=sweep,prior=wanda", "--task=kl", "--max_evaluations=20"],
    ],
    ids=["sos-repaired", "nsga2", "sweep"],
)
def test_the_page_follows_the_search_and_does_not_change_it(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    plain, folder = tmp_path / "plain", tmp_path / "run"
    assert main([*flags, *more, f"--output_dir={plain}"]) == 0
    pages: list[str] = []
    write = LivePage._write

    def watched(page: LivePage, best: Any) -> None:
        before = generators()
        write(page, best)
        assert generators() == before
        pages.append((folder / "report.html").read_text())

    monkeypatch.setattr(LivePage, "_write", watched)
    assert main([*flags, *more, f"--output_dir={folder}"]) == 0
    log = rows(folder / "logbook.csv")
    assert len(pages) == len(log) >= 3
    limit = " of 3" if "max_evaluations" not in str(more) else ""
    for number, (text, row) in enumerate(zip(pages, log, strict=True)):
        page = Words(text)
        assert f"The search is running: generation {number}{limit}." in page.text
        # A sweep scores parts of the text, so that there is nothing to compare before its end.
        least = 0 if "sweep" in str(more) else 2
        assert least + 1 <= page.open.count("svg") <= 3
        assert any(
            re.fullmatch(r"Written on .*; the page reloads itself\. .* --resume .*\.", line)
            for line in page.text
        )
        assert 'http-equiv="refresh"' in text
        if row["best_metric"]:
            assert measurement(float(row["best_metric"])) in page.text
    last = (folder / "report.html").read_text()
    assert "refresh" not in last and "is running" not in last
    # The search was the same.
    for file in ("evaluations.csv", "pareto.csv", "samples.json"):
        assert (folder / file).read_bytes() == (plain / file).read_bytes()
    assert read(folder)["best"] == read(plain)["best"]


@pytest.mark.usefixtures("at_once")
def test_a_search_that_has_found_nothing_has_a_page_too(
    evaluator: Evaluator, tmp_path: Path
) -> None:
    progress, logbook = Progress(evaluator, Limits(evaluations=9)), Logbook()
    known = {
        "dense": {"calibration": {"perplexity": 9.0}, "heldout": {}},
        "search": {"algorithm": "mine", "parts": []},
        "data": {},
        "dtype": "float32",
        "command": "python",
        "versions": {},
    }
    nothing = {"fitness": {"avg": -1e30, "max": -1e30}, "sparsity": {"avg": 0.5}}
    logbook.record(gen=0, nevals=2, **nothing, diversity={"hamming": 0.25})
    progress(0, HallOfFame(1))
    LivePage(tmp_path, evaluator, progress, logbook, "<me>", known)(0, HallOfFame(1))
    page = Words((tmp_path / "report.html").read_text())
    assert "Best sub-model: no sub-model within the maximum sparsity yet." in page.text
    assert page.open.count("svg") == 0 and "<me>" in page.text
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize(("generation", "page"), [(0.5, 0.01), (0.5, 3.0), (40.0, 7.0)])
def test_pages_take_little_of_the_time(
    evaluator: Evaluator, tmp_path: Path, generation: float, page: float
) -> None:
    now, written = 0.0, []

    class Slow(LivePage):
        def _write(self, best: Any) -> None:
            nonlocal now
            written.append(now)
            now += page

    live = Slow(tmp_path, evaluator, None, None, "", {}, clock=lambda: now)  # type: ignore[arg-type]
    for number in range(2000):
        now += generation
        live(number, HallOfFame(1))
    assert written[0] == max(3.0, generation)
    gaps = np.diff(written)
    assert gaps.min() >= 30 and gaps.max() <= max(30, 20 * page) + page + generation
    assert page * len(gaps) / (now - written[0]) < 0.05


@pytest.mark.usefixtures("at_once")
def test_the_page_states_that_a_search_was_interrupted(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, write, sent = tmp_path / "run", LivePage._write, list[int]()

    def interrupted(page: LivePage, best: Any) -> None:
        write(page, best)
        if len(page._progress.rows) == 2 and not sent:
            sent.append(signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(LivePage, "_write", interrupted)
    assert main([*flags, f"--output_dir={folder}"]) == 128 + signal.SIGTERM
    page = Words((folder / "report.html").read_text())
    assert "The search was stopped: generation 1 of 3." in page.text
    assert f"to resume: python -m sos_deap.run --resume {folder}." in str(page.text)
    assert "is running" not in str(page.text)
    monkeypatch.setattr(LivePage, "_write", write)
    assert main([f"--resume={folder}"]) == 0
    assert "was stopped" not in (folder / "report.html").read_text()


def test_the_time_left_of_a_resumed_search_counts_all_its_time(evaluator: Evaluator) -> None:
    """A third of the generations took 100 s, replayed in no time."""
    progress = Progress(evaluator, Limits(generations=6), clock=lambda: 100.0)
    for number in range(3):
        progress(number, HallOfFame(1))
    assert progress._left() == pytest.approx(200.0)
    assert progress.rate == pytest.approx(evaluator.accounting.tokens / 100)


KILLED = """
import os, sys
import sos_deap.report.live as live
from sos_deap.run import main

live._FIRST = live._PAUSE = live._SHARE = 0
write = live.LivePage._write

def last(page, best):
    write(page, best)
    if len(page._progress.rows) == 3:
        os.kill(os.getpid(), 9)

live.LivePage._write = last
main(sys.argv[1:])
"""


def test_a_killed_run_leaves_a_page_that_the_end_replaces(flags: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert status_of(KILLED, [*flags, f"--output_dir={folder}"]) == -9
    left = Words((folder / "report.html").read_text())
    assert "The search is running: generation 2 of 3." in left.text
    assert left.open.count("svg") == 3
    assert not list(folder.glob("*.part")) and not (folder / "plots").exists()
    assert main([f"--resume={folder}"]) == 0
    assert "is running" not in (folder / "report.html").read_text()


def test_matplotlib_is_imported_when_there_is_something_to_draw(
    flags: list[str], tmp_path: Path
) -> None:
    code = """
import sys
import sos_deap.report.live
from sos_deap.evaluation.evaluator import Evaluator
from sos_deap.report.live import LivePage
from sos_deap.run import main

def watched(call, where):
    def with_a_look(self, *arguments, **keywords):
        seen.setdefault(where, "matplotlib" in sys.modules)
        return call(self, *arguments, **keywords)
    return with_a_look

seen = {}
sos_deap.report.live._FIRST = 0
Evaluator.many = watched(Evaluator.many, "evaluation")
LivePage._write = watched(LivePage._write, "page")
assert main(sys.argv[1:]) == 0
assert seen == {"evaluation": False, "page": False}, seen
assert "matplotlib" in sys.modules
"""
    printed = tmp_path / "printed"
    status = status_of(code, [*flags, "--quiet", f"--output_dir={tmp_path / 'run'}"], printed)
    assert status == 0, printed.read_text()


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard would show."""
    events = opened(folder)
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def opened(folder: Path) -> Any:
    return EventAccumulator(str(folder / "tensorboard")).Reload()


def expected(folder: Path) -> dict[str, Any]:
    """The scalars computed from the logbook."""
    log = rows(folder / "logbook.csv")
    columns = {
        "best/perplexity": [float(row["best_metric"]) for row in log],
        "best/sparsity": [float(row["best_sparsity"]) for row in log],
        "population/fitness": [float(row["fitness_avg"]) for row in log],
        "population/sparsity": [float(row["sparsity_avg"]) for row in log],
        "population/diversity": [float(row["diversity_hamming"]) for row in log],
        "search/evaluations": [float(row["evaluations"]) for row in log],
        "search/cache_hits": [float(row["cache_hits"]) for row in log],
        "search/tokens_per_second": [
            float(row["tokens"]) / max(float(row["seconds"]), 1e-3) for row in log
        ],
    }
    return {
        # An event holds a float of 32 bits.
        tag: [(step, pytest.approx(value, rel=1e-6)) for step, value in enumerate(values)]
        for tag, values in columns.items()
    }


@pytest.mark.usefixtures("drawn_figures")
def test_tensorboard_reads_the_logbook_and_the_heads(flags: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert main([*flags, "--tensorboard", f"--output_dir={folder}"]) == 0
    assert scalars(folder) == expected(folder)
    [image] = opened(folder).Images("genes")
    assert image.step == 3
    shown = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)).convert("RGB"))
    drawn = np.asarray(Image.open(folder / "plots" / "genes.png").convert("RGB"))
    assert shown.shape == drawn.shape and np.abs(shown.astype(int) - drawn).max() <= 1


def test_a_resumed_run_rewrites_its_event_files(flags: list[str], tmp_path: Path) -> None:
    folder, later = tmp_path / "run", tmp_path / "later"
    assert main([*flags, f"--output_dir={folder}"]) == 0
    (folder / "result.json").unlink()
    shutil.copytree(folder, later)
    assert main([f"--resume={folder}", "--tensorboard"]) == 0  # which it had not before
    assert scalars(folder) == expected(folder)
    (folder / "result.json").unlink()
    assert main([f"--resume={folder}", "--generations=5"]) == 0
    assert scalars(folder) == expected(folder)
    assert len(scalars(folder)["best/perplexity"]) == 6
    assert len(opened(folder).Images("genes")) == 1
    assert main([f"--resume={later}"]) == 0
    assert not (later / "tensorboard").exists()


def test_a_missing_tensorboard_is_reported_before_anything_is_written(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    folder = tmp_path / "run"
    assert main([*flags, "--tensorboard", f"--output_dir={folder}"]) == 2
    [error] = capsys.readouterr().err.splitlines()
    assert "needs the package tensorboard: pip install 'sos_deap[tensorboard]'" in error
    assert not folder.exists()
    assert main([*flags, f"--output_dir={folder}"]) == 0  # without the flag it is not needed
