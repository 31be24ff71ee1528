"""Find the first process of the node's container (`meshray.runtime.container.first`) among this process's ancestors.

It is pid 1 of its container. In a pod whose containers share processes, another process has that number.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from meshray.linux import procfs

#: The real and the effective user.
_USERS = re.compile(rb"^Uid:\t(\d+)\t(\d+)", re.MULTILINE)
_FIRST = b"meshray.runtime.container.first"
#: A chain of parents that is longer than that has a process in it whose number was reused.
_MOST = 64


def first_process() -> int | None:
    """Return the pid of the first process of this container; None if it was not made for a node.

    Only pid 1 and ancestors of the same user count: any user may start a process with such a command line, and sudo
    from it.
    """
    return next((pid for pid in (1, *_ancestors()) if _FIRST in procfs.read(pid, "cmdline").split(b"\0")), None)


def _ancestors() -> Iterator[int]:
    pid = os.getpid()
    for _ in range(_MOST):
        pid = procfs.parent(pid)
        if pid <= 1:
            return
        found = _USERS.search(procfs.read(pid, "status"))
        if found and {int(found[1]), int(found[2])} == {os.geteuid()}:
            yield pid
