"""Write the port file of a dashboard agent for its starting raylet, before that agent has started.

A raylet waits for a file with the HTTP port of its dashboard agent, even if the port was given. Only then it registers
with the head. It aborts after 15 s, which no setting changes (`NodeManager::WaitForDashboardAgentPorts` of
Ray 2.60; https://github.com/ray-project/ray/issues/65983). The agent first imports a hundred modules, which
takes seconds on any machine, and more than 15 s on a busy one or from a slow file system. meshray knows the port, so it
can write the file.

    raylet ──waits for── SESSION/dashboard_agent_listen_port_NODE ◄──writes── meshray, or the agent when it is up

>>> write_port([4711], 20105, user)
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
#: Writes the file atomically, and never over the agent's own.
_WRITE = 'test -e "$1" || { printf %s "$2" > "$1.new" && mv -f "$1.new" "$1"; }'


def write_port(raylets: Iterable[int], port: int, user: User) -> bool:
    """Write the file for the first of these raylets. Blocks for some milliseconds.

    Args:
        raylets: the pids of raylets.
        port: the port of the option of `ray start`.

    Returns:
        Whether the file exists now, or this Ray needs none. False if no raylet runs yet, or the file cannot be written
        yet.
    """
    for pid in raylets:
        options = _options(pid)
        session, node_id = options.get("session_dir", ""), options.get("node_id", "")
        if not session.startswith("/") or not _NODE_ID.fullmatch(node_id):
            return bool(options)
        # The folder belongs to the user, so the user's rights are used.
        done = run_as_user(user, ["sh", "-c", _WRITE, "sh", f"{session}/{_FILE}{node_id}", str(port)])
        return done is not None and done.returncode == 0
    return False


def _options(pid: int) -> dict[str, str]:
    arguments = procfs.read(pid, "cmdline").decode(errors="replace").split("\0")
    named = (argument[2:].partition("=") for argument in arguments if argument.startswith("--"))
    return {name: value for name, _, value in named}
