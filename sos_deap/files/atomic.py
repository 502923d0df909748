"""Files and folders that appear whole or not at all, and never over what is there.

Everything is filled under a temporary name that no other file has, synced, and renamed. So neither
a process that is killed nor a power failure leaves half of a file, and nothing is written through a
symbolic link.
"""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sos_deap.errors import InputError

#: The settings in a run folder, by which it is known as one.
CONFIG = "config.json"

_TEMPORARY = re.compile(r".+\.[0-9a-f]{16}\.part")
_LONGEST = 255  # bytes of a name, on most file systems


def free_folder(folder: Path, ours: Callable[[Path], bool] = lambda _: False) -> Path:
    """Return an output folder's path.

    :param ours: whether a file that is there may be.
    :raises InputError: if there is anything else in it already.
    """
    if folder.exists() and (
        not folder.is_dir() or not all(ours(path) for path in folder.iterdir())
    ):
        run = (folder / CONFIG).is_file()
        what = "holds a run already" if run else "is not an empty folder"
        raise InputError(f"output folder {folder} {what}: give another --output_dir")
    return folder


def make_folder(folder: Path) -> None:
    """Make a folder where there is none; raises :class:`InputError` if that is not possible."""
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    for path in missing:
        sync_folder(path.parent)


def make_subfolder(folder: Path) -> None:
    """Make a folder in one of this program's, if it is not there.

    :raises InputError: if it is a symbolic link, through which other files would be overwritten.
    """
    if folder.is_symlink():
        raise InputError(f"{folder} is a symbolic link: remove it or give another folder")
    folder.mkdir(exist_ok=True)


def make_anew(folder: Path) -> None:
    """Make an empty folder in one of this program's, in place of what it left there before.

    :raises InputError: as :func:`make_subfolder` does.
    """
    shutil.rmtree(folder, ignore_errors=True)  # which leaves links alone
    make_subfolder(folder)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill beside its place; it is renamed there at the end, or removed on an error.

    :raises InputError: if there is anything at its place, or nothing can be written beside it.
    """
    free_folder(folder)
    if folder.is_symlink():
        raise InputError(f"output folder {folder} is a symbolic link: give another --output_dir")
    part = temporary_path(folder)
    try:
        make_folder(folder.parent)
        part.mkdir()
    except OSError as error:
        raise unwritable(folder, error) from error
    try:
        yield part
        for path in (*part.rglob("*"), part):
            if path.is_dir():
                sync_folder(path)
            else:
                _sync_path(path, os.O_RDWR)
        os.replace(part, folder)
        sync_folder(folder.parent)
    except Exception as error:
        # Libraries written in Rust have errors of their own for a full disk.
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(folder)) from error
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def whole_file(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """An empty file to fill beside its place; it is renamed there at the end, or removed.

    :param durable: whether it must survive a power failure, which takes some milliseconds.
    """
    part = _new_file(path)
    try:
        yield part
        if durable:
            _sync_path(part, os.O_RDWR)
        os.replace(part, path)
        if durable:
            sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def write_csv(path: Path, header: list[str], rows: Iterable[list[Any]]) -> None:
    """Write a table, so that it is whole or not there."""
    with whole_file(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def write_json(path: Path, content: Any) -> None:
    """The same for JSON; NaN and infinity, which JSON lacks, are an error."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    # Numbers on one line. A line break stands between them only, never in a string.
    text = re.sub(r"\[\n[\d,\s]+\]", lambda genes: re.sub(r"\s+", "", genes[0]), text)
    write_text(path, text)


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """The same for any text; see :func:`whole_file`."""
    with whole_file(path, durable=durable) as part:
        part.write_text(text, encoding="utf-8")


def temporary_path(path: Path) -> Path:
    """A name beside a file or folder that nothing else has."""
    ending = f".{secrets.token_hex(8)}.part"
    name = os.fsencode(path.name)[: _LONGEST - len(ending)]
    return path.with_name(os.fsdecode(name) + ending)


def is_temporary(path: Path) -> bool:
    """Whether a name is one that :func:`temporary_path` gives."""
    return _TEMPORARY.fullmatch(path.name) is not None


def remove_temporary(folder: Path) -> None:
    """Remove what killed processes left in a folder that no other process is writing into."""
    for path in filter(is_temporary, list(folder.iterdir())):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Let the names in a folder survive a power failure, where the system can."""
    with suppress(OSError):  # Windows cannot, nor can some file systems
        _sync_path(folder, os.O_RDONLY)


def sync(descriptor: int) -> None:
    """Let an open file survive a power failure, where its file system can."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def unwritable(folder: Path, error: OSError) -> InputError:
    """What to raise where an output folder cannot be made or filled."""
    return InputError(f"cannot write to output folder {folder}: {error.strerror}")


def _new_file(path: Path) -> Path:
    """Make an empty file beside a path; it has the mode that new files have."""
    part = temporary_path(path)
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    return part


def _sync_path(path: Path, access: int) -> None:
    descriptor = os.open(path, access)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)
