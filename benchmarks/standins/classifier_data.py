"""Data sets of the classifiers: rows of files, and the split of the tweets."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from sos_deap.errors import InputError

TWEETS = "tweet-topic-multilabel/all.jsonl"
OTHER_TWEETS = ("tweet-topic/train.jsonl", "tweet-topic/test.jsonl")
NOT_LABELS = ("id", "text", "topics")


def read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Read the rows of a .jsonl file, or of a .tsv file with a header.

    :raises InputError: if the file cannot be read, or a column is missing.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(_rows(file, path.suffix))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; give another --data") from error
    except ValueError as error:  # not JSON, or not UTF-8
        raise InputError(f"{path} is damaged: {error}") from error
    missing = [name for name in columns if not rows or name not in rows[0]]
    if missing:
        raise InputError(f"{path} has no column {missing[0]!r}: give another --data")
    return rows


def _rows(file: TextIO, suffix: str) -> Iterator[dict[str, Any]]:
    if suffix == ".jsonl":
        return (json.loads(line) for line in file)
    # Quotation marks in SST-2 are ordinary characters.
    return csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)


def split_tweets(data: Path) -> tuple[list[str], dict[str, list[dict[str, Any]]]]:
    """Read the tweets with several topics each.

    :returns: the names of the topics, and the rows (id, text and topics) by part.
    """
    tweets = read_rows(data / TWEETS, ("id", "text"))
    labels = [name for name in tweets[0] if name not in NOT_LABELS]
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    for tweet in tweets:
        rows[part_of(tweet["id"])].append({n: tweet[n] for n in ("id", "text", *labels)})
    return labels, rows


def part_of(id_: object) -> str:
    """Return the part of a tweet by a hash of its id, independently of the order of the file."""
    tenth = int(hashlib.sha256(str(id_).encode()).hexdigest(), 16) % 10
    return "train" if tenth < 7 else "validation" if tenth < 8 else "test"


def other_tweets(data: Path, leave_out: Sequence[str]) -> list[dict[str, Any]]:
    """Return the tweets with one topic each, without those whose text is in `leave_out`."""
    known = {plain(text) for text in leave_out}
    found = [row for file in OTHER_TWEETS for row in read_rows(data / file, ("text", "label_name"))]
    return [row for row in found if plain(row["text"]) not in known]


def plain(text: str) -> str:
    """Return a text's letters and digits, to find copies with other punctuation."""
    return "".join(filter(str.isalnum, text.casefold()))
