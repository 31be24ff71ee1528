"""The packages of Ray's environment as requirements. `meshray env lock` records them if no file is given.

>>> freeze(installation.python, user, os.environ)
'aiohttp==3.14.5\\n…'
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from meshray.environment import build_commands
from meshray.environment.matched import find_uv
from meshray.errors import MeshrayError
from meshray.linux.capture import run_captured
from meshray.linux.user import User

#: Enough for a cold disk and hundreds of packages.
_TIMEOUT_S = 60


def freeze(python: Path, user: User, environ: Mapping[str, str]) -> str:
    """Return all packages of an interpreter's environment, in the form of a requirements file.

    Args:
        user: the user who runs uv or pip.

    Raises:
        MeshrayError: ``freeze_failed``, if neither uv nor pip answers.
    """
    user_variables = {"HOME": str(user.home), "USER": user.name, "LOGNAME": user.name}
    settings = build_commands.uv_environment(environ, user_variables, is_other=os.geteuid() != user.uid)
    commands = [[str(python), "-m", "pip", "--disable-pip-version-check", "freeze"]]
    with contextlib.suppress(MeshrayError):
        commands.insert(0, [find_uv(environ, user), "pip", "freeze", "--python", str(python)])
    cause = ""
    for command in commands:
        try:
            done = run_captured(command, env=settings, timeout_s=_TIMEOUT_S, user=user, errors="replace")
        except (OSError, subprocess.TimeoutExpired) as error:
            cause = str(error)
            continue
        if done.returncode == 0:
            return done.stdout
        cause = build_commands.main_lines(done.stderr)
    raise MeshrayError(
        "freeze_failed",
        f"neither uv nor pip can list the packages of {python}: {cause}",
        hint="meshray env lock --from requirements.txt records a file",
    )
