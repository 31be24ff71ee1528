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
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from meshray.raynode.command import GCS_PORT
from meshray.raynode.preflight import Listener, parse_listeners
from meshray.raynode.processes import Family
from meshray.runtime.process import ManagedProcess
from meshray.settings import Home

#: What was somebody else's is looked at again after this: it may have become a driver since.
AGAIN_S = 30.0
_ESTABLISHED = "01"
_PROC = Path("/proc")


@dataclass(frozen=True)
class Heard:
    """A listening TCP socket, and whether this node's Ray has it; None where no process can be found that has it."""

    port: int
    address: str
    of_ray: bool | None


def readable_address(kernel: str) -> str:
    """An address of /proc/net/tcp or tcp6 in its usual form: words in this machine's byte order (proc(5)). Pure.

    >>> readable_address("00000000")
    '0.0.0.0'
    """
    words = [int(kernel[start : start + 8], 16) for start in range(0, len(kernel), 8)]
    raw = b"".join(socket.htonl(word).to_bytes(4, "big") for word in words)
    if len(raw) == 4:
        return str(IPv4Address(raw))
    address = IPv6Address(raw)
    return f"::ffff:{address.ipv4_mapped}" if address.ipv4_mapped else str(address)


def parse_connections(table: str, ip: IPv4Address, port: int) -> Iterator[str]:
    """The inodes of the sockets in /proc/net/tcp or tcp6 that are connected to this remote end. Pure."""
    end = f"{socket.htonl(int(ip)):08X}:{port:04X}"
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9 and fields[3] == _ESTABLISHED and fields[2].endswith(end):
            yield fields[9]


class Listeners:
    """Looks again and again. Costs two files while nothing has changed, a look at all processes otherwise."""

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
        tables = [_read(_PROC / "net/tcp"), _read(_PROC / "net/tcp6")]
        listeners = [listener for table in tables for listener in parse_listeners(table)]
        inodes = {listener.inode for listener in listeners}
        aged = time.monotonic() > self._judged_at + AGAIN_S
        if aged or not inodes <= self._judged.keys():
            self._judge(listeners, tables)
        return [
            Heard(listener.port, readable_address(listener.address), self._judged.get(listener.inode))
            for listener in listeners
        ]

    def _judge(self, listeners: list[Listener], tables: list[str]) -> None:
        known = {listener.inode for listener in listeners if self._judged.get(listener.inode)}
        unknown = {listener.inode for listener in listeners} - known
        to_gcs = {inode for table in tables for inode in parse_connections(table, self._head_ip, GCS_PORT)}
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


def _read(path: Path) -> str:
    return _bytes(path).decode(errors="replace")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
