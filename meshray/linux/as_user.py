"""Small programs with a user's rights, for files in folders that are the user's own and may lead anywhere."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Sequence

from meshray.linux.trust import SYSTEM_FOLDERS
from meshray.linux.user import User

_log = logging.getLogger(__name__)
#: A home folder on a slow network.
_PATIENCE_S = 5.0


def run_as_user(user: User, command: Sequence[str], stdin: bytes = b"") -> subprocess.CompletedProcess[bytes] | None:
    """Run a program of the system's own folders as this user; None where it could not be run to its end in 5 s."""
    try:
        return subprocess.run(
            command,
            cwd="/",
            env={"PATH": SYSTEM_FOLDERS},
            input=stdin,
            capture_output=True,
            timeout=_PATIENCE_S,
            check=False,
            **user.identity,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        _log.warning("%s of %s: %s", command[0], user.name, error)
        return None
