"""Whether users other than root can change what root runs. In a node's container that does not matter."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

from meshray.linux.capture import run_captured
from meshray.linux.trusted_files import SYSTEM_FOLDERS, is_root
from meshray.runtime.container.ancestry import first_process

_log = logging.getLogger(__name__)
_TIMEOUT_S = 60.0
#: The beginning of Python's error message.
_NOT_FOUND = "No module named"
#: The result; one entry once it is known.
_found: list[str] = []


def untrusted_part(*, examine: bool = True) -> str:
    """Return the part of this installation that users other than root can change; empty: none, irrelevant or unknown.

    Each process examines it once, which takes a fifth of a second.

    Args:
        examine: examine the installation if this was not done yet; otherwise the result is unknown.
    """
    if not is_root() or is_container():
        return ""
    if not _found and examine:
        try:
            command = [sys.executable, "-I", "-m", "meshray.runtime.privileged.self_check"]
            done = run_captured(command, env={"PATH": SYSTEM_FOLDERS}, timeout_s=_TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            _log.warning("the installation could not be examined: %s", error)
            return ""
        if done.returncode == 0:
            _found.append(done.stdout)
        elif _NOT_FOUND in done.stderr:
            # An isolated interpreter does not find meshray: it is in a user's own site-packages.
            _found.append(str(Path(__file__).parents[2]))
        else:
            _log.warning("the installation could not be examined: %s", done.stderr.strip().rpartition("\n")[2])
            return ""
    return _found[0] if _found else ""


def is_container() -> bool:
    """Return whether this process runs in a container that was created for a node."""
    return first_process() is not None
