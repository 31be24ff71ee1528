"""The context of the probes: the node on which they run."""

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
    """Bytes that WireGuard received from a peer and sent to it."""

    rx_bytes: int
    tx_bytes: int


async def _no_counters() -> Mapping[str, Counters]:
    return {}


@dataclass(frozen=True)
class Context:
    """The context of one node. Values that are None or empty are not known: before an enrolment, or without an agent.

    Attributes:
        name: this node's name; empty: the machine is not a node.
        ip: its overlay address.
        mesh_port: UDP and TCP port of the mesh on hubs and coordinator.
        listen_port: this node's WireGuard port; 0: not known.
        trusts_user_environment: see the enrolment.
        coordinators: possible endpoints of the coordinator, with ``fingerprint`` and ``credential`` as in the
            enrolment.
        transport: as chosen at join: auto, udp or wss.
        open_ports: ports that members reach in addition to Ray's (``--open``).
        open_all: members reach every port.
        unguarded: Ray may run even if its ports cannot be closed.
        rules_due: the agent has come far enough to set its firewall rules; without an agent it has.
        foreign_ports: ports of Ray that another program uses here.
        status: this node's status of the mesh, with every peer just probed.
        device: WireGuard's own state; None: no tunnel.
        read_device: reads the device again (blocking, see `Device.read`); None: no agent has one.
        peer_endpoints: the endpoint of each peer in this node's WireGuard, by node name.
        ray_plan: the plan of this node's Ray; None: none should run here, for the reason ``no_ray_reason``.
        ray: the state of its supervised Ray.
        dialled: the endpoints at which this node dials the hubs, by node name.
        rebinds: on a hub: seconds since each change of a node's NAT mapping, by node name.
        map_of: waits for the given revision of the map, at most this many seconds; returns this node's revision.
        round_trip: measures a round trip to an overlay address, milliseconds, with a timeout in seconds; None: no
            answer.
        echo: the same for a packet of a given size (bytes, 0: small), which is not recorded.
        counters: WireGuard's current counters of each peer, by node name.
        mtu_measured: whether the MTU of the path to an overlay address was measured.
        contested_routes: the agent's reports of programs that keep removing its routes, one sentence each.
        probe_age_s: seconds since an overlay address last probed this node; None: it never did.
        unanswered: seconds since an overlay address last answered this node, at most since it can send probes; None:
            not known.
        only_handshakes: this node gave up UDP because handshakes passed and data did not.
        udp_limit_kbit_s: this node gave up UDP because a network limits it to this rate, kbit/s; None: it did not.
        udp_limit_age_s: seconds since that was measured.
        relay_kbit_s: the rate that the relay carried then, at least, kbit/s.
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
    rules_due: bool = True
    foreign_ports: frozenset[int] = frozenset()
    mesh_map: MeshMap | None = None
    map_of: Callable[[int, float], Awaitable[int]] | None = None
    status: Status | None = None
    device: DeviceState | None = None
    read_device: Callable[[], DeviceState | None] | None = None
    peer_endpoints: Mapping[str, str] = field(default_factory=dict)
    dialled: Mapping[str, str] = field(default_factory=dict)
    rebinds: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    ray_plan: RayPlan | None = None
    ray: RayNow | None = None
    no_ray_reason: str = ""
    installation: RayInstallation | None = None
    user: User | None = None
    round_trip: Callable[[IPv4Address, float], Awaitable[float | None]] | None = None
    echo: Callable[[IPv4Address, float, int], Awaitable[float | None]] | None = None
    counters: Callable[[], Awaitable[Mapping[str, Counters]]] = _no_counters
    mtu_measured: Callable[[IPv4Address], bool] = lambda ip: False
    contested_routes: tuple[str, ...] = ()
    probe_age_s: Callable[[IPv4Address], float | None] = lambda ip: None
    unanswered: Callable[[IPv4Address], float | None] = lambda ip: None
    only_handshakes: bool = False
    udp_limit_kbit_s: float | None = None
    udp_limit_age_s: float | None = None
    relay_kbit_s: float | None = None
