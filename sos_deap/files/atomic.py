"""Atomic writing of files and folders.

Content is written under a unique temporary name, synced to the disk, and renamed. So neither a
killed process nor a power failure leaves an incomplete file, and nothing is written through a
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
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sos_deap.errors import InputError

#: The settings of a run; a folder with this file is a run folder.
CONFIG = "config.json"

_TEMPORARY = re.compile(r".+\.[0-9a-f]{16}\.part")
_LONGEST = 255  # most bytes in a file name, on most file systems


def free_folder(folder: Path, allowed: Callable[[Path], bool] = lambda _: False) -> Path:
    """Return the path of an output folder after checking that it is free.

    :param folder: a folder that does not exist, or that holds only allowed files.
    :param allowed: whether the folder may hold a file; default: none is allowed.
    :raises InputError: if the folder holds anything else, or is not a folder.
    """
    if folder.exists() and (
        not folder.is_dir() or not all(allowed(path) for path in folder.iterdir())
    ):
        run = (folder / CONFIG).is_file()
        what = "holds a run already" if run else "is not an empty folder"
        raise InputError(f"output folder {folder} {what}: give another --output_dir")
    return folder


def replaceable_folder(folder: Path) -> Path:
    """Return the path of an output folder after checking that :func:`whole_folder` can write it.

    :param folder: a folder that does not exist, or is empty.
    :raises InputError: if it is neither, a symbolic link, or a path without a name, such as ``.``.
    """
    if not folder.name:
        raise InputError(f"output folder {folder} has no name: give --output_dir a new folder")
    if folder.is_symlink():
        raise InputError(f"output folder {folder} is a symbolic link: give another --output_dir")
    return free_folder(folder)


def make_folder(folder: Path) -> None:
    """Make a folder, with its parents, if it does not exist.

    :raises InputError: if it cannot be made.
    """
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    for path in missing:
        sync_folder(path.parent)


def make_subfolder(folder: Path) -> None:
    """Make a folder inside a run folder, if it does not exist.

    :raises InputError: if it is a symbolic link, through which other files would be overwritten.
    """
    if folder.is_symlink():
        raise InputError(f"{folder} is a symbolic link: remove it or give another folder")
    folder.mkdir(exist_ok=True)


def make_empty_subfolder(folder: Path) -> None:
    """Make an empty folder inside a run folder, in place of an existing one.

    :raises InputError: if it is a symbolic link, through which other files would be deleted.
    """
    shutil.rmtree(folder, ignore_errors=True)  # does not follow or remove links
    make_subfolder(folder)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Fill a temporary folder, which is renamed at the end, or removed on an error.

    All files get the mode of new files, whatever mode a library made them with.

    :param folder: the final path: nothing, or an empty folder, whose mode is kept.
    :returns: the temporary folder.
    :raises InputError: if the final path is taken, or its parent is not writable.
    """
    part = temporary_path(replaceable_folder(folder))
    try:
        make_folder(folder.parent)
        part.mkdir()
        new_files = part.stat().st_mode & 0o666  # before the folder gets another mode
        if folder.exists():
            _set_mode(part, folder.stat().st_mode | stat.S_IRWXU)
    except OSError as error:
        raise unwritable(folder, error) from error
    try:
        yield part
        for path in (*part.rglob("*"), part):
            if path.is_dir():
                sync_folder(path)
            else:
                _set_mode(path, new_files)  # safetensors makes files that only the owner can read
                _sync_path(path, os.O_RDWR)
        os.replace(part, folder)
        sync_folder(folder.parent)
    except Exception as error:
        # Libraries written in Rust raise their own errors for a full disk.
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(folder)) from error
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def whole_file(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Fill a temporary file, which is renamed at the end, or removed on an error.

    :param path: the final path; an existing file is replaced, and its mode is kept.
    :param durable: whether to sync the file to the disk, which takes some milliseconds; without,
        a power failure may lose it.
    :returns: the temporary file, empty.
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
    """Write a CSV file atomically."""
    with whole_file(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically, lists of whole numbers on one line.

    :raises ValueError: for NaN and infinity, which JSON lacks.
    """
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    # Line breaks stand between numbers only: in strings they are escaped.
    text = re.sub(r"\[\n[\d,\s]+\]", lambda genes: re.sub(r"\s+", "", genes[0]), text)
    write_text(path, text)


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Write a text file in UTF-8 atomically; see :func:`whole_file` for ``durable``."""
    with whole_file(path, durable=durable) as part:
        part.write_text(text, encoding="utf-8")


def temporary_path(path: Path) -> Path:
    """Return a unique temporary path in the same folder as a file or folder."""
    ending = f".{secrets.token_hex(8)}.part"
    name = os.fsencode(path.name)[: _LONGEST - len(ending)]
    return path.with_name(os.fsdecode(name) + ending)


def is_temporary(path: Path) -> bool:
    """Whether a path has the form that :func:`temporary_path` returns."""
    return _TEMPORARY.fullmatch(path.name) is not None


def remove_temporary(folder: Path) -> None:
    """Remove temporary files and folders of killed processes.

    :param folder: a folder into which no other process is writing.
    """
    for path in filter(is_temporary, list(folder.iterdir())):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Sync the names in a folder to the disk, where the system supports it."""
    with suppress(OSError):  # Windows and some file systems do not support it
        _sync_path(folder, os.O_RDONLY)


def sync(descriptor: int) -> None:
    """Sync an open file to the disk, where its file system supports it."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def unwritable(folder: Path, error: OSError) -> InputError:
    """Return the error for an output folder that cannot be made or written to."""
    return InputError(f"cannot write to output folder {folder}: {error.strerror}")


def _new_file(path: Path) -> Path:
    """Make an empty temporary file with the mode of the file to replace, or of a new file."""
    part = temporary_path(path)
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    if path.is_file() and not path.is_symlink():
        _set_mode(part, path.stat().st_mode)
    return part


def _set_mode(path: Path, mode: int) -> None:
    with suppress(OSError):  # some file systems have no modes
        path.chmod(stat.S_IMODE(mode))


def _sync_path(path: Path, access: int) -> None:
    descriptor = os.open(path, access)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)
