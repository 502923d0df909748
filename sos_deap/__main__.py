"""Command line ``python -m sos_deap COMMAND``, also installed as ``sos-deap``."""

from __future__ import annotations

import sys
from importlib import import_module

from sos_deap.errors import one_line, unknown

#: Commands: the module and function of each, and its purpose.
COMMANDS = {
    "run": ("sos_deap.run", "main", "search for what to remove, and prune a model"),
    "report": ("sos_deap.commands", "report", "compare runs, and write their pages again"),
    "prune": (
        "sos_deap.prune_command",
        "prune",
        "remove given heads and channels, without a search",
    ),
    "measure": ("sos_deap.commands", "measure", "measure time and size of a model, or compare two"),
    "eval": ("sos_deap.zero_shot", "evaluate", "evaluate a model, or two, on tasks of lm-eval"),
    "export": ("sos_deap.exporting", "export", "write a model as ONNX, GGUF or DeciLM"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit status."""
    command, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if command in ("-h", "--help"):
        print("usage: python -m sos_deap COMMAND [--help] ...\n\ncommands:")
        for name, (_, _, purpose) in COMMANDS.items():
            print(f"  {name:10}{purpose}")
        return 0
    if command not in COMMANDS:
        print(f"error: {one_line(str(unknown('command', command, COMMANDS)))}", file=sys.stderr)
        return 2
    module, function, _ = COMMANDS[command]
    status: int = getattr(import_module(module), function)(rest)
    return status


if __name__ == "__main__":
    sys.exit(main())
