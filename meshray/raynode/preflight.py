"""What would make Ray start slowly or die, found out before it is started.

>>> require_free(RayPorts(), head=True)
MeshrayError: Ray's GCS needs TCP port 6379, which redis-server (pid 812) has
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from meshray.errors import MeshrayError
from meshray.linux.user import Person
from meshray.model.ray_ports import RayPorts, choice_hint
from meshray.raynode.versions import RayInstallation

#: Ray refuses work at 95 % full disks and writes its logs and spilled objects there, bytes.
_LEAST_DISK = 1024**3
#: Below this Ray's object store falls back to the disk, bytes.
_LEAST_SHARED_MEMORY = 256 * 1024**2
_LISTEN = "0A"
_WILDCARDS = frozenset({"00000000", "0" * 32})
_LOOPBACK = IPv4Address("127.0.0.1")


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


def conflict(
    ports: RayPorts, listeners: Iterable[Listener], *, head: bool, node_ip: IPv4Address | None
) -> Listener | None:
    """Return the first socket that has one of these ports where Ray would listen. Pure; arguments of `require_free`."""
    taken_by = dict.fromkeys(ports.overlay_ports(head=head), _WILDCARDS | _forms(node_ip))
    taken_by |= {port: taken_by[port] | _forms(_LOOPBACK) for port in ports.loopback_ports(head=head)}
    everywhere = ports.open_ports(head=head)
    for listener in listeners:
        if listener.port in everywhere or listener.address in taken_by.get(listener.port, ()):
            return listener
    return None


def require_free(ports: RayPorts, *, head: bool, node_ip: IPv4Address | None = None) -> None:
    """Check that no other program has a port that this Ray would bind. Worker ports do not count: Ray has many.

    Args:
        head: the node has the head's ports as well.
        node_ip: the node's overlay address; None: it has none yet, so nobody can listen there.

    Raises:
        MeshrayError: ``port_in_use``, naming the port and, where it can be found, the process that has it.
    """
    listeners = [item for name in ("tcp", "tcp6") for item in parse_listeners(_table(name))]
    found = conflict(ports, listeners, head=head, node_ip=node_ip)
    if found is None:
        return
    holder = _holder(found.inode)
    what, option = ports.purpose(found.port, head=head)
    end = f"end {holder}" if holder else f"ss -ltnp 'sport = :{found.port}' names it"
    other = choice_hint(option, ports, {listener.port for listener in listeners}) if option else ""
    raise MeshrayError(
        "port_in_use",
        f"Ray's {what} needs TCP port {found.port}, which {holder or 'another process'} has",
        hint=f"{end}; or choose another port at init or join: {other}" if other else end,
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


def _forms(ip: IPv4Address | None) -> frozenset[str]:
    """How /proc/net/tcp and tcp6 write this address; nothing without one."""
    return frozenset() if ip is None else frozenset({_kernel_form(ip), "0" * 16 + "FFFF0000" + _kernel_form(ip)})


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
