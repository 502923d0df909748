"""The folder of a run: who may have it, when its run is complete, and how that goes on."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import time
import zlib
from pathlib import Path
from typing import Any

from sos_deap.errors import InputError
from sos_deap.files.atomic import (
    CONFIG,
    free_folder,
    is_temporary,
    remove_temporary,
    unwritable,
    write_json,
)
from sos_deap.files.checksummed_lines import read_settings

#: The file that a run holds locked, and that it makes before any other.
JOURNAL = "journal.jsonl"

#: The page of a run, also while its search goes on.
PAGE = "report.html"

#: In a page that is not the last one of its run.
UNFINISHED = "<!-- unfinished -->"

#: The checksums of what a run leaves, written last.
_COMPLETE = "complete.json"

#: What a run writes at its end.
_END = ("result.json", "measured.json", PAGE, _COMPLETE)

#: What is checked before a run is taken to be complete, without what a user may well change.
_CHECKED = (
    CONFIG,
    "result.json",
    "measured.json",
    "samples.json",
    "chromosome.json",
    "evaluations.csv",
    "logbook.csv",
    "pareto.csv",
    "pruned/config.json",
    "pruned/*.safetensors",
)


def free_run_folder(folder: Path) -> Path:
    """Return an output folder's path, in which another run may have been killed before it began.

    :raises InputError: if there is anything else in it.
    """
    journal = folder / JOURNAL
    begun = journal.is_file() and journal.stat().st_size

    def ours(path: Path) -> bool:
        empty = path.name == CONFIG and not path.stat().st_size  # after a power failure
        return not begun and (path.name == JOURNAL or is_temporary(path) or empty)

    return free_folder(folder, ours)


def new_run_folder(model: str, algorithm: str, seed: int) -> Path:
    """A folder for a run that was given none, by what it does and when."""
    names = [re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[-80:] for name in (model, algorithm)]
    return free_run_folder(
        Path("runs", "-".join([time.strftime("%Y%m%d-%H%M%S"), *names, str(seed)]))
    )


def stopped(folder: Path) -> Path:
    """The folder of a run that can go on; raises :class:`InputError` for one that is complete."""
    if _is_complete(folder):
        store = shlex.quote(str(folder / "store.sqlite"))
        raise InputError(
            f"the run in {folder} is complete: for another that takes what it computed, give "
            f"--store {store}"
        )
    return folder


def claim(folder: Path, settings: dict[str, Any]) -> None:
    """Write the ``config.json`` of a run that begins, whose journal is locked and still empty.

    :raises InputError: if another run has it already, or that is not possible.
    """
    free_run_folder(folder)
    try:
        remove_temporary(folder)
        write_json(folder / CONFIG, settings)
    except OSError as error:
        raise unwritable(folder, error) from error


def begin_again(folder: Path, settings: dict[str, Any]) -> None:
    """Take out of a run's folder what its end had written, which came to nothing."""
    for name in reversed(_END):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "pruned", ignore_errors=True)
    remove_temporary(folder)
    write_json(folder / CONFIG, settings)


def complete(folder: Path) -> None:
    """Write down that a run is complete, and the checksums of what it left."""
    write_json(folder / _COMPLETE, {"crc32": _checksums(folder)})


def to_go_on(folder: Path) -> str:
    """What to tell whose run was stopped."""
    return f"to resume: python -m sos_deap.run --resume {shlex.quote(str(folder))}"


def _is_complete(folder: Path) -> bool:
    """Whether all that a run leaves is there, whole and unchanged.

    The page alone may be another, which ``report`` writes.
    """
    try:
        page = (folder / PAGE).read_text(encoding="utf-8")
        if UNFINISHED in page or not page.rstrip().endswith("</html>"):
            return False
        if (folder / _COMPLETE).exists():
            written: Any = json.loads((folder / _COMPLETE).read_bytes())
            return bool(written == {"crc32": _checksums(folder)})
        return read_settings(folder / JOURNAL) is None and _was_complete(folder, page)
    except (OSError, ValueError, RecursionError):
        return False


def _was_complete(folder: Path, page: str) -> bool:
    """The same for runs of earlier versions, as far as can be told from what they left."""
    for name in ("result.json", "measured.json", "chromosome.json"):
        json.loads((folder / name).read_bytes())
    weights = [path.stat().st_size for path in (folder / "pruned").glob("*.safetensors")]
    return bool(weights) and all(weights) and 'http-equiv="refresh"' not in page


def _checksums(folder: Path) -> dict[str, str]:
    """The CRC-32 of each file that is checked, by its path in the folder."""
    return {
        path.relative_to(folder).as_posix(): f"{_crc32(path):08x}"
        for pattern in _CHECKED
        for path in sorted(folder.glob(pattern))
    }


def _crc32(path: Path) -> int:
    found = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found = zlib.crc32(block, found)
    return found
