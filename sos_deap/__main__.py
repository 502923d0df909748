"""The front door: `python -m sos_deap COMMAND`, also installed as `sos-deap`."""

from __future__ import annotations

import sys
from importlib import import_module

from sos_deap.errors import InputError, unknown

#: Commands: the module whose ``main(arguments)`` runs it, and what it does.
COMMANDS = {"run": ("sos_deap.run", "search for heads to remove, and prune a model")}


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit status."""
    command, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if command in ("-h", "--help"):
        print("usage: python -m sos_deap COMMAND [--help] ...\n\ncommands:")
        for name, (_, purpose) in COMMANDS.items():
            print(f"  {name:10}{purpose}")
        return 0
    try:
        if command not in COMMANDS:
            raise unknown("command", command, COMMANDS)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    status: int = import_module(COMMANDS[command][0]).main(rest)
    return status


if __name__ == "__main__":
    sys.exit(main())
