"""The store: exact values, two writers, damage, and what a hit costs."""

from __future__ import annotations

import logging
import math
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from sos_deap import InputError
from sos_deap.evaluation.store import Store, check_store

A, B, C = bytes([1, 0, 1]), bytes([1, 1, 1]), bytes([0, 0, 0])


def test_values_come_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "new" / "store.sqlite"
    values = {A: 0.1 + 0.2, B: math.inf, C: -5e-324}
    store = Store(path, "x")
    store.put(values)
    nan = struct.unpack("<d", struct.pack("<Q", 0x7FF8000000000123))[0]
    store.put({bytes(3 * [1]): nan})
    store.close()
    again = Store(path, "x")
    assert again.get(A) == 0.1 + 0.2 and again.get(C) == -5e-324
    assert math.isnan(again.get(B) or 0.0)  # the last one written
    assert again.get(b"\1") is None
    assert len(again) == 3
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "store.sqlite",
        "store.sqlite-shm",
        "store.sqlite-wal",
    ]
    again.close()
    assert [p.name for p in path.parent.iterdir()] == ["store.sqlite"]


def test_scopes_are_separate(tmp_path: Path) -> None:
    one, other = (Store(tmp_path / "s", scope) for scope in ("bfloat16", "float32"))
    one.put({A: 1.0})
    other.put({A: 2.0})
    assert (one.get(A), other.get(A), other.get(B)) == (1.0, 2.0, None)
    one.put({B: 3.0})
    assert Store(tmp_path / "s", "bfloat16").get(B) == 3.0


WRITER = """
import sys
from pathlib import Path
from sos_deap.evaluation.store import Store
store = Store(Path(sys.argv[1]), "x")
for i in range(300):
    store.put({bytes([int(sys.argv[2]), i % 256, i // 256]): float(i), bytes([9, i % 256]): 0.5})
"""


def test_several_processes_write_one(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = [subprocess.Popen([*command, str(number)]) for number in range(3)]
    mine = Store(path, "x")
    for i in range(50):
        mine.put({bytes([7, i]): float(i)})
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert len(mine) == 3 * 300 + 256 + 50
    assert mine.get(bytes([2, 255, 0])) == 255.0  # written by another while this was open


def written(path: Path) -> list[bytes]:
    """The chromosomes that a store has, read with SQLite alone."""
    if not path.exists():
        return []
    with closing(sqlite3.connect(path)) as reader, suppress(sqlite3.Error):
        return [row[0] for row in reader.execute("SELECT chromosome FROM evaluations")]
    return []


def killed(path: Path, after: float) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER.replace("300", "10**7"), str(path), "1"]
    )
    while not written(path):
        time.sleep(0.01)
    time.sleep(after)
    writer.kill()
    writer.wait()


