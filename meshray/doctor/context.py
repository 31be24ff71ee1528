"""What the probes are told of the node on which they run."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from meshray.defaults import DEFAULT_PORT, INTERFACE
from meshray.home import Home
from meshray.linux.user import User
from meshray.model.address import Endpoint
from meshray.model.meshmap import MeshMap
from meshray.protocol.status import Status
from meshray.raynode.command import RayPlan
from meshray.raynode.supervisor import RayNow
from meshray.raynode.versions import RayInstallation
from meshray.wireguard.config import DeviceState


@dataclass(frozen=True)
class Counters:
    """What WireGuard received from a peer and sent to it, bytes."""

    rx_bytes: int
    tx_bytes: int


async def _no_counters() -> Mapping[str, Counters]:
    return {}


@dataclass(frozen=True)
class Context:
    """What is None or empty is not known: before the machine is enrolled, or because no agent runs.

    Attributes:
        name: of this node; empty: it is none.
        ip: its overlay address.
        mesh_port: UDP and TCP port of the mesh on hubs and coordinator.
        listen_port: on which this node's WireGuard listens, 0: not known.
        trusts_user_environment: see the enrolment.
        coordinators: where the coordinator may be, with ``fingerprint`` and ``credential`` as in the enrolment.
        transport: as chosen at join: auto, udp or wss.
        open_ports: what members reach besides Ray's ports (``--open``).
        open_all: they reach every port.
        unguarded: Ray may run where its ports cannot be closed.
        foreign_ports: ports that Ray would use here and another program has.
        status: the mesh as this node sees it, every peer probed a moment ago.
        device: WireGuard's own state; None: no tunnel.
        read_device: reads it anew (blocking, see `Device.read`); None: there is no agent that has one.
        endpoints_seen: of each peer as this node's WireGuard sees it, by node name.
        ray_plan: what this node's Ray should be; None: none is meant to run here, for the reason ``no_ray_because``.
        ray: how its supervised Ray stands.
        dialled: where this node dials the hubs, by node name.
        rebinds: at a hub: seconds since each change of a node's mapping, by node name.
        map_of: this node's revision of the map once it is the one given, or after so many seconds.
        round_trip: milliseconds to an overlay address and back within the time given (seconds), None: no answer.
        echo: the same for a packet of a size (bytes, 0: small), which is not remembered.
        counters: WireGuard's counters of each peer now, by node name.
        mtu_measured: whether the size that passes to an overlay address was found out.
        contested_routes: what the agent tells of programs that keep removing its routes, one sentence each.
        heard_ago: seconds since an overlay address last asked this node; None: it never did.
        unanswered: seconds since an overlay address last answered this node, at most since it can ask; None: not known.
        only_handshakes: this node left UDP because handshakes passed and data did not.
    """

    home: Home
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    interface: str = INTERFACE
    name: str = ""
    ip: IPv4Address | None = None
    mesh_port: int = DEFAULT_PORT
    listen_port: int = 0
    is_hub: bool = False
    hosts_coordinator: bool = False
    coordinators: tuple[Endpoint, ...] = ()
    trusts_user_environment: bool = False
    fingerprint: bytes = b""
    credential: str = field(default="", repr=False)
    transport: str = "auto"
    open_ports: tuple[int, ...] = ()
    open_all: bool = False
    unguarded: bool = False
    foreign_ports: frozenset[int] = frozenset()
    mesh_map: MeshMap | None = None
    map_of: Callable[[int, float], Awaitable[int]] | None = None
    status: Status | None = None
    device: DeviceState | None = None
    read_device: Callable[[], DeviceState | None] | None = None
    endpoints_seen: Mapping[str, str] = field(default_factory=dict)
    dialled: Mapping[str, str] = field(default_factory=dict)
    rebinds: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    ray_plan: RayPlan | None = None
    ray: RayNow | None = None
    no_ray_because: str = ""
    installation: RayInstallation | None = None
    user: User | None = None
    round_trip: Callable[[IPv4Address, float], Awaitable[float | None]] | None = None
    echo: Callable[[IPv4Address, float, int], Awaitable[float | None]] | None = None
    counters: Callable[[], Awaitable[Mapping[str, Counters]]] = _no_counters
    mtu_measured: Callable[[IPv4Address], bool] = lambda ip: False
    contested_routes: tuple[str, ...] = ()
    heard_ago: Callable[[IPv4Address], float | None] = lambda ip: None
    unanswered: Callable[[IPv4Address], float | None] = lambda ip: None
    only_handshakes: bool = False
