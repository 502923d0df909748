"""Complete runs compared, from the files in their folders."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from sos_deap.errors import InputError, first_line
from sos_deap.report.tables import comparison_row

#: Exceptions that the content of a damaged file may cause, besides ``KeyError``.
_DAMAGE = (
    ArithmeticError,
    AttributeError,
    IndexError,
    RecursionError,
    StopIteration,
    TypeError,
    ValueError,
    csv.Error,
    TemplateError,
    MemoryError,
)


@contextmanager
def corrupt_files_as_input_error(folder: Path) -> Iterator[None]:
    """Convert exceptions from reading a run's files to :class:`InputError`.

    :param folder: the run folder, for the message.
    :raises InputError: if a file is missing, unreadable or damaged.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} is not the folder of a complete run: {Path(error.filename).name} is missing"
        ) from error
    except (IsADirectoryError, NotADirectoryError) as error:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}") from error
    except KeyError as error:
        raise InputError(f"a file of the run in {folder} is damaged: it lacks {error}") from error
    except _DAMAGE as error:
        raise InputError(
            f"a file of the run in {folder} is damaged: {first_line(error)}"
        ) from error


def comparison(folders: Iterable[Path]) -> str:
    """Return a table of complete runs, with a line for each metric of each run.

    :param folders: the run folders.
    :raises InputError: if a ``result.json`` is missing or damaged.
    """
    titles = "run", "algorithm", "heads removed", "metric", "dense", "pruned", "change", "seconds"
    rows: list[tuple[str, ...]] = [titles]
    for folder in folders:
        with corrupt_files_as_input_error(folder):
            result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
            rows += _compared(folder.name, result["dense"], result["best"], result["search"])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    shapes = [f"{side}{width}" for side, width in zip("<<><>>>>", widths, strict=True)]
    return "\n".join("  ".join(map(format, row, shapes)) for row in rows)


def _compared(run: str, dense: Any, best: Any, search: Any) -> Iterator[tuple[str, ...]]:
    """Yield the lines of a run, one for each metric."""
    removed = f"{dense['heads'] - best['heads']} of {dense['heads']}"
    for name, value in dense["heldout"].items():
        metric, *figures = comparison_row(f"{name}, held-out", value, best["heldout"][name])
        yield run, str(search["algorithm"]), removed, metric, *figures, f"{search['seconds']:.0f}"
