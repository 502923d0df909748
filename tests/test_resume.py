"""Runs that are stopped at any moment and resumed end as an uninterrupted run does."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import shlex
import shutil
import signal
import time
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sos_deap import Evaluator, InputError
from sos_deap.config import parse
from sos_deap.evaluation.journal import Journal
from sos_deap.files.atomic import write_text
from sos_deap.files.run_folder import resumable_folder, resume_advice
from sos_deap.run import main
from tests.conftest import GENES
from tests.processes import RUN, running
from tests.test_run import read, rows

#: Counts that are lower in a resumed run, as it did less work.
WORK = ("layers_computed", "flops", "out_of_memory")
END = ("result.json", "measured.json", "report.html", "complete.json")
A, B = bytes([1, 0, 1]), bytes([1, 1, 0])


class Killed(BaseException):
    """Stands for the end of the process: the program must not catch it."""


def known(result: Any) -> Any:
    """A result without times and work."""
    search = {
        name: value
        for name, value in result["search"].items()
        if not name.startswith("seconds") and name not in WORK
    }
    return {**result, "search": search}


def timeless(folder: Path) -> list[dict[str, str]]:
    """The logbook without times."""
    return [row | {"seconds": ""} for row in rows(folder / "logbook.csv")]


def lines(path: Path) -> list[Any]:
    """The lines of a journal without times."""
    contents = [json.loads(line[9:]) for line in path.read_bytes().splitlines()]
    return [{k: v for k, v in content.items() if k != "seconds"} for content in contents]


def line(content: Any) -> bytes:
    """A line of a journal."""
    text = json.dumps(content).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def computed(chunks: dict[bytes, list[float]]) -> Any:
    def compute(keys: Any, part: slice) -> Any:
        for key in keys:
            yield [key], [chunks[key]]

    return compute


def test_a_journal_gives_back_every_bit(tmp_path: Path) -> None:
    sums = {A: [0.1 + 0.2, 1e-320, -0.0], B: [math.inf, -math.inf, 3.0]}
    journal = Journal(tmp_path / "j", "x")
    found = list(journal.through([A, B], (0, 4), computed(sums)))
    assert found == [([A], [sums[A]]), ([B], [sums[B]])]
    journal.close()
    again = Journal(tmp_path / "j", "x")
    assert list(again.through([B, A], (0, 4), computed({}))) == [([B, A], [sums[B], sums[A]])]
    assert math.copysign(1, next(iter(again.through([A], (0, 4), computed({}))))[1][0][2]) == -1
    assert (A, 0, 4) in again and (A, 0, 2) not in again and len(again) == 2
    other = list(again.through([A, B], (4, 6), computed({A: [1.0] * 3, B: [math.nan] * 3})))
    assert len(other) == 2
    again.close()
    with closing(Journal(tmp_path / "j", "x")) as last:
        [(_, [row])] = last.through([B], (4, 6), computed({}))
        assert math.isnan(row[0])


def test_damaged_lines_are_cut_off_and_written_again(tmp_path: Path, caplog: Any) -> None:
    path = tmp_path / "j"
    journal = Journal(path, "x", clock=lambda: 0.0)
    sums = {bytes([i]): [float(i)] for i in range(2)} | {A: [0.5], B: [1.5]}
    list(journal.through(list(sums), (0, 1), computed(sums)))
    journal.close()
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        there = sum(len(b"".join(lines[: i + 1])) <= cut for i in range(len(lines)))
        again = Journal(path, "x", clock=lambda: 0.0)
        assert len(again) == max(0, there - 1)
        list(again.through(list(sums), (0, 1), computed(sums)))
        again.close()
        assert path.read_bytes() == whole
    for position in (3, len(lines[0]) + 20, len(whole) - 5):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        again = Journal(path, "x", clock=lambda: 0.0)
        assert len(again) < 4
        again.close()
    assert "is damaged from line" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"my thesis\n", "is not a journal"),
        (b"\x89PNG\r\n\x1a\n", "is not a journal"),
        (None, "is a symbolic link"),
        ({"examples": [0, 4], "sums": {"101": [1.0]}}, "has lost its first line: restore"),
    ],
)
def test_a_file_that_is_no_journal_is_unchanged(tmp_path: Path, content: Any, message: str) -> None:
    path, other = tmp_path / "j", tmp_path / "bashrc"
    if content is None:
        other.write_bytes(b"precious")
        path.symlink_to(other)
    else:
        path.write_bytes(content if isinstance(content, bytes) else line(content))
    before = path.read_bytes()
    with pytest.raises(InputError, match=message):
        Journal(path, "x")
    assert path.read_bytes() == before


def test_a_line_is_synced_soon_although_no_other_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sos_deap.evaluation.journal._SYNC_SECONDS", 0.05)
    synced, fsync = list[int](), os.fsync

    def syncing(descriptor: int) -> None:
        if not Path(f"/proc/self/fd/{descriptor}").resolve().is_dir():
            synced.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", syncing)
    journal = Journal(tmp_path / "j", "x")
    sums = {bytes([1, i]): [float(i)] for i in range(2)}
    for _ in journal.through(list(sums), (0, 1), computed(sums)):
        until = time.monotonic() + 30
        while not synced or synced[-1] != journal.path.stat().st_size:
            assert time.monotonic() < until
            time.sleep(0.01)
    list(journal.through(list(sums), (1, 2), computed(sums)))
    journal.close()
    assert synced[-1] == journal.path.stat().st_size


def test_seconds_are_those_of_all_processes(tmp_path: Path) -> None:
    sums, now = {bytes([1, i]): [float(i)] for i in range(4)}, [0.0]

    def slow(keys: Any, part: slice) -> Any:
        for key in keys:
            now[0] += 10
            yield [key], [sums[key]]

    keys = list(sums)
    for begin, expected in ((0.0, [10.0, 20.0]), (5000.0, [10.0, 20.0, 30.0, 40.0])):
        now[0], found = begin, []
        with closing(Journal(tmp_path / "j", "x", clock=lambda: now[0])) as journal:
            for key in keys[: len(expected)]:
                list(journal.through([key], (0, 1), slow))
                found.append(journal.seconds)
        assert found == expected


def test_a_journal_is_of_one_scope_and_one_process(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", "x")
    with pytest.raises(InputError, match="is in use by another process: wait for it"):
        Journal(tmp_path / "j", "x")
    journal.close()
    with pytest.raises(InputError, match="is of another model, task or other data"):
        Journal(tmp_path / "j", "y")
    with pytest.raises(InputError, match=r"journal .* cannot be opened"):
        Journal(tmp_path / "nowhere" / "j", "x")
    Journal(tmp_path / "j", "x").close()  # which did not change it


def test_an_evaluator_computes_nothing_twice(evaluator: Evaluator, tmp_path: Path) -> None:
    random.seed(1)
    genes = [[random.randint(0, 1) for _ in range(GENES)] for _ in range(9)]
    expected = evaluator.metrics(genes)
    computed_before = evaluator.accounting.layers_computed
    for _ in range(2):
        evaluator.clear()
        evaluator.open_journal(tmp_path / "j")
        assert evaluator.metrics(genes) == expected
        evaluator.close_journal()
    evaluator.clear()
    evaluator.open_journal(tmp_path / "j")
    before = evaluator.accounting.layers_computed
    assert evaluator.metrics(genes) == expected
    assert evaluator.accounting.layers_computed == before > computed_before
    evaluator.close_journal()


def no_page(folder: Path) -> Path:
    """Write a short text instead of the page, which `test_page.py` tests."""
    write_text(folder / "report.html", "<html>a page</html>\n")
    return folder / "report.html"


@pytest.fixture
def small(
    model_folder: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Flags of a run of a second."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sos_deap.report.page.write_page", no_page)  # and seconds of drawing
    flags = {
        "model": model_folder,
        "dataset": text_file,
        "population_size": 4,
        "generations": 5,
        "samples": 4,
        "seqlen": 32,
        "heldout_samples": 2,
        "mutation_rate": 0.1,
        "max_sparsity": 0.34,
        "device": "cpu",
        "dtype": "float32",
    }
    return [f"--{name}={value}" for name, value in flags.items()]


SEARCHES = {
    "sos-repaired": ["--algorithm=sos-repaired"],
    "nsga2": ["--algorithm=nsga2"],
    "sweep": ["--algorithm=sweep,prior=wanda", "--task=kl", "--max_evaluations=40"],
    "evopress": ["--algorithm=evopress,generations=4", "--task=kl", "--max_evaluations=40"],
    "umda": ["--algorithm=umda"],
    "generator": ["--algorithm=tests.test_drive:annealing,cooling=0.9"],
    "channels": [
        *("--algorithm=sweep,near=0.5", "--genes=heads+channels", "--channel_blocks=4"),
        *("--task=kl", "--max_evaluations=40"),
    ],
}


@pytest.mark.parametrize("name", SEARCHES)
def test_a_run_that_is_killed_at_any_write_is_resumed_to_the_same_end(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    whole = tmp_path / "whole"
    assert main([*small, *SEARCHES[name], f"--output_dir={whole}"]) == 0
    written = lines(whole / "journal.jsonl")
    write, folder = Journal._write, tmp_path / "run"
    flags = [*small, *SEARCHES[name], f"--output_dir={folder}"]
    # The run, and then each resumed one, is killed when so many lines are written.
    for moment in sorted(random.Random(name).sample(range(len(written)), 3)):

        def dying(journal: Journal, content: Any, moment: int = moment) -> None:
            if journal.path.read_bytes().count(b"\n") == moment:
                with journal.path.open("ab") as file:
                    file.write(b'0000beef {"exam')  # what it had written of this line
                raise Killed
            write(journal, content)

        monkeypatch.setattr(Journal, "_write", dying)
        with pytest.raises(Killed):
            main(flags)
        assert not (folder / "result.json").exists()
        flags = [f"--resume={folder}"]
    monkeypatch.setattr(Journal, "_write", write)
    assert main(flags) == 0
    assert known(read(folder)) == known(read(whole))
    for file in ("evaluations.csv", "pareto.csv", "samples.json"):
        assert (folder / file).read_bytes() == (whole / file).read_bytes()
    assert timeless(folder) == timeless(whole)
    settings = json.loads((folder / "config.json").read_text())
    assert lines(folder / "journal.jsonl") == [written[0], {"settings": settings}, *written[2:]]


def test_killed_before_its_result_is_written(small: list[str], tmp_path: Path) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert main([*small, f"--output_dir={whole}"]) == 0
    shutil.copytree(whole, folder)
    (folder / "result.json").unlink()
    (folder / "pruned" / "config.json").unlink()
    assert main([f"--resume={folder}"]) == 0
    assert known(read(folder)) == known(read(whole))
    assert (folder / "pruned" / "config.json").is_file()


def test_a_full_disk_loses_nothing(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert main([*small, f"--output_dir={whole}"]) == 0
    write, left = Journal._write, [3]

    def full(journal: Journal, content: Any) -> None:
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= 1
        write(journal, content)

    monkeypatch.setattr(Journal, "_write", full)
    assert main([*small, f"--output_dir={folder}"]) == 1
    assert "No space left on device" in capsys.readouterr().err
    monkeypatch.setattr(Journal, "_write", write)
    assert main([f"--resume={folder}"]) == 0
    assert known(read(folder)) == known(read(whole))


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
    "garbled": lambda content: content[:-9] + bytes(255 - byte for byte in content[-9:]),
}


def test_what_is_damaged_in_a_complete_run_is_made_again(small: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert main([*small, f"--output_dir={folder}"]) == 0
    whole = read(folder)
    settings = parse([f"--resume={folder}"])
    for name in ("config.json", *END, "chromosome.json", "pruned/model.safetensors"):
        path = folder / name
        content = path.read_bytes()
        for damage in DAMAGE.values():
            path.write_bytes(damage(content))
            assert resumable_folder(folder) == folder
            assert parse([f"--resume={folder}"]) == settings
        path.unlink()
        assert resumable_folder(folder) == folder
        assert parse([f"--resume={folder}"]) == settings
        path.write_bytes(content)
        with pytest.raises(InputError, match="is complete"):
            resumable_folder(folder)
    weights = (folder / "pruned" / "model.safetensors").read_bytes()
    for names in (("config.json", "report.html"), ("pruned/model.safetensors", "result.json")):
        for name in names:
            (folder / name).write_bytes(b"")
        assert main([f"--resume={folder}"]) == 0
        assert known(read(folder)) == known(whole)
        assert (folder / "pruned" / "model.safetensors").read_bytes() == weights
        with pytest.raises(InputError, match="is complete"):
            resumable_folder(folder)
    # As earlier versions left a run that was complete, and one that was not.
    (folder / "complete.json").unlink()
    head, _, *others = (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "journal.jsonl").write_bytes(b"".join([head, *others]))
    with pytest.raises(InputError, match="is complete"):
        resumable_folder(folder)
    (folder / "report.html").write_text('<meta http-equiv="refresh"></html>')
    assert resumable_folder(folder) == folder


def test_the_folder_is_removed_during_the_run(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    folder, write, left = tmp_path / "run", Journal._write, [5]

    def removing(journal: Journal, content: Any) -> None:
        left[0] -= 1
        if not left[0]:
            shutil.rmtree(folder)
        write(journal, content)

    monkeypatch.setattr(Journal, "_write", removing)
    assert main([*small, f"--output_dir={folder}"]) == 1
    [error] = capsys.readouterr().err.splitlines()
    assert f"run folder {folder} was removed or renamed during the run" in error
    assert not folder.exists()


def test_advice_can_be_pasted_into_a_shell() -> None:
    command = resume_advice(Path("my run's; true")).partition(": ")[2]
    assert shlex.split(command)[-2:] == ["--resume", "my run's; true"]


@pytest.mark.parametrize("name", ["a" * 300, "\udcff", "d\udcff/x", "/".join(["b" * 99] * 50)])
def test_names_that_no_file_can_have_are_refused(
    small: list[str], tmp_path: Path, name: str, capsys: Any
) -> None:
    for flag in ("output_dir", "dataset"):
        assert main([*small, f"--{flag}={tmp_path / name}"]) == 2
        [error] = capsys.readouterr().err.splitlines()
        assert error.startswith("error: ") and ("too long" in error or "is not UTF-8" in error)
    assert not list(tmp_path.glob("*"))


def test_a_process_that_cannot_lock_a_run_folder_does_not_change_it(
    small: list[str], tmp_path: Path, capsys: Any
) -> None:
    folder = tmp_path / "run"
    assert main([*small, f"--output_dir={folder}"]) == 0
    (folder / "result.json").unlink()  # as in the last seconds of a run, with all else written
    files = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    scope = json.loads((folder / "journal.jsonl").read_bytes().splitlines()[0][9:])["scope"]
    with closing(Journal(folder / "journal.jsonl", scope)):
        assert main([f"--resume={folder}", "--generations=9"]) == 2
        assert "is in use by another process" in capsys.readouterr().err
        assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == files
    assert main([f"--resume={folder}"]) == 0


def test_more_generations_are_another_limit_and_no_other_run(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert main([*small, "--generations=9", f"--output_dir={whole}"]) == 0
    assert main([*small, f"--output_dir={folder}"]) == 0
    (folder / "result.json").unlink()
    assert main([f"--resume={folder}", "--generations=9"]) == 0
    assert known(read(folder)) == known(read(whole))
    assert json.loads((folder / "config.json").read_text())["generations"] == 9


def test_a_run_of_an_earlier_version_is_not_resumed(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "config.json").write_text('{"seed": 0, "density": "heads"}')
    (tmp_path / "journal.jsonl").write_text('{"settings": {"density": "heads"}}\n')
    assert main([f"--resume={tmp_path}"]) == 2
    [error] = capsys.readouterr().err.splitlines()
    assert "is of an earlier version, whose flag --density is now --sparsity_of" in error
    assert error.endswith("start a new run without --resume")


def test_runs_that_cannot_be_resumed(small: list[str], tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "run"
    assert main([*small, f"--output_dir={folder}"]) == 0
    for flags, message in (
        (
            [f"--resume={folder}"],
            "is complete: to reuse its evaluations in a new run",
        ),
        (
            [f"--resume={folder}", "--seed=1"],
            "has seed 0, and 1 would make it another run: leave --seed",
        ),
        ([f"--resume={folder}", "--samples=3"], "has samples 4, and 3 would make it another run"),
        ([f"--resume={tmp_path}"], "holds no run: give the folder of one"),
        (["--resume=nowhere"], "run folder nowhere holds no run"),
    ):
        assert main(flags) == 2
        [error] = capsys.readouterr().err.splitlines()
        assert message in error
    assert main([*small, f"--output_dir={folder}"]) == 2
    assert "holds a run already" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_real_process_stopped_by_a_signal(
    small: list[str], tmp_path: Path, number: signal.Signals
) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "run"
    more = ["--generations=400", "--seed=3"]
    journal, printed = folder / "journal.jsonl", tmp_path / "printed"
    with running(RUN, [*small, *more, f"--output_dir={folder}"], printed) as process:
        until = time.monotonic() + 90
        while not (journal.exists() and journal.read_bytes().count(b"\n") > 5):
            assert process.is_alive() and time.monotonic() < until
            time.sleep(0.02)
        os.kill(process.pid or 0, number)
        process.join(60)
    if number == signal.SIGKILL:
        assert process.exitcode == -number
    else:
        assert process.exitcode == 128 + number
        advice = f"to resume: python -m sos_deap.run --resume {folder}"
        assert advice in printed.read_text()
    assert not (folder / "result.json").exists()
    assert main([f"--resume={folder}", "--generations=30"]) == 0
    assert main([*small, *more, "--generations=30", f"--output_dir={whole}"]) == 0
    assert known(read(folder)) == known(read(whole))
