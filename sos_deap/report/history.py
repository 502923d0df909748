"""The tables of a run or a search as pandas frames."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sos_deap.errors import InputError, unknown
from sos_deap.report.comparison import corrupt_files_as_input_error
from sos_deap.search.drive import Evolution

if TYPE_CHECKING:
    from pandas import DataFrame

#: Files of a run folder by the name of their table.
TABLES = {
    "generations": "logbook.csv",
    "evaluations": "evaluations.csv",
    "front": "pareto.csv",
    "genes": "genes.csv",
}


def history(run: str | os.PathLike[str] | Evolution, table: str = "generations") -> DataFrame:
    """Return a table of a run or a search as a pandas ``DataFrame``.

    The tables of a run:

    - ``"generations"``: one row per generation, with DEAP's statistics (the value ``max`` of the
      chapter ``fitness`` is the column ``fitness_max``), metric and sparsity of the best sub-model,
      and the counts of evaluations, cache hits, tokens and seconds so far.
    - ``"evaluations"``: one row per computed chromosome (a text of 0s and 1s), in the order of
      computation, with its metric and sparsity.
    - ``"front"``: those of them that no other one dominates, by sparsity.
    - ``"genes"``: one row per gene: its layer, kind and share of the budget, whether the winner
      keeps it, and the loss in fitness from its removal if the search measured it.

    :param run: the folder of a run, or what :func:`sos_deap.evolve` returns.
    :param table: one of :data:`TABLES`; of an :class:`~sos_deap.search.drive.Evolution` only
        ``"generations"``, without metric and counts, which its logbook lacks.
    :raises InputError: for an unknown table, and a folder without the table or with a damaged one.
    """
    if table not in TABLES:
        raise unknown("table", table, TABLES)
    if isinstance(run, Evolution):
        if table != "generations":
            raise InputError(
                f"a search in Python has no table {table}: give a run folder, or read "
                "evaluator.history()"
            )
        return run.frame()
    if not isinstance(run, str | os.PathLike):
        raise InputError(
            f"the run is a {type(run).__name__}: give a run folder, or what sos_deap.evolve returns"
        )
    return _read(Path(run), TABLES[table])


def _read(folder: Path, name: str) -> Any:
    import pandas

    with corrupt_files_as_input_error(folder), (folder / name).open(encoding="utf-8") as file:
        return pandas.read_csv(file, dtype={"chromosome": str})  # not a number
