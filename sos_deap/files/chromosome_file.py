"""Chromosome files: JSON with a chromosome and the model that it belongs to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sos_deap.errors import InputError, first_line
from sos_deap.files.atomic import write_json


def write_chromosome(
    path: Path, chromosome: list[int], *, model: str, fingerprint: str, unit: str
) -> None:
    """Write a chromosome file.

    :param path: the file.
    :param chromosome: 0/1 genes; 1 keeps the head or group.
    :param model: name of the model.
    :param fingerprint: of the model (see :func:`sos_deap.models.identity.fingerprint`).
    :param unit: what a gene stands for: ``"head"`` or ``"group"``.
    """
    content = {"model": model, "fingerprint": fingerprint, "unit": unit, "chromosome": chromosome}
    write_json(path, content)


def read_chromosome(path: Path) -> dict[str, Any]:
    """Read a chromosome file, or a plain JSON list of genes.

    :returns: ``chromosome``, and ``model``, ``fingerprint`` and ``unit`` if the file has them.
    :raises InputError: if the file is missing, unreadable or holds no chromosome.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"chromosome file {path} does not exist") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"chromosome file {path} cannot be read: {first_line(error)}") from error
    if isinstance(content, list):
        content = {"chromosome": content}
    genes = content.get("chromosome") if isinstance(content, dict) else None
    if not isinstance(genes, list) or any(type(gene) is not int for gene in genes):
        raise InputError(
            f"chromosome file {path} holds no chromosome: give the chromosome.json of a run, or a "
            "JSON list of 0 and 1"
        )
    for name in ("model", "fingerprint", "unit"):
        if not isinstance(content.get(name, ""), str):
            raise InputError(f"chromosome file {path} is damaged: its {name} is not text")
    return dict(content)
