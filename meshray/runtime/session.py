"""The environment of the session in which meshray was typed, also behind sudo, which passes on nearly nothing of it.

sudo itself was started with the user's environment, and the kernel shows it: /proc/PID/environ of the sudo process
above this one (proc_pid_environ(5): as of its start, whatever it has removed since). What is read there goes to
programs of that user only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_PROC = Path("/proc")
#: What sudo sets for its target user, and the user's own value of which counts.
_SUDOS = frozenset({"HOME", "LOGNAME", "MAIL", "PATH", "SHELL", "TERM", "USER", "USERNAME"})
#: A sudo is a few processes above; this many are looked at.
_MOST_ANCESTORS = 16


def session_environment(environ: Mapping[str, str], proc: Path = _PROC, pid: int | None = None) -> dict[str, str]:
    """Return the environment of the user's session; this process' own where sudo is not above it.

    Args:
        environ: of this process. What was given to sudo by name (``sudo NAME=VALUE meshray …``) is in it, and counts.
        pid: of the process to begin with; None: this one.
    """
    sudo_uid = environ.get("SUDO_UID", "")
    if not sudo_uid.isdecimal():
        return dict(environ)
    current = pid or os.getpid()
    for _ in range(_MOST_ANCESTORS):
        folder = proc / str(current)
        name, parent = _name_and_parent(folder)
        if name == "sudo":
            # sudo may run a monitor below itself; both were started with the user's environment.
            given = {key: value for key, value in environ.items() if key not in _SUDOS}
            return {**_environ(folder), **given}
        if parent <= 1:
            break
        current = parent
    return dict(environ)


def _name_and_parent(folder: Path) -> tuple[str, int]:
    try:
        text = (folder / "stat").read_text(errors="replace")
    except OSError:
        return "", 0
    # The name may hold spaces and brackets.
    name, _, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()
    return name, int(fields[1]) if len(fields) > 1 else 0


def _environ(folder: Path) -> dict[str, str]:
    try:
        text = (folder / "environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    pairs = (item.partition("=") for item in text.split("\0"))
    return {name: value for name, equals, value in pairs if name and equals}
