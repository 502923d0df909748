"""Command-line flags from the fields of dataclasses, which :func:`setting` declares."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from sos_deap.cli import Parser
from sos_deap.errors import InputError, unknown
from sos_deap.tasks.settings import GROUPS

#: Flags of earlier versions, and their replacements.
FORMER = {
    "density": "is now --sparsity_of",
    "elite": "is now --finalists",
    "enough_sparsity": "is now --target_sparsity",
    "unit": "is now --genes, with heads for head and groups for group",
    "fidelity": "was removed together with racing: leave it out",
}

_TRUTHS = {
    **dict.fromkeys(("yes", "true", "t", "y", "1"), True),
    **dict.fromkeys(("no", "false", "f", "n", "0"), False),
}


def _boolean(text: str) -> bool:
    if text.lower() not in _TRUTHS:
        raise argparse.ArgumentTypeError(f"invalid bool value: {text!r}: give True or False")
    return _TRUTHS[text.lower()]


#: Types of flags by the annotation of their field.
_TYPES: dict[str, Any] = {"str": str, "int": int, "float": float, "bool": _boolean}


class FlagParser(Parser):
    """Parser of the fields of dataclasses as ``--name value`` flags.

    ``--help`` prints all flags in groups, and ``-h`` the common ones.

    :param kinds: dataclasses whose fields are made by :func:`sos_deap.tasks.settings.setting`.
    :param prog: name of the program.
    :param usage: its usage line, with ``%(prog)s`` in place of the name.
    :param description: text under the usage line.
    """

    def __init__(self, kinds: Sequence[type[Any]], prog: str, usage: str, description: str) -> None:
        super().__init__(prog, usage, description, allow_abbrev=False, add_help=False)
        self._kinds = kinds
        self.names = [field.name for kind in kinds for field in fields(kind)]
        self.add_argument("-h", action=_ShortHelp, nargs=0, help="print the most common flags")
        self.add_argument("--help", action="help", help="print this help")
        _add_flags(self, kinds, common=False)

    def read(self, arguments: Iterable[str]) -> list[Any]:
        """Return an instance of each dataclass with the values given.

        :raises InputError: for an unknown or former flag, or a value of the wrong type.
        """
        given = [_underscored(argument) for argument in arguments]
        for argument in given:
            name = argument.partition("=")[0].removeprefix("--")
            if argument.startswith("--") and name in FORMER:
                raise InputError(f"--{name} {FORMER[name]}")
        found, rest = self.parse_known_args(given)
        if rest:
            flag, known = rest[0].partition("=")[0], [f"--{name}" for name in self.names]
            raise unknown("flag", flag, known, "--help lists all")
        values: Mapping[str, Any] = vars(found)
        return [kind(**{f.name: values[f.name] for f in fields(kind)}) for kind in self._kinds]

    def short_help(self) -> str:
        """Return the help of the common flags."""
        end = "These are the common flags; --help prints all."
        short = Parser(self.prog, self.usage, self.description, end, add_help=False)
        _add_flags(short, self._kinds, common=True)
        return short.format_help()


class _ShortHelp(argparse.Action):
    def __call__(self, parser: Any, *_: Any) -> None:
        print(parser.short_help(), end="")
        parser.exit()


def _add_flags(parser: Parser, kinds: Iterable[type[Any]], common: bool) -> None:
    """Add the fields as flags to the parser, in groups, or only the common ones."""
    groups = {name: parser.add_argument_group(heading) for name, heading in GROUPS.items()}
    for field in (field for kind in kinds for field in fields(kind)):
        about = field.metadata
        if common and not about["common"]:
            continue
        kind = str(field.type).removesuffix(" | None")
        text = f"{about['help']} (default: {about['default']})"
        options: dict[str, Any] = {"nargs": "?", "const": True} if kind == "bool" else {}
        groups[about["group"]].add_argument(
            f"--{field.name}",
            type=_TYPES[kind],
            default=field.default,
            metavar=kind.upper(),
            help=text.replace("%", "%%"),
            **options,
        )


def _underscored(argument: str) -> str:
    """Return ``--max_sparsity=1`` for ``--max-sparsity=1``; other arguments are unchanged."""
    name, equals, value = argument.partition("=")
    if not re.fullmatch(r"--[a-z][a-z0-9_-]*", name):
        return argument
    return f"--{name[2:].replace('-', '_')}{equals}{value}"


def as_flags(values: Mapping[str, Any]) -> list[str]:
    """Return settings by name as flags; ``None`` stands for the default and is left out."""
    return [f"--{name}={value}" for name, value in values.items() if value is not None]


def changed_flags(*parts: Any) -> list[str]:
    """Return the flags of dataclass instances whose values differ from the defaults."""
    changed = (
        (field.name, getattr(part, field.name))
        for part in parts
        for field in fields(part)
        if getattr(part, field.name) != field.default
    )
    return [f"--{name}={value}" for name, value in changed]
