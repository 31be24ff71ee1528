"""Run a program to its end and capture what it writes, independently of the caller's folder and terminal."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence

from meshray.linux.user import User


def run_captured(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    timeout_s: float,
    user: User | None = None,
    errors: str = "strict",
) -> subprocess.CompletedProcess[str]:
    """Return the exit code and the output of the program; an exit code other than 0 is not an error.

    Args:
        env: its whole environment.
        user: the user who runs it; None: the current one.
        errors: how bytes are read that are not text, as for `bytes.decode`.

    Raises:
        OSError: the program is missing or may not be executed.
        subprocess.TimeoutExpired: it did not end in time, and was killed.
    """
    done: subprocess.CompletedProcess[str] = subprocess.run(
        command,
        cwd="/",
        env=dict(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors=errors,
        timeout=timeout_s,
        check=False,
        **(user.identity if user is not None else {}),
    )
    return done
