"""The target of a proxied path (pure): node and port, or the reason for a refusal.

/ray/…                     the dashboard of the head's Ray
/serve/gpu-1/8350/…        a port on which Ray's processes of gpu-1 listen
/serve/any/8350/…          that port of any node whose Ray processes listen on it
/tcp/gpu-1/22              any TCP port of gpu-1's overlay address (`meshray.web.tunnel`)
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from ipaddress import IPv4Address
from urllib.parse import unquote

from meshray.errors import MeshrayError
from meshray.model.meshmap import MeshMap
from meshray.model.node import COORDINATOR, HEAD, STATIC, Node
from meshray.protocol import tunnel
from meshray.protocol.fields import HIGHEST_PORT

#: In place of a node's name: every node whose Ray processes listen on the port.
ANY = "any"
#: The number of nodes to try for `ANY`.
MAX_TRIED = 3
#: Ray's own ports that take commands. The dashboard is reached at `/ray/`, the others not at all.
_COMMANDS = (
    "gcs",
    "dashboard",
    "ray_client_server",
    "node_manager",
    "object_manager",
    "runtime_env_agent",
    "dashboard_agent_grpc",
    "dashboard_agent_listen",
)
#: The paths of Ray's dashboard that only read: whole paths, and beginnings of paths. With GET Ray can also profile a
#: worker or end an actor, so a viewer who may only read gets no other path, nor new ones of later Ray versions.
_RAY_EXACT = frozenset({"", "favicon.ico", "timezone", "usage_stats_enabled", "cluster_id", "nodes", "events"})
_RAY_BELOW = ("static/", "speedscope-", "nodes/", "logical/actors", "api/")
_RAY_REFUSED = ("api/authenticate", "api/v0/delay", "api/launch_", "api/kill_")

#: Returns the ports on which Ray's processes of the node with this id listen; None if the node reports none.
Listens = Callable[[str], "Collection[int] | None"]


class ProxyError(MeshrayError):
    """A request that a proxy cannot pass on.

    Attributes:
        status: of the HTTP answer.
    """

    def __init__(self, status: int, code: str, message: str, *, hint: str = "") -> None:
        super().__init__(code, message, hint=hint)
        self.status = status


@dataclass(frozen=True)
class Target:
    """One program on the overlay.

    Attributes:
        node: the name of its node, for messages.
    """

    ip: IPv4Address
    port: int
    node: str

    def __str__(self) -> str:
        return f"{self.node} ({self.ip}), port {self.port}"


def ray_target(mesh_map: MeshMap) -> Target:
    """Return the dashboard of the head's Ray. Raises ProxyError ``no_ray_head`` or ``node_offline``."""
    head = mesh_map.head
    if head is None:
        raise ProxyError(404, "no_ray_head", "This mesh has no node that runs a Ray head.", hint="meshray status")
    _require_online(head)
    return Target(head.ip, mesh_map.ports_of().dashboard, head.name)


def require_readable(path: str) -> None:
    """Raise ProxyError ``level_too_low`` unless this path of the dashboard only reads.

    Args:
        path: what follows `/ray/`, percent-encoded and without the query.
    """
    plain = unquote(path)
    is_plain = not {".", ".."}.intersection(plain.split("/")) and "\\" not in plain
    below = plain.startswith(_RAY_BELOW) and not plain.startswith(_RAY_REFUSED)
    if not is_plain or not (plain in _RAY_EXACT or below):
        raise ProxyError(
            # Not 403: Ray's dashboard would ask for a token.
            405,
            "level_too_low",
            "This part of Ray's dashboard acts on the cluster, and your pass only reads.",
            hint="on the head: meshray web invite NAME --use",
        )


