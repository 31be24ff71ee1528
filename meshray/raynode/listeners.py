"""Who listens on this machine's TCP ports: this node's Ray, or somebody else.

>>> look = Listeners(home, head_ip)
>>> [heard for heard in look() if heard.of_ray]
[Heard(port=6379, address='0.0.0.0', of_ray=True), …]

Whatever is Ray's is Ray's because of its process: a descendant of `ray start`, one with the environment that Ray and
`meshray run` give, or one that talks to the head's GCS (a driver that was started in some other way). The command
line would not do: Ray's workers write over it.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from meshray.raynode.command import GCS_PORT
from meshray.raynode.processes import Family
from meshray.raynode.sockets import ESTABLISHED, LISTEN, tcp_sockets
from meshray.runtime.process import ManagedProcess
from meshray.settings import Home

#: What was somebody else's is looked at again after this: it may have become a driver since.
AGAIN_S = 30.0
_PROC = Path("/proc")


@dataclass(frozen=True)
class Heard:
    """A listening TCP socket, and whether this node's Ray has it; None where no process can be found that has it."""

    port: int
    address: str
    of_ray: bool | None


class Listeners:
    """Looks again and again. Costs a millisecond while nothing has changed, a look at all processes otherwise."""

    def __init__(self, home: Home, head_ip: IPv4Address) -> None:
        self._process = ManagedProcess(home.pid_file("ray"))
        self._token = f"\0RAY_AUTH_TOKEN_PATH={home.ray_token}\0".encode()
        self._head_ip = head_ip
        self._family: Family | None = None
        #: By inode.
        self._judged: dict[str, bool | None] = {}
        self._judged_at = 0.0

    def __call__(self) -> list[Heard]:
        """All that listens now. Blocks for some milliseconds; needs root to see other people's processes."""
        sockets = tcp_sockets(LISTEN)
        inodes = {socket.inode for socket in sockets}
        aged = time.monotonic() > self._judged_at + AGAIN_S
        if aged or not inodes <= self._judged.keys():
            self._judge(inodes)
        return [Heard(socket.port, socket.address, self._judged.get(socket.inode)) for socket in sockets]

    def _judge(self, inodes: set[str]) -> None:
        known = {inode for inode in inodes if self._judged.get(inode)}
        unknown = inodes - known
        to_gcs = {found.inode for found in tcp_sockets(ESTABLISHED, GCS_PORT) if found.remote == str(self._head_ip)}
        family = self._members()
        owners, callers = _owners(unknown, to_gcs, first=family)

        def is_ray(pid: int) -> bool:
            return pid in family or pid in callers or self._token in b"\0" + _bytes(_PROC / str(pid) / "environ")

        self._judged = dict.fromkeys(known, True)
        for inode in unknown:
            pids = owners.get(inode, frozenset())
            self._judged[inode] = any(is_ray(pid) for pid in pids) if pids else None
        self._judged_at = time.monotonic()

    def _members(self) -> frozenset[int]:
        leader = self._process.pid
        if leader is None:
            self._family = None
            return frozenset()
        if self._family is None or self._family.leader != leader:
            self._family = Family(leader)
        return frozenset(process.pid for process in self._family.look())


def _owners(
    wanted: set[str], to_gcs: set[str], *, first: frozenset[int]
) -> tuple[dict[str, frozenset[int]], frozenset[int]]:
    """Who holds the wanted sockets, and who holds a connection to the GCS.

    Ends as soon as all the wanted ones are known to be held by one of ``first``.
    """
    found: dict[str, frozenset[int]] = {}
    callers: set[int] = set()
    others = (int(entry.name) for entry in os.scandir(_PROC) if entry.name.isdecimal())
    for pids in (sorted(first), (pid for pid in others if pid not in first)):
        for pid in pids:
            held = _sockets(pid)
            for inode in held & wanted:
                found[inode] = found.get(inode, frozenset()) | {pid}
            if held & to_gcs:
                callers.add(pid)
        if wanted <= found.keys():
            break
    return found, frozenset(callers)


def _sockets(pid: int) -> set[str]:
    held = set()
    try:
        for entry in os.scandir(_PROC / str(pid) / "fd"):
            target = _link(entry.path)
            if target.startswith("socket:["):
                held.add(target[8:-1])
    except OSError:
        pass  # it has ended
    return held


def _link(path: str) -> str:
    try:
        return os.readlink(path)  # noqa: PTH115 - it is no path but "socket:[inode]"
    except OSError:
        return ""


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