def test_a_writer_that_is_killed_leaves_whole_rows(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    for after in (0.05, 0.11, 0.2):
        killed(path, after)
        store = Store(path, "x")
        assert written(path)
        assert all(store.get(chromosome) is not None for chromosome in written(path))
        store.close()
    assert not list(tmp_path.glob("*.damaged*"))


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[: len(content) // 2 + 100],
    "page": lambda content: content[:4096] + bytes(4096) + content[8192:],
    "noise": lambda content: bytes(reversed(content)),
    "zeros": lambda content: bytes(len(content)),
    "text": lambda content: b"my thesis: a text that is longer than a header " * 10,
    "note": lambda content: b"a thesis",
}


@pytest.mark.parametrize(
    ("damage", "in_a_run"),
    [("cut", False), ("page", False), ("noise", True), ("zeros", True), ("text", True)],
)
def test_a_damaged_store_is_renamed(
    tmp_path: Path, damage: str, in_a_run: bool, caplog: Any
) -> None:
    path = tmp_path / "store.sqlite"
    if in_a_run:  # where only a store has this name
        (tmp_path / "journal.jsonl").touch()
    store = Store(path, "x")
    store.put({bytes([1, i % 256, i // 256]): float(i) for i in range(2000)})
    store.close()
    broken = BROKEN[damage](path.read_bytes())
    path.write_bytes(broken)
    with caplog.at_level(logging.WARNING):
        fresh = Store(path, "x")
    assert "is damaged" in caplog.text and "renamed to store.sqlite.damaged" in caplog.text
    assert (tmp_path / "store.sqlite.damaged").read_bytes() == broken
    assert len(fresh) == 0
    fresh.put({A: 1.0})
    fresh.close()
    path.write_bytes(broken)
    Store(path, "x")
    assert (tmp_path / "store.sqlite.damaged-1").exists()  # nothing is overwritten


@pytest.mark.parametrize("damage", ["noise", "zeros", "text", "note", "other"])
def test_a_file_that_never_was_a_store_is_unchanged(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "thesis"
    with sqlite3.connect(path) as mine:
        mine.executescript("CREATE TABLE letters (a); INSERT INTO letters VALUES (zeroblob(9999))")
    content = path.read_bytes()
    broken = content[:5000] if damage == "other" else BROKEN[damage](content)
    path.write_bytes(broken)
    with pytest.raises(InputError, match="of another kind.*: give another --store"):
        Store(path, "x")
    assert path.read_bytes() == broken and [p.name for p in tmp_path.iterdir()] == ["thesis"]


@pytest.mark.parametrize("end", ["", "-wal"])
def test_a_store_is_not_written_through_a_link(tmp_path: Path, end: str) -> None:
    (tmp_path / f"store.sqlite{end}").symlink_to(tmp_path / "bashrc")
    with pytest.raises(InputError, match="is a symbolic link"):
        Store(tmp_path / "store.sqlite", "x")
    assert not (tmp_path / "bashrc").exists()


def test_a_value_that_was_changed_is_not_trusted(tmp_path: Path, caplog: Any) -> None:
    path = tmp_path / "store.sqlite"
    store = Store(path, "x")
    store.put({A: 1.0, B: 2.0})
    with sqlite3.connect(path) as other:
        other.execute(
            "UPDATE evaluations SET metric = ? WHERE chromosome = ?", (struct.pack("<d", 0.0), A)
        )
    with caplog.at_level(logging.WARNING):
        assert store.get(A) is None
    assert "has a damaged row" in caplog.text
    assert store.get(B) == 2.0
    store.put({A: 1.0})
    assert store.get(A) == 1.0


def test_what_is_no_store_is_refused_and_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "mine.sqlite"
    with sqlite3.connect(path) as mine:
        mine.execute("CREATE TABLE letters (a)")
    with pytest.raises(InputError, match="is an SQLite file of another kind"):
        Store(path, "x")
    assert sqlite3.connect(path).execute("SELECT COUNT(*) FROM letters").fetchone() == (0,)
    with pytest.raises(InputError, match="cannot be opened"):
        Store(tmp_path, "x")  # a folder
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be opened"):
        Store(tmp_path / "file" / "store", "x")


def test_a_hit_costs_little(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.sqlite", "x")
    keys = [bytes([i % 2, i // 2 % 256, i // 512] * 48) for i in range(5000)]
    store.put(dict.fromkeys(keys, 1.0))
    started = time.perf_counter()
    assert all(store.get(key) == 1.0 for key in keys)
    assert (time.perf_counter() - started) / 5000 < 5 * 50e-6  # 50 us, on a busy machine five times


def test_it_may_be_used_from_other_threads(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.sqlite", "x")
    store.put({A: 1.5})
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(store.get, A).result() == 1.5
        pool.submit(store.put, {B: 2.5}).result()
    assert store.get(A) == 1.5 and store.get(B) == 2.5
    store.close()


def test_a_path_without_a_name_is_no_file() -> None:
    with pytest.raises(InputError, match="store . is a folder: give --store a file"):
        check_store(Path())
