"""Files and folders that appear whole or not at all, and never over what is there."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sos_deap.errors import InputError


def free_folder(folder: Path) -> Path:
    """Return an output folder's path.

    :raises InputError: if there is anything in it already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        run = (folder / "config.json").is_file()
        what = "holds a run already" if run else "is not an empty folder"
        raise InputError(f"output folder {folder} {what}: give another --output_dir")
    return folder


def claim(folder: Path, settings: dict[str, Any]) -> None:
    """Make the run folder and write its ``config.json``; of several runs only one can.

    :raises InputError: if that is not possible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "config.json").open("x", encoding="utf-8") as file:
            file.write(json.dumps(settings, indent=2) + "\n")
    except OSError as error:
        raise InputError(f"cannot write to output folder {folder}: {error.strerror}") from error


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill beside its place; it is renamed there at the end, or removed on an error.

    :raises InputError: if there is anything at its place, or nothing can be written beside it.
    """
    free_folder(folder)
    beside = folder.with_name(folder.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)  # left by a process that was killed
    try:
        beside.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"cannot write to output folder {folder}: {error.strerror}") from error
    try:
        yield beside
        os.replace(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_csv(path: Path, header: list[str], rows: Iterable[list[Any]]) -> None:
    """Write a table beside its place and rename it there, so that it is whole or not there."""
    beside = path.with_name(path.name + ".part")
    with beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
    os.replace(beside, path)


def write_json(path: Path, content: Any) -> None:
    """The same for JSON; NaN and infinity, which JSON lacks, are an error."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    # Numbers on one line. A line break stands between them only, never in a string.
    text = re.sub(r"\[\n[\d,\s]+\]", lambda genes: re.sub(r"\s+", "", genes[0]), text)
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """The same for text."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
