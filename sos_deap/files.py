"""Files and folders that appear whole or not at all, and never over what is there."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sos_deap.errors import InputError

#: The settings in a run folder, by which it is known as one.
CONFIG = "config.json"


def free_folder(folder: Path, besides: Collection[str] = ()) -> Path:
    """Return an output folder's path.

    :param besides: names of files that may be there.
    :raises InputError: if there is anything in it already.
    """
    if folder.exists() and (
        not folder.is_dir() or any(path.name not in besides for path in folder.iterdir())
    ):
        run = (folder / CONFIG).is_file()
        what = "holds a run already" if run else "is not an empty folder"
        raise InputError(f"output folder {folder} {what}: give another --output_dir")
    return folder


def make_folder(folder: Path) -> None:
    """Make a folder where there is none; raises :class:`InputError` if that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill beside its place; it is renamed there at the end, or removed on an error.

    :raises InputError: if there is anything at its place, or nothing can be written beside it.
    """
    free_folder(folder)
    part = beside(folder)
    shutil.rmtree(part, ignore_errors=True)  # left by a process that was killed
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    try:
        yield part
        os.replace(part, folder)
    except Exception as error:
        # Libraries written in Rust have errors of their own for a full disk.
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(folder)) from error
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_csv(path: Path, header: list[str], rows: Iterable[list[Any]]) -> None:
    """Write a table beside its place and rename it there, so that it is whole or not there."""
    part = beside(path)
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
    os.replace(part, path)


def write_json(path: Path, content: Any) -> None:
    """The same for JSON; NaN and infinity, which JSON lacks, are an error."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    # Numbers on one line. A line break stands between them only, never in a string.
    text = re.sub(r"\[\n[\d,\s]+\]", lambda genes: re.sub(r"\s+", "", genes[0]), text)
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """The same for any text."""
    part = beside(path)
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def beside(path: Path) -> Path:
    """Where a file or folder is written until it is whole."""
    return path.with_name(path.name + ".part")


def unwritable(folder: Path, error: OSError) -> InputError:
    """What to raise where an output folder cannot be made or filled."""
    return InputError(f"cannot write to output folder {folder}: {error.strerror}")
