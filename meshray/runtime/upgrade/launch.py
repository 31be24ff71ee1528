"""Start the version of meshray to which the pointer leads.

The installed version is started by systemd, the user or another program. If the pointer names another version, the
installed one replaces itself by that version's agent. It needs nothing of the new version for this.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from meshray.home import Home

#: Shows in the process list which installed version this agent replaced, so that it is not removed as unused.
_MARK = "--launched-by"


def follow_pointer(home: Home, environ: Mapping[str, str] = os.environ) -> None:
    """Replace this process by the agent of the version that should run; return if that is this one."""
    if not home.version_pointer.exists():
        return
    from meshray.runtime.upgrade import pointer as pointers

    pointer = pointers.read(home)
    if pointer is None or pointer.python == sys.executable:
        return
    if pointer.launcher != sys.executable or pointer.stamp != own_stamp():
        # The user installed another version since, and wants that one.
        pointers.discard(home)
        return
    if pointers.is_over(pointer, pointers.Moment.now()):
        pointers.give_back(home, "the node was restarted before the new version worked")
        pointer = pointers.read(home) or pointer
    for python in (pointer.python, pointer.previous):
        if python == sys.executable:
            return
        _replace_process(home, python, environ)


def launcher(home: Home) -> str:
    """Return the interpreter with which the agent of this node should be started."""
    from meshray.runtime.upgrade import pointer as pointers

    pointer = pointers.read(home)
    known = [pointer.launcher, pointer.python] if pointer is not None else []
    return next((python for python in known if os.access(python, os.X_OK)), sys.executable)


def _replace_process(home: Home, python: str, environ: Mapping[str, str]) -> None:
    """Become the agent of this interpreter; return if it does not exist."""
    folders = {"MESHRAY_HOME": str(home.state), "MESHRAY_RUN": str(home.run)}
    command = [python, "-I", "-m", "meshray.agent", _MARK, sys.executable]
    try:
        os.execve(python, command, {**environ, **folders})  # noqa: S606 - it replaces this process
    except OSError as error:
        sys.stderr.write(f"meshray: {python} cannot be started: {error.strerror}\n")


def own_stamp() -> str:
    """Return what identifies the files of this installation: it changes when they are installed again."""
    from meshray.installation.build import stamp

    return stamp()
