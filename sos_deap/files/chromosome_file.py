"""Chromosome files: JSON with a chromosome and the model that it belongs to."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sos_deap.errors import InputError, first_line, unknown
from sos_deap.files.atomic import write_json
from sos_deap.files.json_file import read_json

#: What genes stand for in the files of earlier versions, and the name of it now.
UNITS = {"head": "heads", "group": "groups"}


def write_chromosome(
    path: Path,
    chromosome: list[int],
    *,
    model: str,
    fingerprint: str,
    genes: Mapping[str, Any],
) -> None:
    """Write a chromosome file.

    :param path: the file.
    :param chromosome: 0/1 genes; 1 keeps what the gene stands for.
    :param model: name of the model.
    :param fingerprint: of the model (see :func:`sos_deap.models.identity.fingerprint`).
    :param genes: what the genes stand for, as arguments of :func:`sos_deap.gene_map`, and
        ``quantize`` if the chromosome was found on quantised weights.
    """
    write_json(
        path, {"model": model, "fingerprint": fingerprint, **genes, "chromosome": chromosome}
    )


def read_chromosome(path: Path) -> dict[str, Any]:
    """Read a chromosome file, or a plain JSON list of genes.

    :returns: ``chromosome``, and ``model``, ``fingerprint``, ``genes``, ``channel_blocks``,
        ``channel_order`` and ``quantize`` if the file has them. A file of an earlier version has
        the ``unit`` head or group in place of ``genes``.
    :raises InputError: if the file is missing, unreadable or holds no chromosome.
    """
    content = read_json(path, "chromosome file")
    if isinstance(content, list):
        content = {"chromosome": content}
    genes = content.get("chromosome") if isinstance(content, dict) else None
    if not isinstance(genes, list) or any(type(gene) is not int for gene in genes):
        raise InputError(
            f"chromosome file {path} holds no chromosome: give the chromosome.json of a run, or a "
            "JSON list of 0 and 1"
        )
    for name in ("model", "fingerprint", "genes", "unit", "quantize"):
        if not isinstance(content.get(name, ""), str):
            raise InputError(f"chromosome file {path} is damaged: its {name} is not text")
    if not isinstance(content.get("channel_blocks", 1), int) or not _is_order(
        content.get("channel_order", [])
    ):
        raise InputError(f"chromosome file {path} is damaged: its channel_order has no numbers")
    if (unit := content.get("unit")) is not None:
        if unit not in UNITS:
            raise unknown("unit", unit, UNITS)
        content["genes"] = UNITS[unit]
    return dict(content)


def read_front(path: Path, row: int | None, most: float | None) -> dict[str, Any]:
    """Read a chromosome from the Pareto front of a run.

    :param path: ``pareto.csv`` in a run folder, beside ``chromosome.json``.
    :param row: which row, from 0; ``None`` to choose by ``most``.
    :param most: the largest sparsity; the row of the largest one up to it is read.
    :returns: as :func:`read_chromosome`.
    :raises InputError: if a file is missing or damaged, neither or both of ``row`` and ``most`` are
        given, and if there is no such row.
    """
    if path.name != "pareto.csv":  # other tables have dominated sub-models, too
        raise InputError(f"{path} is not a pareto.csv: give the pareto.csv of a run")
    if (row is None) == (most is None):
        raise InputError(f"{path} has several chromosomes: give --row or --sparsity, one of them")
    if most is not None and not 0 <= most <= 1:
        raise InputError(f"sparsity is {most}: give a share from 0 to 1")
    rows, run = _front(path), path.with_name("chromosome.json")
    if not run.exists():
        raise InputError(f"{path} needs the chromosome.json of its run in the same folder")
    if row is not None and not 0 <= row < len(rows):
        raise InputError(f"row is {row}: {path} has the rows 0 to {len(rows) - 1}")
    if most is not None:
        found = [i for i, (sparsity, _) in enumerate(rows) if sparsity <= most]
        if not found:
            least = min(sparsity for sparsity, _ in rows)
            raise InputError(
                f"sparsity is {most}: no sub-model of {path} has as little, give at least {least:g}"
            )
        row = max(found, key=lambda i: rows[i][0])
    assert row is not None
    return {**read_chromosome(run), "chromosome": rows[row][1]}


def _front(path: Path) -> list[tuple[float, list[int]]]:
    """Return sparsity and genes of each row of a ``pareto.csv``."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        found = [(float(row["sparsity"]), list(map(int, row["chromosome"]))) for row in rows]
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise InputError(
            f"cannot read {path} as a Pareto front ({first_line(error)}): give the pareto.csv of "
            "a run"
        ) from error
    if not found:
        raise InputError(f"{path} has no row: give the pareto.csv of a run")
    return found


def _is_order(order: Any) -> bool:
    return isinstance(order, list) and all(
        isinstance(channels, list) and all(type(channel) is int for channel in channels)
        for channels in order
    )
