"""Run small programs with a user's rights, for files in the user's folders, which may contain links to anywhere."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Sequence

from meshray.linux.trusted_files import SYSTEM_FOLDERS
from meshray.linux.user import User

_log = logging.getLogger(__name__)
#: Enough for a home folder on a slow network.
_TIMEOUT_S = 5.0


def run_as_user(user: User, command: Sequence[str], stdin: bytes = b"") -> subprocess.CompletedProcess[bytes] | None:
    """Run a program of the system's folders as this user; return None if it fails to start or exceeds 5 s."""
    try:
        return subprocess.run(
            command,
            cwd="/",
            env={"PATH": SYSTEM_FOLDERS},
            input=stdin,
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=False,
            **user.identity,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        _log.warning("%s of %s: %s", command[0], user.name, error)
        return None
