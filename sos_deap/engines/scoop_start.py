"""SCOOP's launcher, told by which name other hosts know this one.

    python -m sos_deap.engines.scoop_start NAME [arguments of python -m scoop]

It would take a name that it does not know for another host's, and go there by ssh.
"""

from __future__ import annotations

import sys

from scoop import launcher, utils

if __name__ == "__main__":
    utils.localHostnames.append(sys.argv.pop(1))
    launcher.main()
