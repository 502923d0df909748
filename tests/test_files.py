"""Atomic writing of files and folders."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sos_deap import InputError
from sos_deap.files.atomic import (
    make_empty_subfolder,
    make_subfolder,
    remove_temporary,
    temporary_path,
    whole_file,
    whole_folder,
    write_csv,
    write_json,
    write_text,
)


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "out"
    with whole_folder(place) as part:
        (part / "a").write_text("a")
        assert not place.exists()
    assert (place / "a").read_text() == "a"
    assert [path.name for path in place.parent.iterdir()] == ["out"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "out") as part:  # noqa: PT012
        (part / "a").write_text("a")
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def write_figure(path: Path) -> None:
    with whole_file(path) as part:
        part.write_bytes(b"a figure")


WRITERS = {
    "x.csv": lambda path: write_csv(path, ["a"], [[1]]),
    "x.json": lambda path: write_json(path, [1]),
    "x.txt": lambda path: write_text(path, "a"),
    "x.png": write_figure,
}


@pytest.mark.parametrize("name", WRITERS)
def test_files_of_others_are_unchanged(tmp_path: Path, name: str) -> None:
    """A file named like a temporary one, and the targets of links."""
    foreign, path = tmp_path / "thesis", tmp_path / "run" / name
    foreign.write_text("mine")
    path.parent.mkdir()
    (path.parent / f"{name}.part").symlink_to(foreign)
    path.symlink_to(foreign)
    WRITERS[name](path)
    assert foreign.read_text() == "mine" and not path.is_symlink()
    assert path.stat().st_mode == foreign.stat().st_mode  # that of any new file
    assert sorted(p.name for p in path.parent.iterdir()) == [name, f"{name}.part"]


def test_folders_of_others_are_unchanged(tmp_path: Path) -> None:
    foreign, place = tmp_path / "out.part", tmp_path / "out"
    foreign.mkdir()
    (foreign / "thesis").write_text("mine")
    with whole_folder(place):
        pass
    assert (foreign / "thesis").read_text() == "mine"
    (tmp_path / "link").symlink_to(foreign)
    for make in (make_subfolder, make_empty_subfolder):
        with pytest.raises(InputError, match="link is a symbolic link"):
            make(tmp_path / "link")
    assert (foreign / "thesis").read_text() == "mine"
    place.rmdir()
    place.symlink_to(tmp_path / "empty")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="output folder . has no name"), whole_folder(Path()):
        pytest.fail("it is written")
    with pytest.raises(InputError, match="out is a symbolic link"), whole_folder(place):
        pass


def test_only_temporary_names_are_removed(tmp_path: Path) -> None:
    for name in ("x.part", "x.0123456789abcdef.part.txt", "x.0123.part"):
        (tmp_path / name).touch()
    before = set(tmp_path.iterdir())
    temporary_path(tmp_path / "x").touch()
    temporary_path(tmp_path / "y").mkdir()
    remove_temporary(tmp_path)
    assert set(tmp_path.iterdir()) == before


def test_the_longest_names_can_be_written(tmp_path: Path) -> None:
    for name in ("a" * 255, "\u00e4" * 127):
        write_text(tmp_path / name, "a")
        assert (tmp_path / name).read_text() == "a"


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Record the syncs and renames, in order."""
    found: list[tuple[str, str]] = []
    sync, rename = os.fsync, os.replace

    def syncing(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").resolve()
        found.append(("sync", re.sub(r"\.[0-9a-f]{16}\.part", ".part", path.name)))
        assert path.is_dir() or path.stat().st_size
        sync(descriptor)

    def renaming(old: Path, new: Path) -> None:
        found.append(("rename", new.name))
        rename(old, new)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "replace", renaming)
    return found


on_linux = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads /proc")


@on_linux
@pytest.mark.parametrize("name", WRITERS)
def test_a_file_is_on_the_disk_before_its_name_is(
    tmp_path: Path, name: str, events: list[tuple[str, str]]
) -> None:
    WRITERS[name](tmp_path / name)
    assert events == [("sync", f"{name}.part"), ("rename", name), ("sync", tmp_path.name)]


@on_linux
def test_a_folder_is_on_the_disk_before_its_name_is(
    tmp_path: Path, events: list[tuple[str, str]]
) -> None:
    with whole_folder(tmp_path / "deep" / "out") as part:
        assert events == [("sync", tmp_path.name)]
        events.clear()
        (part / "in").mkdir()
        (part / "in" / "a").write_text("a")
    renamed = events.index(("rename", "out"))
    assert {("sync", name) for name in ("a", "in", "out.part")} == set(events[:renamed])
    assert events[renamed + 1 :] == [("sync", "deep")]


def test_the_output_folder_may_exist_if_it_is_empty(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with whole_folder(tmp_path / "out") as part:
        (part / "a").write_text("a")
    with pytest.raises(InputError, match="not an empty folder"), whole_folder(tmp_path / "out"):
        pass
    (tmp_path / "file").write_text("f")
    with pytest.raises(InputError, match="cannot write"), whole_folder(tmp_path / "file" / "out"):
        pass


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.fixture(params=[0o022, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("name", WRITERS)
def test_files_get_the_mode_of_new_files_or_keep_their_own(
    tmp_path: Path, umask: int, name: str
) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    assert mode(path) == 0o666 & ~umask
    for other in (0o600, 0o640, 0o666):
        path.chmod(other)
        WRITERS[name](path)
        assert mode(path) == other


def test_files_in_a_folder_get_the_mode_of_new_files(tmp_path: Path, umask: int) -> None:
    """Whatever mode they were made with: safetensors lets only the owner read its files."""
    (tmp_path / "private").mkdir(mode=0o700)
    for name, expected in (("new", 0o777 & ~umask), ("private", 0o700)):
        with whole_folder(tmp_path / name) as part:
            (part / "in").mkdir()
            for file in (part / "a", part / "in" / "a"):
                file.touch(mode=0o600)
        assert mode(tmp_path / name) == expected
        assert mode(tmp_path / name / "in") == 0o777 & ~umask
        for file in (tmp_path / name / "a", tmp_path / name / "in" / "a"):
            assert mode(file) == 0o666 & ~umask
