"""English text that every machine has: Python's own documentation.

``builtin:pydoc`` consists of the reference manual's topics (``pydoc_data.topics``) and the
docstrings of the standard library, read from source with ``ast`` without running it. A document is
one topic or one module; a hash of its name decides its split, so a document keeps its split from
one Python version to the next.
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

# The order in which near-duplicates are resolved: a text in two splits stays in the first. The
# order also lets a search read a fifth of the library, since only train needs all three.
SPLITS = ("test", "calibration", "train")
_BUCKETS = {0: "test", 1: "calibration"}  # of ten; the other eight are train
_SKIPPED = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "_vendor"}
_MIN_CHARACTERS = 20_000


@dataclass(frozen=True)
class Document:
    """One topic or module.

    :param name: its name; that of a topic begins with ``topic``.
    :param texts: the docstrings of the module, or the one text of the topic.
    """

    name: str
    texts: tuple[str, ...]

    @property
    def text(self) -> str:
        """The texts with a blank line between them."""
        return "\n\n".join(self.texts)


class NearDuplicates:
    """Detects near-duplicates by the word n-grams of the texts seen before.

    :param words: length n of the n-grams.
    :param most_seen: largest share of a new text's n-grams that may have been seen.
    """

    def __init__(self, words: int = 8, most_seen: float = 0.3) -> None:
        self.words, self.most_seen = words, most_seen
        self._seen: set[tuple[str, ...]] = set()

    def is_new(self, text: str) -> bool:
        """Whether a text is no near-duplicate; if so, its n-grams count as seen afterwards."""
        words = re.findall(r"[a-z0-9]+", text.lower())
        n = min(self.words, len(words))
        grams = {tuple(words[i : i + n]) for i in range(len(words) - n + 1)} if n else set()
        if not grams or len(grams & self._seen) > self.most_seen * len(grams):
            return False
        self._seen |= grams
        return True


def split_of(name: str) -> str:
    """Return the split of a document: one in ten ``test``, one ``calibration``, else ``train``."""
    bucket = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()) % 10
    return _BUCKETS.get(bucket, "train")


@cache
def pydoc_documents(split: str) -> tuple[Document, ...]:
    """Return the documents of one split of ``builtin:pydoc``, sorted by name.

    Texts that are near-duplicates of earlier ones, in this split or in one before it in
    :data:`SPLITS`, are left out.

    :param split: ``"train"``, ``"calibration"`` or ``"test"``.
    :raises InputError: if this Python installation has too little documentation.
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
            f"expected at least {_MIN_CHARACTERS}: this Python lacks its sources or pydoc_data; "
            "give a text file with --dataset"
        )
    return documents


def deduplicated(
    raw: Iterable[tuple[str, list[str]]], filter_: NearDuplicates
) -> Iterator[Document]:
    """Yield documents from pairs (name, texts), without the texts that the filter rejects."""
    for name, texts in raw:
        kept = tuple(text for text in texts if filter_.is_new(text))
        if kept:
            yield Document(name, kept)


def modules(root: Path, package: str = "") -> Iterator[tuple[str, Path]]:
    """Yield the modules below a folder as (dotted name, source file), sorted, without tests."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(d for d in folders if d not in _SKIPPED and d.isidentifier())
        for file in sorted(f for f in files if f.endswith(".py")):
            path = Path(folder, file)
            parts = [p for p in (package, *path.relative_to(root).with_suffix("").parts) if p]
            yield ".".join(p for p in parts if p != "__init__") or package, path


def docstrings(path: Path) -> list[str]:
    """Return the docstrings of a source file in order; none if it cannot be parsed."""
    try:
        with warnings.catch_warnings():  # of invalid escapes in the sources
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
