"""JSON files that a user names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sos_deap.errors import InputError, first_line


def read_json(path: Path, kind: str) -> Any:
    """Return the content of a JSON file.

    :param path: the file.
    :param kind: what the file is, such as ``"time table"``, for error messages.
    :raises InputError: if the file is missing or cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{kind} {path} does not exist") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{kind} {path} cannot be read: {first_line(error)}") from error
