"""Find the owners of this machine's listening TCP ports: a Ray of this node, or another program.

>>> scan = Listeners(home, uid=1000, gcs=lambda: Endpoint("10.99.0.1", 6379))
>>> [found for found in scan() if found.of_ray]
[ListeningSocket(port=6379, address='0.0.0.0', of_ray=True), …]

A listening socket belongs to Ray because of the process that holds it:

- certainly: the process is a descendant of meshray's `ray start`, or the agent itself;
- by a claim: it runs Ray's gcs_server or raylet, descends from such a raylet, is connected to the GCS of a Ray of this
  node (a driver, the dashboard), or has meshray's environment for Ray.

In a pod, the programs of other containers are hidden. A socket without a visible program belongs to Ray there.

Any user can make such a claim, so it counts only for sockets whose holders all belong to the claiming user. The
environment and the mesh's GCS count only for Ray's user and root. The command line is not usable, because Ray's workers
overwrite it.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from meshray.home import Home
from meshray.linux import procfs
from meshray.linux.hidden_processes import hides_processes, shares_machines_network
from meshray.linux.pod import in_pod
from meshray.linux.process import ManagedProcess
from meshray.linux.sockets import ESTABLISHED, LISTEN, tcp_sockets
from meshray.model.address import Endpoint
from meshray.model.ray_ports import RayPorts
from meshray.raynode.processes import Family, parents

#: A socket of another program is checked again after this time, because the program may have become a driver, seconds.
RECHECK_S = 30.0
#: Ray's two binaries in its package (ray._private.services). After an upgrade the running one is "(deleted)".
_RAYLET = re.compile(r".*/ray/core/src/ray/raylet/raylet( \(deleted\))?")
_GCS_SERVER = re.compile(r".*/ray/core/src/ray/gcs/gcs_server( \(deleted\))?")
_GCS_ADDRESS = re.compile(rb"--gcs-address=([0-9.]{1,15}):(\d{1,5})\0")
_SERVER_IP = re.compile(rb"--node-ip-address=([0-9.]{1,15})\0")
_SERVER_PORT = re.compile(rb"--gcs_server_port=(\d{1,5})\0")
_LAST_PORT = 65535
_UIDS = re.compile(rb"^Uid:\t(\d+)\t(\d+)", re.MULTILINE)
_ROOT = 0


@dataclass(frozen=True)
class ListeningSocket:
    """A listening TCP socket, and whether it belongs to a Ray of this node; None if its process cannot be found.

    Attributes:
        only_ipv6: whether a socket on "::" refuses IPv4.
    """

    port: int
    address: str
    of_ray: bool | None
    only_ipv6: bool = False


def hidden_are_rays(environ: Mapping[str, str], *, external: bool) -> bool:
    """Return whether a socket without a visible program belongs to Ray: in a pod, whose containers run one node.

    Other programs of a pod are closed to outsiders then, too. Where the network is the machine's own (``hostNetwork``),
    hidden programs are the machine's, and stay as they are.

    Args:
        external: another program starts Ray on this node.
    """
    return (external or in_pod(environ)) and hides_processes() and not shares_machines_network()


@dataclass
class _Scan:
    """The result of one scan of all processes.

    Attributes:
        sockets: the wanted sockets of each process that has one, as inodes.
        raylets: the processes that run Ray's raylet.
        servers: the processes that run Ray's gcs_server.
    """

    sockets: dict[int, set[str]] = field(default_factory=dict)
    raylets: set[int] = field(default_factory=set)
    servers: set[int] = field(default_factory=set)

    def holders(self, inode: str) -> set[int]:
        return {pid for pid, inodes in self.sockets.items() if inode in inodes}


class Listeners:
    """Lists the listening sockets. A call takes a millisecond without changes, and scans all processes otherwise.

    Args:
        uid: the user who runs Ray.
        gcs: returns the endpoint of the head's GCS, or None without a head.
        hidden: a socket whose program cannot be found belongs to Ray: see `hidden_are_rays`.
    """

    def __init__(self, home: Home, uid: int, gcs: Callable[[], Endpoint | None], *, hidden: bool = False) -> None:
        self._hidden = True if hidden else None
        self._process = ManagedProcess(home.pid_file("ray"))
        self._token = f"\0RAY_AUTH_TOKEN_PATH={home.ray_token}\0".encode()
        self._trusted = frozenset((uid, _ROOT))
        self._gcs = gcs
        self._family: Family | None = None
        #: By inode.
        self._classified: dict[str, bool | None] = {}
        self._classified_at = 0.0

    def __call__(self) -> list[ListeningSocket]:
        """Return all listening sockets. Blocks for some milliseconds; needs root to see other users' processes."""
        sockets = tcp_sockets(LISTEN)
        inodes = {socket.inode for socket in sockets}
        aged = time.monotonic() > self._classified_at + RECHECK_S
        if aged or not inodes <= self._classified.keys():
            self._classify(inodes)
        return [
            ListeningSocket(socket.port, socket.address, self._classified.get(socket.inode), socket.only_ipv6)
            for socket in sockets
        ]

    def _classify(self, inodes: set[str]) -> None:
        known = {inode for inode in inodes if self._classified.get(inode)}
        unknown = inodes - known
        certain = self._members() | {os.getpid()}
        self._classified = dict.fromkeys(known, True)
        scan = _scan_sockets(unknown, certain)
        found = set().union(*scan.sockets.values())
        self._classified |= dict.fromkeys(found, True)
        if unknown - found:
            self._classify_claims(unknown - found)
        self._classified_at = time.monotonic()

    def _classify_claims(self, inodes: set[str]) -> None:
        gcs = self._gcs()
        port = _port_of(gcs)
        connections = {found.inode: (found.remote, port) for found in tcp_sockets(ESTABLISHED, port)}
        scan = _scan(inodes | connections.keys())
        claims = self._claims(scan, inodes, connections, gcs)
        for inode in inodes:
            holders = scan.holders(inode)
            users = {_uid(pid) for pid in holders}
            # A socket with holders of two users does not belong to the claiming user alone.
            self._classified[inode] = bool(holders & claims) and len(users) == 1 if holders else self._hidden

    def _claims(
        self, scan: _Scan, inodes: set[str], connections: dict[str, tuple[str, int]], gcs: Endpoint | None
    ) -> set[int]:
        """Return the processes with a wanted socket that claim to be Ray and are allowed to."""
        candidates = {pid for pid, sockets in scan.sockets.items() if sockets & inodes}
        callers: dict[tuple[str, int], frozenset[int]] = {}
        # The dashboard and the server of Ray Client listen before their node has a raylet.
        found = [(_gcs_of(raylet), _uid(raylet)) for raylet in scan.raylets]
        for address, uid in [*found, *((_own_address(server), _uid(server)) for server in scan.servers)]:
            if address is not None and uid is not None:
                callers[address] = callers.get(address, frozenset()) | {uid}
        if gcs is not None:
            callers[gcs.host, gcs.port] = callers.get((gcs.host, gcs.port), frozenset()) | self._trusted
        self._add_connections(scan, connections, {port for _, port in callers} - {_port_of(gcs)})
        descendants = _descendants(candidates, scan.raylets) if scan.raylets else set()

        def is_trusted(pid: int) -> bool:
            uid = _uid(pid)
            if uid is None:  # the process ended, or runs with the rights of two users
                return False
            if pid in scan.servers or pid in scan.raylets or pid in descendants:
                return True
            calls = {connections[inode] for inode in scan.sockets[pid] if inode in connections}
            if any(uid in callers.get(address, ()) for address in calls):
                return True
            return uid in self._trusted and self._token in b"\0" + procfs.read(pid, "environ")

        return {pid for pid in candidates if is_trusted(pid)}

    def _add_connections(self, scan: _Scan, connections: dict[str, tuple[str, int]], ports: Collection[int]) -> None:
        """Add connections to GCSs on other ports, which are known only after a raylet was found."""
        more = {found.inode: (found.remote, port) for port in ports for found in tcp_sockets(ESTABLISHED, port)}
        if more:
            connections.update(more)
            for pid in tuple(scan.sockets):
                scan.sockets[pid] |= procfs.sockets(pid) & more.keys()

    def _members(self) -> frozenset[int]:
        leader = self._process.pid
        if leader is None:
            self._family = None
            return frozenset()
        if self._family is None or self._family.leader != leader:
            self._family = Family(leader)
        return frozenset(process.pid for process in self._family.scan())


