"""Print the first part of this installation that users other than root can change; nothing if there is none.

It runs in a separate process, so that the files that it reads do not stay in the agent's memory.
"""

from __future__ import annotations

import os
import sys

from meshray.runtime.privileged.install import first_untrusted_part


def main() -> int:
    """Print it, with low priority: the agent runs it while Ray starts."""
    os.nice(19)
    sys.stdout.write(str(first_untrusted_part() or ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
