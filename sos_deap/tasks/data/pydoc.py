"""English text that is on every machine: the documentation that comes with Python itself.

``builtin:pydoc`` is the reference manual's topics (``pydoc_data.topics``) and the docstrings of the
standard library, read from source with ``ast`` (no module of it is run for that). A document is one
topic or one module; a hash of its name decides its split, so a document keeps its split from one
Python version to the next.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

from sos_deap.errors import InputError

# The order in which near-duplicates are resolved: a text that stands in two splits stays in the
# first. It also lets a search read a fifth of the library, since only train needs all three.
SPLITS = ("test", "calibration", "train")
_BUCKETS = {0: "test", 1: "calibration"}  # of ten; the other eight are train
_SKIPPED = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "_vendor"}
_MIN_CHARACTERS = 20_000


@dataclass(frozen=True)
class Document:
    """One topic or module: its name and its texts, which are docstrings or the topic's one text."""

    name: str
    texts: tuple[str, ...]

    @property
    def text(self) -> str:
        """The texts, a blank line between them."""
        return "\n\n".join(self.texts)


class NearDuplicates:
    """Remembers the word 8-grams it has seen and turns down a text that brings too few new ones."""

    def __init__(self, words: int = 8, most_seen: float = 0.3) -> None:
        self.words, self.most_seen = words, most_seen
        self._seen: set[tuple[str, ...]] = set()

    def is_new(self, text: str) -> bool:
        """True, and the text is remembered, if at most ``most_seen`` of its 8-grams are known."""
        words = re.findall(r"[a-z0-9]+", text.lower())
        n = min(self.words, len(words))
        grams = {tuple(words[i : i + n]) for i in range(len(words) - n + 1)} if n else set()
        if not grams or len(grams & self._seen) > self.most_seen * len(grams):
            return False
        self._seen |= grams
        return True


def split_of(name: str) -> str:
    """The split of a document: one in ten ``"test"``, one ``"calibration"``, else ``"train"``."""
    bucket = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()) % 10
    return _BUCKETS.get(bucket, "train")


@cache
def pydoc_documents(split: str) -> tuple[Document, ...]:
    """The documents of one split of ``builtin:pydoc``, sorted by name.

    :param split: ``"train"``, ``"calibration"`` or ``"test"``.
    :returns: the documents; a docstring that nearly repeats an earlier one, or one of a split
        before this one in :data:`SPLITS`, is left out.
    :raises InputError: if this Python carries too little documentation.
    """
    filter_ = NearDuplicates()
    for earlier in SPLITS[: SPLITS.index(split)]:
        for document in pydoc_documents(earlier):
            for text in document.texts:
                filter_.is_new(text)
    documents = tuple(deduplicated(_raw_documents(split), filter_))
    characters = sum(len(d.text) for d in documents)
    if characters < _MIN_CHARACTERS:
        raise InputError(
            f"builtin:pydoc found {characters} characters of documentation for its {split} split, "
            f"expected at least {_MIN_CHARACTERS}: this Python came without its sources or "
            "pydoc_data; pass a text file with --dataset"
        )
    return documents


def deduplicated(
    raw: Iterable[tuple[str, list[str]]], filter_: NearDuplicates
) -> Iterator[Document]:
    """Documents from ``(name, texts)`` pairs, without the texts the filter turns down."""
    for name, texts in raw:
        kept = tuple(text for text in texts if filter_.is_new(text))
        if kept:
            yield Document(name, kept)


def modules(root: Path, package: str = "") -> Iterator[tuple[str, Path]]:
    """The modules below a folder as ``(dotted name, source file)``, sorted, tests left out."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(d for d in folders if d not in _SKIPPED and d.isidentifier())
        for file in sorted(f for f in files if f.endswith(".py")):
            path = Path(folder, file)
            parts = [p for p in (package, *path.relative_to(root).with_suffix("").parts) if p]
            yield ".".join(p for p in parts if p != "__init__") or package, path


def docstrings(path: Path) -> list[str]:
    """The docstrings of a source file in order; none where it cannot be parsed."""
    try:
        with warnings.catch_warnings():  # other people's invalid escapes are not our warnings
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (ast.get_docstring(n) for n in ast.walk(tree) if isinstance(n, kinds))
    return [text for text in found if text]


def _raw_documents(split: str) -> Iterator[tuple[str, list[str]]]:
    for topic, text in _topics():
        if split_of(f"topic {topic}") == split:
            yield f"topic {topic}", [text]
    for name, path in modules(Path(sysconfig.get_path("stdlib"))):
        if split_of(name) == split:
            yield name, docstrings(path)


def _topics() -> list[tuple[str, str]]:
    try:
        topics: dict[str, str] = import_module("pydoc_data.topics").topics
    except ImportError:  # some distributions leave pydoc_data out
        return []
    return sorted(topics.items())