def serve_targets(mesh_map: MeshMap, listens: Listens, name: str, port: str) -> list[Target]:
    """Return the programs to which `/serve/NODE/PORT/` leads; a later one only if an earlier one does not answer.

    Raises:
        ProxyError: ``bad_port``, ``node_unknown``, ``node_offline``, ``ports_unknown``, ``port_not_rays``,
            ``port_of_ray_itself``.
    """
    number = parse_port(port)
    if name.lower() != ANY:
        node = find_online(mesh_map, name)
        _require_rays(mesh_map, node, number, listens)
        return [Target(node.ip, number, node.name)]
    found = [
        node
        for node in mesh_map.nodes.values()
        if node.online and number in (listens(node.id) or ()) and not _is_rays_own(mesh_map, node, number)
    ]
    if not found:
        raise ProxyError(
            404,
            "port_not_rays",
            f"No node's Ray processes listen on port {number}. A new program appears here within a few seconds.",
            hint="meshray status",
        )
    # The coordinator's own node needs no network.
    found.sort(key=lambda node: (COORDINATOR not in node.roles, HEAD not in node.roles, node.ip))
    return [Target(node.ip, number, node.name) for node in found[:MAX_TRIED]]


def tunnel_target(mesh_map: MeshMap, name: str, port: str) -> Target:
    """Return any TCP port of a node's overlay address.

    Args:
        name: a node's name or address; ``head``: the node that runs the Ray head, unless a node has that name.

    Raises:
        ProxyError: ``bad_port``, ``node_unknown``, ``node_offline``, ``no_ray_head``.
    """
    number = parse_port(port)
    if name.lower() == tunnel.HEAD and mesh_map.find(tunnel.HEAD) is None:
        head = ray_target(mesh_map)
        return Target(head.ip, number, head.node)
    node = find_online(mesh_map, name)
    return Target(node.ip, number, node.name)


def parse_port(text: str) -> int:
    """Return the port. Raises ProxyError ``bad_port``."""
    if text.isascii() and text.isdecimal() and len(text) <= len(str(HIGHEST_PORT)):
        number = int(text)
        if 0 < number <= HIGHEST_PORT and str(number) == text:
            return number
    raise ProxyError(404, "bad_port", f"{text[:20]!r} is not a TCP port, a number from 1 to {HIGHEST_PORT}.")


def find_online(mesh_map: MeshMap, name: str) -> Node:
    """Return the node with this name or overlay address. Raises ProxyError ``node_unknown`` or ``node_offline``."""
    node = mesh_map.find(name)
    if node is None:
        raise ProxyError(
            404,
            "node_unknown",
            f"This mesh has no node {name[:63]!r}. Nodes and their names are on the page's first table.",
            hint="meshray status",
        )
    _require_online(node)
    return node


def _require_online(node: Node) -> None:
    # A device without an agent never reports itself.
    if not node.online and STATIC not in node.roles:
        because = "was taken down (meshray down)" if node.down else "is not connected to the coordinator"
        raise ProxyError(503, "node_offline", f"{node.name} {because}.", hint=f"on {node.name}: meshray up")


def _require_rays(mesh_map: MeshMap, node: Node, port: int, listens: Listens) -> None:
    if _is_rays_own(mesh_map, node, port):
        raise ProxyError(
            403,
            "port_of_ray_itself",
            f"Port {port} of {node.name} controls Ray and is not proxied. Ray's dashboard is at /ray/.",
        )
    known = listens(node.id)
    if known is None:
        text = (
            "is a device without a meshray agent"
            if STATIC in node.roles
            else "does not report the ports of its programs: its meshray may be of an earlier version"
        )
        raise ProxyError(
            404,
            "ports_unknown",
            f"{node.name} {text}.",
            hint=f"from a terminal: meshray forward {port} {node.name}",
        )
    if port not in known:
        raise ProxyError(
            404,
            "port_not_rays",
            f"No process of Ray on {node.name} listens on port {port}. "
            "A new program appears here within a few seconds.",
            hint=f"another program's port, from a terminal: meshray forward {port} {node.name}",
        )


def _is_rays_own(mesh_map: MeshMap, node: Node, port: int) -> bool:
    ports = mesh_map.ports_of(node)
    return port in {getattr(ports, name) for name in _COMMANDS}
