"""Faults around a run (memory, disk, locks, kills) do not change its result."""

from __future__ import annotations

import json
import math
import random
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from sos_deap import load
from sos_deap.evaluation.evaluator import Evaluator
from sos_deap.evaluation.journal import Journal
from sos_deap.evaluation.store import Store
from sos_deap.files import atomic
from sos_deap.plan import evaluator_of
from sos_deap.run import main
from tests import test_resume
from tests.conftest import small_llama
from tests.test_custom import first_logit
from tests.test_resume import Killed, known
from tests.test_run import read, rows

small = test_resume.small


@pytest.fixture
def whole(small: list[str], tmp_path: Path) -> Path:
    """The result of an undisturbed run."""
    assert main([*small, f"--output_dir={tmp_path / 'whole'}"]) == 0
    return tmp_path / "whole"


@contextmanager
def at_write(number: int, event: Callable[[], Any]) -> Iterator[None]:
    """Let something happen before a journal writes its line of that number."""
    write, left = Journal._write, [number]

    def writing(journal: Journal, content: Any) -> None:
        left[0] -= 1
        if left[0] == -1:
            event()
        write(journal, content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "_write", writing)
        yield


def die() -> None:
    raise Killed


@contextmanager
def out_of_memory_at(calls: set[int]) -> Iterator[list[int]]:
    """Let forward passes of these numbers run out of memory; counts them in a list of one."""
    forward, count = LlamaForCausalLM.forward, [0]

    def limited(self: Any, *arguments: Any, **keywords: Any) -> Any:
        count[0] += 1
        if count[0] in calls:
            raise torch.OutOfMemoryError("simulated")
        return forward(self, *arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlamaForCausalLM, "forward", limited)
        yield count


