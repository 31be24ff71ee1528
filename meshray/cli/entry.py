"""Where the program begins: before anything is imported that takes time.

A Ctrl-C in the tenth of a second in which Python reads the program ends it in one line, as it does later. As the
first process of a container it looks after orphans.
"""

from __future__ import annotations

import os
import sys


def main() -> int:
    """Runs `meshray.cli.main`; returns the exit code."""
    try:
        if os.getpid() == 1:
            from meshray.runtime.pid1 import run_as_first

            run_as_first()
        from meshray.cli.main import main as program
    except KeyboardInterrupt:
        sys.stderr.write("meshray: interrupted\n")
        return 130
    return program()
