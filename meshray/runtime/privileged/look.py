"""Prints what of this installation others than root can change; nothing where there is nothing.

A process of its own: what it reads for a moment would stay in the agent's memory for good.
"""

from __future__ import annotations

import os
import sys

from meshray.runtime.privileged.install import weak_part


def main() -> int:
    """Prints it, and lets all else go first: the agent starts it while Ray starts."""
    os.nice(19)
    sys.stdout.write(str(weak_part() or ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
