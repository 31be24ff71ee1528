"""Tells a raylet that is starting where its dashboard agent will listen, before that agent has started.

A raylet waits for a file in which its dashboard agent writes its HTTP port, also where the port was given. It registers
with the head only then, and aborts after 15 s, which nothing can change (`NodeManager::WaitForDashboardAgentPorts` of
Ray 2.60; https://github.com/ray-project/ray/issues/65983). The agent imports a hundred modules first: seconds on any
machine, more than 15 on a busy one or from a slow file system. meshray has given the port, so it can write the file.

    raylet ──waits for── SESSION/dashboard_agent_listen_port_NODE ◄──writes── meshray, or the agent when it is up

>>> tell([4711], 20105, user)
True
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from meshray.linux import procfs
from meshray.linux.as_user import run_as_user
from meshray.linux.user import User

_FILE = "dashboard_agent_listen_port_"
_NODE_ID = re.compile(r"[0-9a-f]{16,64}")
#: Whole or not at all, and never over the agent's own.
_WRITE = 'test -e "$1" || { printf %s "$2" > "$1.new" && mv -f "$1.new" "$1"; }'


def tell(raylets: Iterable[int], port: int, user: User) -> bool:
    """Write the file where these raylets look for it. Blocks for some milliseconds.

    Args:
        raylets: their pids.
        port: as it was given to `ray start`.

    Returns:
        Whether it is written, or this Ray needs none. False: there is no raylet yet, or it cannot be written yet.
    """
    for pid in raylets:
        options = _options(pid)
        session, node_id = options.get("session_dir", ""), options.get("node_id", "")
        if not session.startswith("/") or not _NODE_ID.fullmatch(node_id):
            return bool(options)
        # With the user's rights: the folder is the user's.
        done = run_as_user(user, ["sh", "-c", _WRITE, "sh", f"{session}/{_FILE}{node_id}", str(port)])
        return done is not None and done.returncode == 0
    return False


def _options(pid: int) -> dict[str, str]:
    arguments = procfs.read(pid, "cmdline").decode(errors="replace").split("\0")
    named = (argument[2:].partition("=") for argument in arguments if argument.startswith("--"))
    return {name: value for name, _, value in named}
