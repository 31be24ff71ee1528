"""The entry point of the program, before any import that takes time.

A Ctrl-C while Python loads the program (a tenth of a second) ends it with one line, as it does later. As the first
process of a container it also reaps orphans.
"""

from __future__ import annotations

import os
import sys


def main() -> int:
    """Run `meshray.cli.main`; return the exit code."""
    try:
        if os.getpid() == 1:
            from meshray.runtime.pid1 import run_as_first

            run_as_first()
        from meshray.cli.main import main as program
    except KeyboardInterrupt:
        sys.stderr.write("meshray: interrupted\n")
        return 130
    return program()
