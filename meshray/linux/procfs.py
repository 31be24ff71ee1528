"""Read processes from /proc (proc(5)). Files of a process that ended or may not be read count as empty.

>>> holder({"12345"})
'redis-server (pid 812)'
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path

_PROC = Path("/proc")
#: __SO_ACCEPTCON of linux/net.h.
_LISTENING = 0x10000
_PARENT = re.compile(rb"^PPid:\t(\d+)$", re.MULTILINE)


def pids() -> list[int]:
    """Return the ids of all processes of this PID namespace."""
    return [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdecimal()]


def read(pid: int, name: str) -> bytes:
    """Return the content of a file of the process, such as ``cmdline``; empty if it cannot be read."""
    try:
        return (_PROC / str(pid) / name).read_bytes()
    except OSError:
        return b""


def parent(pid: int) -> int:
    """Return the pid of the process's parent; 0 if it has none here, or has ended."""
    found = _PARENT.search(read(pid, "status"))
    return int(found[1]) if found else 0


def is_stopped(pid: int) -> bool:
    """Return whether a signal or a debugger has stopped the process (states T and t of proc_pid_stat(5))."""
    return read(pid, "stat").rpartition(b")")[2].split()[:1] in ([b"T"], [b"t"])


def program(pid: int) -> str:
    """Return the path of the program that the process runs; empty if it cannot be read."""
    return _link(_PROC / str(pid) / "exe")


def sockets(pid: int) -> set[str]:
    """Return the inodes of the sockets that the process holds, as in /proc/net/tcp."""
    try:
        targets = [_link(file) for file in (_PROC / str(pid) / "fd").iterdir()]
    except OSError:
        return set()
    return {target[8:-1] for target in targets if target.startswith("socket:[")}


def listens_at(pid: int, path: str) -> bool:
    """Return whether the process listens on a Unix socket that was bound to this path, even if the file is gone."""
    held = sockets(pid)
    for line in read(pid, "net/unix").decode(errors="replace").splitlines()[1:]:
        # Num RefCount Protocol Flags Type St Inode Path (proc_net_unix(5))
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and fields[7] == path and int(fields[3], 16) & _LISTENING and fields[6] in held:
            return True
    return False


def holder(inodes: Collection[str]) -> str:
    """Return name and id of a process that holds one of these sockets; empty if none can be found: only root sees the
    sockets of other users, and nobody sees those of the kernel."""
    for pid in pids() if inodes else ():
        if not sockets(pid).isdisjoint(inodes) and (name := read(pid, "comm").decode(errors="replace").strip()):
            return f"{name} (pid {pid})"
    return ""


def _link(path: Path) -> str:
    try:
        return os.readlink(path)  # noqa: PTH115 - it may be "socket:[inode]" instead of a path
    except OSError:
        return ""
