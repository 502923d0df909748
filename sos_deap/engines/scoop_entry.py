"""The program that SCOOP runs in its first process and imports in its workers.

Arguments: the launcher's address, its token, the number of workers on a host, ``module:function``,
and the arguments of the function.
"""

from __future__ import annotations

import os
import sys
import traceback
from importlib import import_module

from sos_deap.engines.lifeline import Lifeline
from sos_deap.engines.setup import begin


def hold(role: str) -> Lifeline:
    """Connect to the launcher and set up this process."""
    address, token, together = sys.argv[1:4]
    line = Lifeline(address, token, role)
    begin(line.number, int(together))
    return line


def main() -> None:
    """Run the program and send its exit status to the launcher, which SCOOP does not do."""
    line = hold("origin")
    target, *arguments = sys.argv[4:]
    module, _, function = target.partition(":")
    status = 1
    try:
        status = getattr(import_module(module), function)(arguments)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    line.ended(status)


if __name__ == "__main__":
    main()
elif __name__ == "SCOOP_WORKER":
    os.dup2(2, 1)  # only the program writes to standard output
    held = hold("worker")
