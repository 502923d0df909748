"""Folders that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from sos_deap import InputError
from sos_deap.files import whole_folder


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "out"
    with whole_folder(place) as beside:
        (beside / "a").write_text("a")
        assert not place.exists()
    assert (place / "a").read_text() == "a"
    assert [path.name for path in place.parent.iterdir()] == ["out"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "out") as beside:  # noqa: PT012
        (beside / "a").write_text("a")
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "out.part").mkdir()
    (tmp_path / "out.part" / "half").write_text("h")
    with whole_folder(tmp_path / "out"):
        pass
    assert not list((tmp_path / "out").iterdir())


def test_an_empty_folder_may_be_there_but_nothing_in_it(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with whole_folder(tmp_path / "out") as beside:
        (beside / "a").write_text("a")
    with pytest.raises(InputError, match="not an empty folder"), whole_folder(tmp_path / "out"):
        pass
    (tmp_path / "file").write_text("f")
    with pytest.raises(InputError, match="cannot write"), whole_folder(tmp_path / "file" / "out"):
        pass
