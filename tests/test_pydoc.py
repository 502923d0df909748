from __future__ import annotations

import re
import sysconfig
from pathlib import Path

import pytest

from sos_deap import InputError
from sos_deap.tasks.data import pydoc


def test_splits_share_no_document_and_no_text() -> None:
    names: dict[str, str] = {}
    texts: dict[str, str] = {}
    for split in pydoc.SPLITS:
        for document in pydoc.pydoc_documents(split):
            assert names.setdefault(document.name, split) == split
            assert pydoc.split_of(document.name) == split
            for text in document.texts:
                key = re.sub(r"\W+", " ", text.lower()).strip()
                assert key not in texts, f"{document.name} repeats a text of {texts[key]}"
                texts[key] = document.name


def test_held_out_text_hardly_occurs_in_calibration() -> None:
    """Count the word 8-grams of the test split that are also in calibration."""

    def grams(split: str) -> set[str]:
        found: set[str] = set()
        for document in pydoc.pydoc_documents(split):
            for text in document.texts:
                words = re.findall(r"[a-z0-9]+", text.lower())
                found.update(" ".join(words[i : i + 8]) for i in range(len(words) - 7))
        return found

    test = grams("test")
    assert len(test & grams("calibration")) < 0.01 * len(test)


def test_sizes() -> None:
    characters = {s: sum(len(d.text) for d in pydoc.pydoc_documents(s)) for s in pydoc.SPLITS}
    assert min(characters.values()) > 100_000
    assert characters["train"] > 0.6 * sum(characters.values())


def test_the_split_of_a_name_never_changes() -> None:
    """Fixed values: a model trained today must not have its test text as training text later."""
    splits = [pydoc.split_of(name) for name in ("turtle", "typing", "json", "topic if")]
    assert splits == ["test", "calibration", "train", "train"]


def test_near_duplicates_count_once() -> None:
    filter_ = pydoc.NearDuplicates()
    text = "Return the number of items in a container that was given by the caller of this method."
    assert filter_.is_new(text)
    assert not filter_.is_new(text.upper().replace(" ", "\n"))
    assert not filter_.is_new(text + " Really.")
    assert filter_.is_new("Raise an error that names what was given and what was expected instead.")
    assert filter_.is_new("Short text.")
    assert not filter_.is_new("Short, text!")
    assert not filter_.is_new("--- !!! ---")


def test_docstrings_are_read_without_running_the_source(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text(
        '"""Top."""\nraise SystemExit\nclass A:\n    "In A."\n    def f(self): "In f."\n'
    )
    assert pydoc.docstrings(source) == ["Top.", "In A.", "In f."]
    source.write_text("def broken(:")
    assert pydoc.docstrings(source) == []
    assert pydoc.docstrings(tmp_path / "missing.py") == []


def test_too_little_text_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(pydoc, "_topics", list)
    with pytest.raises(InputError, match="found 0 characters of documentation for its test split"):
        pydoc.pydoc_documents.__wrapped__("test")
