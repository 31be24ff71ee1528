"""Prints what of this installation others than root can change; nothing if there is no such part.

It runs in a separate process, because what it reads once would occupy the agent's memory for ever.
"""

from __future__ import annotations

import os
import sys

from meshray.runtime.privileged.install import weak_part


def main() -> int:
    """Print it, with low priority: the agent runs it while Ray starts."""
    os.nice(19)
    sys.stdout.write(str(weak_part() or ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
