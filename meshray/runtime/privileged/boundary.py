"""Where it matters who can change what root runs: on the machine itself. A node's container is its own boundary."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

from meshray.linux.trust import SYSTEM_FOLDERS, is_root

_log = logging.getLogger(__name__)
_LOOK_S = 60.0
#: How Python begins its complaint.
_NOT_FOUND = "No module named"
#: What was found; one entry once it is known.
_found: list[str] = []
#: The first process of such a container (`meshray.runtime.container.first`).
_FIRST = b"meshray.runtime.container.first"


def weak_part_here() -> str:
    """Return what of this installation others than root can change; empty: nothing, or it does not matter here, or it
    cannot be told now.

    Each process has it looked at once: it takes a fifth of a second.
    """
    if not is_root() or is_container():
        return ""
    if not _found:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-m", "meshray.runtime.privileged.look"],
                cwd="/",
                env={"PATH": SYSTEM_FOLDERS},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_LOOK_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            _log.warning("the installation could not be looked at: %s", error)
            return ""
        if done.returncode == 0:
            _found.append(done.stdout)
        elif _NOT_FOUND in done.stderr:
            # An isolated interpreter does not find it: it lies in a user's own packages.
            _found.append(str(Path(__file__).parents[2]))
        else:
            _log.warning("the installation could not be looked at: %s", done.stderr.strip().rpartition("\n")[2])
            return ""
    return _found[0]


def is_container() -> bool:
    """Whether this process runs in a container that was made for a node."""
    try:
        return _FIRST in Path("/proc/1/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
