"""Run folders: which are free, which are complete, and how a run is resumed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sos_deap.errors import InputError, first_line
from sos_deap.files.atomic import (
    CONFIG,
    free_folder,
    is_temporary,
    remove_temporary,
    unwritable,
    write_json,
)
from sos_deap.files.checksummed_lines import read_settings

#: The journal: the first file of a run, which the run keeps locked.
JOURNAL = "journal.jsonl"

#: The times of sub-models, if sparsity is a share of time: a resumed run uses the same.
TIME_TABLE = "time_table.json"

#: The order of the channels, if these are genes: a resumed run uses the same.
CHANNELS = "channels.json"

#: The page of a run; during the search, that of the search so far.
PAGE = "report.html"

#: Marker in the page of a run that has not ended.
UNFINISHED = "<!-- unfinished -->"

#: Checksums of the files of a complete run; written last.
_COMPLETE = "complete.json"

#: Files that a run writes at its end, in this order.
_END = ("result.json", "measured.json", PAGE, _COMPLETE)

#: Files whose checksums a complete run must match; not those that a user may well change.
_CHECKED = (
    CONFIG,
    TIME_TABLE,
    CHANNELS,
    "result.json",
    "measured.json",
    "samples.json",
    "chromosome.json",
    "evaluations.csv",
    "logbook.csv",
    "pareto.csv",
    "genes.csv",
    "pruned/config.json",
    "pruned/*.safetensors",
)


def chosen_folder(
    resume: str | None, output_dir: str | None, model: str, algorithm: str, seed: int
) -> Path:
    """Return the folder of a run: that of the run to resume, the given one, or a new name.

    :raises InputError: for a complete run to resume, and an output folder that is not empty.
    """
    if resume is not None:
        return resumable_folder(Path(resume))
    if output_dir is not None:
        return free_run_folder(Path(output_dir))
    return new_run_folder(model, algorithm, seed)


def free_run_folder(folder: Path) -> Path:
    """Return the path of an output folder after checking that a run may start in it.

    The folder is free if it does not exist, is empty, or holds only files of a run that was killed
    before it wrote its settings.

    :raises InputError: if it holds anything else.
    """
    journal = folder / JOURNAL
    begun = journal.is_file() and journal.stat().st_size

    def allowed(path: Path) -> bool:
        empty = path.name == CONFIG and not path.stat().st_size  # after a power failure
        return not begun and (path.name == JOURNAL or is_temporary(path) or empty)

    return free_folder(folder, allowed)


def new_run_folder(model: str, algorithm: str, seed: int) -> Path:
    """Return the default folder of a run: ``runs/TIME-MODEL-ALGORITHM-SEED``."""
    names = [re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[-80:] for name in (model, algorithm)]
    return free_run_folder(
        Path("runs", "-".join([time.strftime("%Y%m%d-%H%M%S"), *names, str(seed)]))
    )


def resumable_folder(folder: Path) -> Path:
    """Return a run folder after checking that its run can be resumed.

    :raises InputError: if the run is complete.
    """
    if _is_complete(folder):
        store = shlex.quote(str(folder / "store.sqlite"))
        raise InputError(
            f"the run in {folder} is complete: to reuse its evaluations in a new run, give "
            f"--store {store}"
        )
    return folder


def claim(folder: Path, settings: dict[str, Any]) -> None:
    """Write the ``config.json`` of a new run, whose journal is locked and still empty.

    :param folder: the run folder.
    :param settings: flags of the run by name.
    :raises InputError: if the folder holds another run, or is not writable.
    """
    free_run_folder(folder)
    try:
        remove_temporary(folder)
        write_json(folder / CONFIG, settings)
    except OSError as error:
        raise unwritable(folder, error) from error


def reset_run_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Prepare the folder of a stopped run for its resumption.

    Files that the run wrote at its end are removed, and ``config.json`` is written.

    :param folder: the run folder.
    :param settings: flags of the resumed run by name.
    """
    for name in reversed(_END):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "pruned", ignore_errors=True)
    remove_temporary(folder)
    write_json(folder / CONFIG, settings)


def write_channels(folder: Path, order: Sequence[Sequence[int]]) -> None:
    """Write the order of the channels of each feed-forward module into a run folder."""
    write_json(folder / CHANNELS, {"channel_order": [list(channels) for channels in order]})


def read_channels(folder: Path) -> list[list[int]] | None:
    """Read the order of the channels of each feed-forward module from a run folder.

    :returns: the order, which :func:`sos_deap.gene_map` checks; ``None`` if the run was stopped
        before it was written.
    :raises InputError: for a damaged file.
    """
    try:
        content = json.loads((folder / CHANNELS).read_text(encoding="utf-8"))
        return [[int(channel) for channel in channels] for channels in content["channel_order"]]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(
            f"{folder / CHANNELS} is damaged ({first_line(error)}): start a new run without "
            "--resume"
        ) from error


def complete(folder: Path) -> None:
    """Mark a run as complete by writing the checksums of its files."""
    write_json(folder / _COMPLETE, {"crc32": _checksums(folder)})


def resume_advice(folder: Path) -> str:
    """Return the command that resumes a stopped run, as part of a message."""
    return f"to resume: python -m sos_deap.run --resume {shlex.quote(str(folder))}"


def _is_complete(folder: Path) -> bool:
    """Whether all files of a complete run exist and are unchanged.

    The page may have changed: ``report`` rewrites it.
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
    """Whether a run of an earlier version, which wrote no checksums, seems complete."""
    for name in ("result.json", "measured.json", "chromosome.json"):
        json.loads((folder / name).read_bytes())
    weights = [path.stat().st_size for path in (folder / "pruned").glob("*.safetensors")]
    return bool(weights) and all(weights) and 'http-equiv="refresh"' not in page


def _checksums(folder: Path) -> dict[str, str]:
    """Return the CRC-32 of each file in :data:`_CHECKED`, by its path in the folder."""
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
