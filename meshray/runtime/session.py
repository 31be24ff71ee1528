"""The environment of the session in which the user typed meshray, even behind sudo, which removes most of it.

sudo itself was started with the user's environment. The kernel shows it in /proc/PID/environ of the sudo process above
this one, as of its start (proc_pid_environ(5)). It is passed to programs of that user only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_PROC = Path("/proc")
#: Variables that sudo sets for its target user; the user's own values count.
_SUDOS = frozenset({"HOME", "LOGNAME", "MAIL", "PATH", "SHELL", "TERM", "USER", "USERNAME"})
#: sudo is a few processes above; at most this many are examined.
_MOST_ANCESTORS = 16


def session_environment(environ: Mapping[str, str], proc: Path = _PROC, pid: int | None = None) -> dict[str, str]:
    """Return the environment of the user's session; that of this process if it was not started by sudo.

    Args:
        environ: of this process. It has the variables of ``sudo NAME=VALUE meshray …``, which take precedence.
        pid: the process to begin with; None: this one.
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
