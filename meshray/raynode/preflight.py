"""Find causes of a slow or failing start of Ray before it is started.

>>> require_free(RayPorts(), head=True)
MeshrayError: Ray's GCS needs TCP port 6379, which redis-server (pid 812) has
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from ipaddress import IPv4Address
from pathlib import Path

from meshray.errors import MeshrayError
from meshray.linux import procfs
from meshray.linux.sockets import LISTEN, Socket, tcp_sockets
from meshray.linux.user import User
from meshray.model.ray_ports import RayPorts, choice_hint
from meshray.raynode.versions import RayInstallation

_WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - only compared
_LOOPBACK = "127.0.0.1"


def conflict(ports: RayPorts, listeners: Iterable[Socket], *, head: bool, node_ip: IPv4Address | None) -> Socket | None:
    """Return the first socket that has one of these ports where Ray would listen. Pure; arguments of `require_free`."""
    own = frozenset({str(node_ip)} if node_ip is not None else ())
    taken_by = dict.fromkeys(ports.overlay_ports(head=head), _WILDCARDS | own)
    taken_by |= {port: taken_by[port] | {_LOOPBACK} for port in ports.loopback_ports(head=head)}
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
    listeners = tcp_sockets(LISTEN)
    found = conflict(ports, listeners, head=head, node_ip=node_ip)
    if found is None:
        return
    holder = procfs.holder({found.inode})
    what, option = ports.purpose(found.port, head=head)
    end = f"end {holder}" if holder else f"ss -ltnp 'sport = :{found.port}' names it"
    other = choice_hint(option, ports, {listener.port for listener in listeners}) if option else ""
    raise MeshrayError(
        "port_in_use",
        f"Ray's {what} needs TCP port {found.port}, which {holder or 'another process'} has",
        hint=f"{end}; or choose another port at init or join: {other}" if other else end,
    )


def check_head(installation: RayInstallation) -> None:
    """Raise MeshrayError ``ray_incomplete`` if the dashboard could not start, without which a head is unusable."""
    if installation.missing:
        raise MeshrayError(
            "ray_incomplete",
            f"the head needs ray[default]: {', '.join(installation.missing)} missing in {installation.python}",
            hint=f"{installation.python} -m pip install 'ray[default]=={installation.versions.ray}'",
        )


def check_readable(path: Path, user: User) -> None:
    """Raise MeshrayError ``not_readable``, with the cause, if this user cannot read the file."""
    for part, needed in [(folder, stat.S_IXOTH) for folder in reversed(path.parents)] + [(path, stat.S_IROTH)]:
        if not user.has_access(part.stat(), needed):
            raise MeshrayError(
                "not_readable",
                f"Ray runs as {user.name}, who may not read {path}: {part} keeps others out",
                hint=f"chmod o+x {part}" if needed == stat.S_IXOTH else "meshray down, then meshray up",
            )