@pytest.mark.parametrize("seed", range(3))
def test_out_of_memory_then_killed_then_resumed(
    small: list[str], tmp_path: Path, seed: int
) -> None:
    whole, folder, rng = tmp_path / "whole", tmp_path / "run", random.Random(seed)
    with out_of_memory_at(set()) as count:
        assert main([*small, f"--output_dir={whole}"]) == 0
    lines = (whole / "journal.jsonl").read_bytes().count(b"\n")
    # Once: the 2 held-out examples cannot be halved twice, which is an error.
    some = {rng.randrange(1, count[0] // 2)}
    with (
        out_of_memory_at(some),
        at_write(rng.randrange(lines // 2, lines), die),
        pytest.raises(Killed),
    ):
        main([*small, f"--output_dir={folder}"])
    with out_of_memory_at({rng.randrange(1, 12)}):
        assert main([f"--resume={folder}"]) == 0
    assert known(read(folder)) == known(read(whole))


@pytest.mark.parametrize("call", range(1, 9))
def test_memory_that_runs_out_at_first_changes_nothing(call: int) -> None:
    """The first passes choose the batching, which must not depend on a transient fault."""
    from sos_deap.tasks.data.sequences import Sequences
    from sos_deap.tasks.language import Perplexity

    ids, genes = torch.randint(0, 2048, (4, 16)), [[1, 0, 1] * 4, [0, 1, 1] * 4]
    found = []
    for calls in (set[int](), {call}):
        with out_of_memory_at(calls):
            evaluator = Evaluator(small_llama(), Perplexity(Sequences("random", ids)))
            found.append((evaluator.metrics(genes), evaluator.batching))
    assert found[0] == found[1]


ODD = """
import math
import torch

def odd(model, tokenizer, rows):
    ids = torch.arange(12)[None]
    with torch.inference_mode():
        value = float(model(ids).logits[0, -1, 0])
    return [value, math.nan, math.inf, -math.inf][int(abs(value - {dense!r}) * 1000) % 4]
"""


def test_non_finite_metrics_are_kept_and_never_win(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = float(first_logit(small_llama()))
    (tmp_path / "odd_metric.py").write_text(ODD.format(dense=dense))
    monkeypatch.syspath_prepend(tmp_path)
    flags = [*small, "--task=odd_metric:odd", "--objective=metric", "--mutation_rate=0.3"]
    flags += ["--generations=8", f"--store={tmp_path / 'shared.sqlite'}"]
    folders = [tmp_path / name for name in ("whole", "run", "stored")]
    alone = [*flags[:-1], f"--store={tmp_path / 'other.sqlite'}"]
    assert main([*flags, f"--output_dir={folders[0]}"]) == 0
    with at_write(15, die), pytest.raises(Killed):
        main([*alone, f"--output_dir={folders[1]}"])
    assert main([f"--resume={folders[1]}"]) == 0
    assert main([*flags, f"--output_dir={folders[2]}"]) == 0
    metrics = [float(row["odd"]) for row in rows(folders[0] / "evaluations.csv")]
    assert {math.isnan(m) for m in metrics} == {True, False} and math.inf in metrics
    bad = sum(not math.isfinite(m) for m in metrics)
    best = max(filter(math.isfinite, metrics))
    for folder in folders:
        result = read(folder)
        assert result["search"]["non_finite"] == bad
        assert result["best"]["calibration"]["odd"] == pytest.approx(best, abs=1e-5)
        assert all(math.isfinite(float(row["odd"])) for row in rows(folder / "pareto.csv"))
        written = (folder / "evaluations.csv").read_bytes()
        assert written == (folders[0] / "evaluations.csv").read_bytes()
    one, other = (known(read(folder)) for folder in folders[:2])
    assert {**one, "command": ""} == {**other, "command": ""}
    search = read(folders[2])["search"]
    assert (search["forward_evaluations"], search["store_hits"]) == (0, len(metrics))


# Full disks


def failed(status: int, capsys: Any, reason: str, folder: Path) -> None:
    """Check that a run ended with an error of writing."""
    assert status == 1
    printed = capsys.readouterr().err.splitlines()
    [error] = [line for line in printed if not line.startswith("store ")]
    assert error.startswith("error: ") and reason in error
    assert error.endswith(f"to resume: python -m sos_deap.run --resume {folder}")


@contextmanager
def full_disk_for(*names: str) -> Iterator[None]:
    """Let new files be links to the device that is always full, those of some names or all."""
    new_file = atomic._new_file

    def full(path: Path) -> Path:
        if names and path.name not in names:
            return new_file(path)
        part = atomic.temporary_path(path)
        part.symlink_to("/dev/full")
        return part

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atomic, "_new_file", full)
        yield


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_disk_that_is_full_for_any_file(
    small: list[str], whole: Path, tmp_path: Path, capsys: Any
) -> None:
    """The run stops at the first file, and each resumed one at the next."""
    folder = tmp_path / "run"
    flags = [*small, f"--output_dir={folder}"]
    for name in (
        "evaluations.csv",
        "logbook.csv",
        "pareto.csv",
        "chromosome.json",
        "result.json",
        "measured.json",
        "report.html",
        "complete.json",
    ):
        capsys.readouterr()
        with full_disk_for(name):
            status = main(flags)
        failed(status, capsys, "No space left on device", folder)
        assert not (folder / name).exists()
        flags = [f"--resume={folder}"]
    assert main(flags) == 0
    assert known(read(folder)) == known(read(whole))
    assert (folder / "report.html").exists() and not list(folder.glob("*.part"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_disk_that_is_full_at_once(small: list[str], tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "run"
    with full_disk_for():
        assert main([*small, f"--output_dir={folder}"]) == 2
    assert "cannot write to output folder" in capsys.readouterr().err
    assert main([*small, f"--output_dir={folder}"]) == 0  # nothing was started


def test_a_model_that_does_not_fit_on_the_disk(
    small: list[str], whole: Path, tmp_path: Path, capsys: Any
) -> None:
    """Libraries in Rust write it and raise their own errors."""
    folder = tmp_path / "run"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert (whole / "pruned" / "model.safetensors").stat().st_size > 200_000
    capsys.readouterr()
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        status = main([*small, f"--output_dir={folder}"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    failed(status, capsys, "File too large", folder)
    assert not list(folder.glob("pruned*"))
    assert main([f"--resume={folder}"]) == 0
    assert known(read(folder)) == known(read(whole))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A real disk of a size that may be changed."""
    place = tmp_path / "disk"
    place.mkdir()

    def sized(size: str) -> Path:
        option = f"remount,size={size}" if place.is_mount() else f"size={size}"
        command = ["mount", "-t", "tmpfs", "-o", option, "tmpfs", str(place)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("mounting is not permitted here")
        return place

    yield sized
    if place.is_mount():
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("size", ["80k", "400k", "700k"])
def test_a_real_disk_that_fills(
    small: list[str], whole: Path, disk: Callable[[str], Path], size: str, capsys: Any
) -> None:
    folder = disk(size) / "run"
    capsys.readouterr()
    status = main([*small, f"--output_dir={folder}"])
    failed(status, capsys, "No space left on device", folder)
    disk("20m")
    assert main([f"--resume={folder}"]) == 0
    assert known(read(folder)) == known(read(whole))


# Other processes that use the same files

LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""


class Locker:
    """A process that keeps a store locked."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lock(self) -> None:
        command = [sys.executable, "-c", LOCK, str(self.path)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"locked\n"

    def unlock(self) -> None:
        self.process.communicate(timeout=30)


def test_a_run_continues_without_a_store_that_is_locked(
    small: list[str],
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: Any,
) -> None:
    monkeypatch.setattr("sos_deap.evaluation.store._SECONDS", 0.1)
    path, folder = tmp_path / "shared.sqlite", tmp_path / "run"
    locker = Locker(path)
    with at_write(6, locker.lock):
        assert main([*small, f"--store={path}", f"--output_dir={folder}"]) == 0
    locker.unlock()
    [warning] = [one.getMessage() for one in caplog.records if "store" in one.getMessage()]
    assert warning == f"store {path} fails (database is locked): the run continues without it"
    one, other = known(read(folder)), known(read(whole))
    assert {**one, "command": ""} == {**other, "command": ""}
    with closing(sqlite3.connect(path)) as store:
        count = store.execute("SELECT COUNT(*) FROM evaluations").fetchone()[0]
    assert 0 < count < one["search"]["forward_evaluations"]


def test_a_store_that_is_locked_at_the_start_is_an_error_and_the_run_resumes(
    small: list[str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("sos_deap.evaluation.store._SECONDS", 0.1)
    path, folder = tmp_path / "shared.sqlite", tmp_path / "run"
    Store(path, "x").close()
    locker = Locker(path)
    locker.lock()
    capsys.readouterr()
    assert main([*small, f"--store={path}", f"--output_dir={folder}"]) == 2
    [error] = capsys.readouterr().err.splitlines()
    assert "database is locked: another process has it, end that" in error
    locker.unlock()
    assert main([f"--resume={folder}"]) == 0
    assert known(read(folder))["best"] == known(read(whole))["best"]


def tree(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_of_two_runs_that_begin_in_one_folder_the_second_is_refused(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """While the second loads its model, the first begins, and ends."""
    folder, held = tmp_path / "run", list[Any]()

    def begins(*arguments: Any) -> Any:
        folder.mkdir()
        held.append((folder / "journal.jsonl").open("a+b"))
        held.append(Journal.__new__(Journal))
        held[1]._file, held[1].path = held[0], folder / "journal.jsonl"
        held[1]._lock()
        return evaluator_of(*arguments)

    monkeypatch.setattr("sos_deap.plan.evaluator_of", begins)
    assert main([*small, f"--output_dir={folder}"]) == 2
    [error] = capsys.readouterr().err.splitlines()
    assert f"run folder {folder} is in use by another process" in error
    assert [path.name for path in folder.iterdir()] == ["journal.jsonl"]
    held[0].close()

    def ends(*arguments: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr("sos_deap.plan.evaluator_of", evaluator_of)
            assert main([*small, "--seed=7", f"--output_dir={folder}"]) == 0
        held.append(tree(folder))
        return evaluator_of(*arguments)

    monkeypatch.setattr("sos_deap.plan.evaluator_of", ends)
    assert main([*small, f"--output_dir={folder}"]) == 2
    [error] = capsys.readouterr().err.splitlines()
    assert f"output folder {folder} holds a run already" in error
    assert tree(folder) == held[-1]


def test_a_run_that_ends_while_another_process_resumes_it_is_unchanged(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    folder = tmp_path / "run"
    with at_write(5, die), pytest.raises(Killed):
        main([*small, f"--output_dir={folder}"])
    left = list[Any]()

    def ends(*arguments: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr("sos_deap.plan.evaluator_of", evaluator_of)
            assert main([f"--resume={folder}"]) == 0
        left.append(tree(folder))
        return evaluator_of(*arguments)

    monkeypatch.setattr("sos_deap.plan.evaluator_of", ends)
    assert main([f"--resume={folder}"]) == 2
    assert "is complete" in capsys.readouterr().err
    assert tree(folder) == left[0]


@pytest.mark.parametrize("reached", ["pruning", "result.json", "measured.json"])
def test_killed_between_its_search_and_its_end(whole: Path, reached: str) -> None:
    result = read(whole)
    end = ("result.json", "measured.json", "report.html")
    for later in end[end.index(reached) + 1 :] if reached in end else end:
        (whole / later).unlink()
    if reached == "pruning":
        left = (whole / "pruned").rename(atomic.temporary_path(whole / "pruned"))
        (left / "model.safetensors").write_bytes(b"half")
    assert main([f"--resume={whole}"]) == 0
    assert load(whole / "pruned").num_parameters() == result["best"]["parameters"]
    assert not list(whole.glob("*.part"))
    assert known(read(whole)) == known(result) and (whole / "report.html").exists()


def test_files_of_a_process_that_was_killed_before_its_run_began(
    small: list[str], tmp_path: Path, capsys: Any
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "journal.jsonl").write_bytes(b"")
    atomic.temporary_path(folder / "config.json").write_text('{"mod')
    (folder / "config.json").write_bytes(b"")  # after a power failure
    assert main([*small, f"--output_dir={folder}"]) == 0
    assert not list(folder.glob("*.part"))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "journal.jsonl").write_text(
        "dear diary"
    )  # a user's file, which must not be overwritten
    capsys.readouterr()
    assert main([*small, f"--output_dir={mine}"]) == 2
    assert "is not an empty folder" in capsys.readouterr().err
    assert (mine / "journal.jsonl").read_text() == "dear diary"


def test_limits_without_end_are_written_and_read(small: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    flags = ["--max_seconds=inf", "--threshold=inf", f"--output_dir={folder}"]
    with at_write(5, die), pytest.raises(Killed):
        main([*small, *flags])
    strict = json.loads((folder / "config.json").read_text(), parse_constant=pytest.fail)
    assert strict["max_seconds"] == "inf"
    assert main([f"--resume={folder}"]) == 0
