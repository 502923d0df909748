"""The folder of a run: who may have it, when its run is complete, and how that goes on."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path
from typing import Any

from sos_deap.errors import InputError
from sos_deap.files import CONFIG, beside, free_folder, unwritable, write_json

#: The file that a run holds locked, and that it makes before any other.
JOURNAL = "journal.jsonl"

#: What a run writes at its end, in this order: with the last of them it is complete.
_END = ("result.json", "measured.json", "report.html")


def free_run_folder(folder: Path) -> Path:
    """Return an output folder's path, in which another run may have been killed before it began.

    :raises InputError: if there is anything else in it.
    """
    journal = folder / JOURNAL
    begun = journal.is_file() and journal.stat().st_size
    return free_folder(folder, () if begun else (JOURNAL, beside(folder / CONFIG).name))


def new_run_folder(model: str, algorithm: str, seed: int) -> Path:
    """A folder for a run that was given none, by what it does and when."""
    names = [re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.") for name in (model, algorithm)]
    return free_run_folder(
        Path("runs", "-".join([time.strftime("%Y%m%d-%H%M%S"), *names, str(seed)]))
    )


def stopped(folder: Path) -> Path:
    """The folder of a run that can go on; raises :class:`InputError` for one that is complete."""
    if all((folder / name).exists() for name in _END):
        raise InputError(
            f"the run in {folder} is complete: for another that takes what it computed, give "
            f"--store {folder / 'store.sqlite'}"
        )
    return folder


def claim(folder: Path, settings: dict[str, Any]) -> None:
    """Write the ``config.json`` of a run that begins, whose journal is locked and still empty.

    :raises InputError: if another run has it already, or that is not possible.
    """
    free_run_folder(folder)
    try:
        write_json(folder / CONFIG, settings)
    except OSError as error:
        raise unwritable(folder, error) from error


def begin_again(folder: Path, settings: dict[str, Any]) -> None:
    """Take out of a run's folder what its end had written, which came to nothing."""
    for name in _END:
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "pruned", ignore_errors=True)
    write_json(folder / CONFIG, settings)


def to_go_on(folder: Path) -> str:
    """What to tell whose run was stopped."""
    return f"to go on: python -m sos_deap.run --resume {folder}"
