"""Settings from files: YAML or JSON of the user's, and those that a run saved in its folder."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from sos_deap.errors import InputError, first_line, one_line, unknown
from sos_deap.files.checksummed_lines import read_settings
from sos_deap.flags import FORMER, as_flags
from sos_deap.safe_yaml import plain

_log = logging.getLogger(__name__)


def file_flags(path: Path, names: Collection[str]) -> list[str]:
    """Return the settings in a file as flags.

    :param path: a YAML or JSON file.
    :param names: names of all settings.
    :raises InputError: for a file that cannot be read, an unknown name, or a list as a value.
    """
    content = _checked(_content(path), path, names)
    for name in filter(FORMER.__contains__, content):
        raise InputError(f"{name} in {path}: --{name} {FORMER[name]}")
    return as_flags(content)


def saved_flags(folder: Path, names: Collection[str]) -> list[str]:
    """Return the settings of a run as flags.

    They are read from ``config.json``; if that is damaged, from the journal, with a warning.

    :param folder: the run folder.
    :param names: names of all settings.
    :raises InputError: if the folder holds no run, or one of an earlier version.
    """
    journal, path = folder / "journal.jsonl", folder / "config.json"
    written = read_settings(journal)
    if written is None and not path.is_file():
        raise InputError(
            f"run folder {folder} holds no run: give the folder of one, with its config.json"
        )
    try:
        content = _checked(_content(path), path, names)
    except InputError as error:
        if written is None:
            raise
        _log.warning("%s: the settings are taken from journal.jsonl", one_line(str(error)))
        content = _checked(written, journal, names)
    for name in filter(FORMER.__contains__, content):
        raise InputError(
            f"the run in {folder} is of an earlier version, whose flag --{name} {FORMER[name]}: "
            "start a new run without --resume"
        )
    return as_flags(content)


def check_resumed(
    folder: str, before: Sequence[Any], now: Sequence[Any], resumable: Collection[str]
) -> None:
    """Raise :class:`InputError` for settings with which a resumed run would be another run.

    :param folder: the run folder.
    :param before: settings of the run, as instances of dataclasses.
    :param now: the same with the flags given.
    :param resumable: names of the settings that may change.
    """
    for old, new in zip(before, now, strict=True):
        for field in fields(old):
            was, given = getattr(old, field.name), getattr(new, field.name)
            if was != given and field.name not in resumable:
                raise InputError(
                    f"the run in {folder} has {field.name} {was}, and {given} would make it "
                    f"another run: leave --{field.name} out, or start a new run without --resume"
                )


def _content(path: Path) -> dict[str, Any]:
    """Return the settings in a file by name, unchecked."""
    try:
        content = plain(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"configuration file {path} does not exist") from error
    except (OSError, ValueError) as error:
        raise InputError(
            f"configuration file {path} cannot be read: {first_line(error)}"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"configuration file {path} holds no settings: write lines of name: value")
    return content


def _checked(content: dict[str, Any], path: Path, names: Collection[str]) -> dict[str, Any]:
    """Return settings from a file, checked; their names may be those of former flags."""
    for key, value in content.items():
        if key not in names and key not in FORMER:
            where = "python -m sos_deap.run --help lists all"
            raise unknown(f"setting in {path}", str(key), names, where)
        if isinstance(value, dict | list | set | tuple | bytes) or "\0" in str(value):
            raise InputError(f"{key} in {path} is not a single value: write a number or a text")
    return content