def _port_of(gcs: Endpoint | None) -> int:
    """Return the port of the GCS, or Ray's default for a mesh without a head."""
    return gcs.port if gcs is not None else RayPorts().gcs


def _scan_sockets(wanted: set[str], pids: Iterable[int]) -> _Scan:
    scan = _Scan()
    for pid in pids:
        sockets = procfs.sockets(pid) & wanted
        if sockets:
            scan.sockets[pid] = sockets
    return scan


def _scan(wanted: set[str]) -> _Scan:
    """Scan all processes."""
    pids = procfs.pids()
    scan = _scan_sockets(wanted, pids)
    for pid in pids:
        program = procfs.program(pid)
        if _RAYLET.fullmatch(program):
            scan.raylets.add(pid)
        elif _GCS_SERVER.fullmatch(program):
            scan.servers.add(pid)
    return scan


def _descendants(candidates: set[int], raylets: set[int]) -> set[int]:
    """Return the candidates that descend from a raylet of their own user."""
    parent_of = parents()

    def descends(pid: int) -> bool:
        uid, current, visited = _uid(pid), pid, set()
        while current in parent_of and current not in visited:
            visited.add(current)
            current = parent_of[current]
            if current in raylets and uid == _uid(current):
                return True
        return False

    return {pid for pid in candidates if descends(pid)}


def _gcs_of(raylet: int) -> tuple[str, int] | None:
    """Return the address of the GCS on this raylet's command line."""
    found = _GCS_ADDRESS.search(procfs.read(raylet, "cmdline"))
    return _address(found[1], found[2]) if found else None


def _own_address(server: int) -> tuple[str, int] | None:
    """Return the address at which others dial this gcs_server."""
    options = procfs.read(server, "cmdline")
    ip, port = _SERVER_IP.search(options), _SERVER_PORT.search(options)
    return _address(ip[1], port[1]) if ip and port else None


def _address(ip: bytes, port: bytes) -> tuple[str, int] | None:
    """Return the address; None if there is no such port: any user can start a program of this name with any words."""
    return (ip.decode(), int(port)) if int(port) <= _LAST_PORT else None


def _uid(pid: int) -> int | None:
    """Return the user of a process; None if its real and effective users differ, or it has ended."""
    found = _UIDS.search(procfs.read(pid, "status"))
    return int(found[1]) if found and found[1] == found[2] else None
