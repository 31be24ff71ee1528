"""What would make Ray start slowly or die, found out before it is started.

>>> check_ports(plan)
MeshrayError: Ray's GCS needs port 6379, which redis-server (pid 812) has
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from meshray.errors import MeshrayError
from meshray.raynode import command
from meshray.raynode.command import RayPlan
from meshray.raynode.versions import RayInstallation
from meshray.runtime.person import Person

#: Ray refuses work at 95 % full disks and writes its logs and spilled objects there, bytes.
_LEAST_DISK = 1024**3
#: Below this Ray's object store falls back to the disk, bytes.
_LEAST_SHARED_MEMORY = 256 * 1024**2
_LISTEN = "0A"
_NAMES: Mapping[int, str] = {
    command.GCS_PORT: "GCS",
    command.DASHBOARD_PORT: "dashboard",
    command.CLIENT_PORT: "client server",
    command.NODE_MANAGER_PORT: "node manager",
    command.OBJECT_MANAGER_PORT: "object manager",
}
_WILDCARDS = frozenset({"00000000", "0" * 32})


@dataclass(frozen=True)
class Listener:
    """A listening TCP socket of this machine. ``address`` as in /proc/net/tcp: hexadecimal, host byte order."""

    address: str
    port: int
    inode: str


def parse_listeners(table: str) -> Iterator[Listener]:
    """The listening sockets of /proc/net/tcp or tcp6 (proc(5)). Pure."""
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9 and fields[3] == _LISTEN:
            address, _, port = fields[1].partition(":")
            yield Listener(address, int(port, 16), fields[9])


def conflict(plan: RayPlan, listeners: Iterator[Listener]) -> Listener | None:
    """The first socket that stands in this plan's way. Pure."""
    own = {*_WILDCARDS, _kernel_form(plan.node_ip), "0" * 16 + "FFFF0000" + _kernel_form(plan.node_ip)}
    for listener in listeners:
        if listener.port in plan.open_ports or (listener.port in plan.overlay_ports and listener.address in own):
            return listener
    return None


def check_ports(plan: RayPlan) -> None:
    """Raises MeshrayError ``port_in_use`` with the port and, where it can be told, the process that has it."""
    found = conflict(plan, (item for name in ("tcp", "tcp6") for item in parse_listeners(_table(name))))
    if found is None:
        return
    holder = _holder(found.inode)
    what = _NAMES.get(found.port, "agents")
    raise MeshrayError(
        "port_in_use",
        f"Ray's {what} needs TCP port {found.port}, which {holder or 'another process'} has",
        hint=f"end {holder}" if holder else f"ss -ltnp 'sport = :{found.port}' names it",
    )


def check_head(installation: RayInstallation) -> None:
    """Raises MeshrayError ``ray_incomplete`` where the dashboard could not start, without which a head is of no use."""
    if installation.missing:
        raise MeshrayError(
            "ray_incomplete",
            f"the head needs ray[default]: {', '.join(installation.missing)} missing in {installation.python}",
            hint=f"{installation.python} -m pip install 'ray[default]=={installation.versions.ray}'",
        )


def check_readable(path: Path, person: Person) -> None:
    """Raises MeshrayError ``not_readable`` naming what keeps this person from the file."""
    for part, needed in [(folder, stat.S_IXOTH) for folder in reversed(path.parents)] + [(path, stat.S_IROTH)]:
        if not person.may(part.stat(), needed):
            raise MeshrayError(
                "not_readable",
                f"Ray runs as {person.name}, who may not read {path}: {part} keeps others out",
                hint=f"chmod o+x {part}" if needed == stat.S_IXOTH else "meshray down, then meshray up",
            )


def host_problems() -> list[str]:
    """What makes Ray slow on this machine, in sentences. May block for as long as the resolver does."""
    problems = []
    name = socket.gethostname()
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        problems.append(
            f"this machine's own name, {name}, does not resolve: Ray starts tens of seconds slower; "
            f"add '127.0.1.1 {name}' to /etc/hosts"
        )
    for folder, least, effect in (
        ("/dev/shm", _LEAST_SHARED_MEMORY, "Ray's object store falls back to the disk"),  # noqa: S108
        ("/tmp", _LEAST_DISK, "Ray may stop taking work"),  # noqa: S108
    ):
        free = shutil.disk_usage(folder).free if Path(folder).is_dir() else 0
        if free < least:
            problems.append(f"{folder} has only {free // 1024**2} MB free: {effect}")
    return problems


def _kernel_form(ip: IPv4Address) -> str:
    """As /proc/net/tcp writes it: the four bytes as one number of this machine's byte order."""
    return f"{socket.htonl(int(ip)):08X}"


def _table(name: str) -> str:
    try:
        return Path("/proc/thread-self/net", name).read_text()
    except OSError:
        return ""


def _holder(inode: str) -> str:
    """'redis-server (pid 812)', or empty: only root sees the sockets of others."""
    wanted = f"socket:[{inode}]"
    for entry in Path("/proc").iterdir():
        if not re.fullmatch(r"\d+", entry.name):
            continue
        try:
            if any(_link(file) == wanted for file in (entry / "fd").iterdir()):
                return f"{(entry / 'comm').read_text().strip()} (pid {entry.name})"
        except OSError:
            continue
    return ""


def _link(file: Path) -> str:
    try:
        return os.readlink(file)  # noqa: PTH115 - it is no path but "socket:[inode]"
    except OSError:
        return ""
