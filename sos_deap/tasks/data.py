"""Text to token sequences: from the Hub, a local file or folder, or built in.

Every source gives two parts that share no text: calibration, which the search sees, and held-out,
on which the result is reported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sos_deap.errors import InputError, first_line, unknown
from sos_deap.tasks.pydoc import pydoc_documents


@dataclass(frozen=True)
class Text:
    """One part of a data set.

    :param split: where it is from, for the report.
    :param documents: its texts, in order.
    :param separator: what stands between them; ``None`` for the tokenizer's end-of-text token.
    """

    split: str
    documents: Sequence[str]
    separator: str | None = None


@dataclass(frozen=True)
class Sequences:
    """Token sequences of one length, cut from a text without overlap.

    :param split: where they are from, for the report.
    :param input_ids: token numbers, (sequences, seqlen).
    """

    split: str
    input_ids: Tensor

    def describe(self) -> dict[str, Any]:
        """All that makes a perplexity on these tokens comparable."""
        count, seqlen = self.input_ids.shape
        digest = hashlib.sha256(self.input_ids.to(torch.int32).numpy().tobytes())
        return {
            "split": self.split,
            "sequences": count,
            "seqlen": seqlen,
            "tokens": count * seqlen,
            "token_hash": digest.hexdigest()[:16],
        }


def read_text(dataset: str) -> tuple[Text, Text]:
    """Read a data set.

    :param dataset: ``builtin:pydoc``; a ``.txt`` file; a folder or Hub name for
        ``datasets.load_dataset``, with the configuration after a colon
        (``Salesforce/wikitext:wikitext-2-raw-v1``).
    :returns: the calibration and the held-out part. A single file or split is cut in the middle.
    :raises InputError: for a data set that is missing, empty, or not text.
    """
    if dataset.startswith("builtin:"):
        if dataset not in BUILTIN:
            raise unknown("data set", dataset, BUILTIN)
        return BUILTIN[dataset]()
    path = Path(dataset).expanduser()
    if path.suffix or path.is_file():
        return _from_file(path)
    return _from_datasets(dataset)


def cut_sequences(
    text: Text, tokenizer: Any, seqlen: int, samples: int | None = None, seed: int = 0
) -> Sequences:
    """Tokenize a text, cut it into sequences, and draw some of them.

    This is the field's convention for language-model perplexity: concatenate, cut, no overlap.

    :param seqlen: tokens in a sequence.
    :param samples: how many sequences to draw without repetition, or all there are if fewer;
        ``None`` for all, in order.
    :param seed: for the draw; Python's and numpy's generators are not touched.
    :raises InputError: if the text has fewer tokens than one sequence.
    """
    separator = (tokenizer.eos_token or "\n\n") if text.separator is None else text.separator
    joined = separator.join(text.documents)
    ids = torch.tensor(tokenizer(joined, verbose=False)["input_ids"], dtype=torch.long)
    count = len(ids) // seqlen
    if not count:
        raise InputError(
            f"{text.split} has {len(ids)} tokens, fewer than one sequence of {seqlen}: "
            "give more text or a smaller --seqlen"
        )
    windows = ids[: count * seqlen].view(count, seqlen)
    if samples is not None:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        windows = windows[order[:samples]]
    return Sequences(text.split, windows)


def _pydoc() -> tuple[Text, Text]:
    calibration, heldout = (
        Text(f"builtin:pydoc {split}", [document.text for document in pydoc_documents(split)])
        for split in ("calibration", "test")
    )
    return calibration, heldout


#: Data sets that need no file, by the name the user gives.
BUILTIN: dict[str, Callable[[], tuple[Text, Text]]] = {"builtin:pydoc": _pydoc}


def _from_file(path: Path) -> tuple[Text, Text]:
    if not path.is_file():
        raise InputError(f"data set file {path} does not exist: give a .txt file, or builtin:pydoc")
    if path.suffix != ".txt":
        raise InputError(f"data set file {path} is a {path.suffix} file: give a .txt file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"data set file {path} is not UTF-8: {error.reason}") from error
    if not text.strip():
        raise InputError(f"data set file {path} is empty: give a file with text")
    # Cut between paragraphs where there are any, so that no sentence is in both parts.
    middle = len(text) // 2
    gap = next((i for mark in ("\n\n", "\n") if (i := text.find(mark, middle)) >= 0), middle)
    first, second = f"first half of {path.name}", f"second half of {path.name}"
    return Text(first, [text[:gap]], ""), Text(second, [text[gap:].lstrip("\n")], "")


def _from_datasets(dataset: str) -> tuple[Text, Text]:
    from datasets import load_dataset  # half a second that other data sets do not need

    name, _, configuration = dataset.partition(":")
    try:
        splits = load_dataset(name, configuration or None)
    except Exception as error:  # it raises its own kinds, the Hub client's and the file readers'
        raise InputError(f"cannot load the data set {dataset}: {first_line(error)}") from error
    texts = {split: _column(dataset, rows) for split, rows in splits.items()}
    heldout = next((split for split in ("test", "validation") if split in texts), None)
    calibration = next((split for split in ("train", "validation") if split in texts), None)
    if heldout and calibration and heldout != calibration:
        return (
            Text(f"{dataset} {calibration}", texts[calibration], "\n\n"),
            Text(f"{dataset} {heldout}", texts[heldout], "\n\n"),
        )
    split, rows = next(iter(texts.items()))
    half = len(rows) // 2
    return (
        Text(f"first half of {dataset} {split}", rows[:half], "\n\n"),
        Text(f"second half of {dataset} {split}", rows[half:], "\n\n"),
    )


def _column(dataset: str, rows: Any) -> list[str]:
    """The text column: the one named ``text``, or the only one."""
    columns = list(rows.column_names)
    name = "text" if "text" in columns else columns[0] if len(columns) == 1 else None
    texts = list(rows[name]) if name else []
    if not name or not all(isinstance(text, str) for text in texts):
        raise InputError(
            f"data set {dataset} has no text column: expected 'text', found {', '.join(columns)}"
        )
    return texts
