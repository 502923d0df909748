"""Complete runs compared, from the files in their folders: a sentence and table rows for each."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from sos_deap.errors import InputError, first_line
from sos_deap.report.formats import arrow, change, measurement
from sos_deap.report.headline import headline
from sos_deap.report.parts import by_kind, parts_of
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
    """Return a sentence for each complete run, and a table with a line for each metric of each run.

    :param folders: the run folders.
    :raises InputError: if a ``result.json`` is missing, or if it or a ``measured.json`` is damaged.
    """
    titles = (
        *("run", "algorithm", "removed", "parameters"),
        *("metric", "dense", "pruned", "change", "seconds"),
    )
    sentences: list[str] = []
    rows: list[tuple[str, ...]] = [titles]
    for folder in folders:
        with corrupt_files_as_input_error(folder):
            result, measured = read_result(folder)
            sentences.append(f"{folder.name}: {headline(result, measured, arrow(sys.stdout))}")
            rows += _compared(folder.name, result["dense"], result["best"], result["search"])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    shapes = [f"{side}{width}" for side, width in zip("<<>><>>>>", widths, strict=True)]
    table = ("  ".join(map(format, row, shapes)) for row in rows)
    return "\n".join([*sentences, "", *table])


def read_result(folder: Path) -> tuple[Any, Any]:
    """Return the content of a run's ``result.json``, and of its ``measured.json`` if it has one.

    :param folder: the run folder.
    """
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    measured = folder / "measured.json"
    return result, json.loads(measured.read_text(encoding="utf-8")) if measured.exists() else []


def _compared(run: str, dense: Any, best: Any, search: Any) -> Iterator[tuple[str, ...]]:
    """Yield the lines of a run, one for each metric."""
    counts = by_kind(parts_of(search, best["chromosome"]))
    removed, total = map(sum, zip(*counts.values(), strict=True))
    shared = (
        *(run, str(search["algorithm"]), f"{removed:,} of {total:,} {'+'.join(counts)}"),
        change(dense["parameters"], best["parameters"]),
    )
    for name, value in dense["heldout"].items():
        metric, *figures = comparison_row(f"{name}, held-out", value, best["heldout"][name])
        yield *shared, metric, *figures, measurement(search["seconds"])
