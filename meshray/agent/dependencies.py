"""What an agent acts on, as seams: the real parts in `meshray.agent.main`, stateful fakes in the tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING, Protocol

from meshray import __version__
from meshray.agent.device.device_monitor import DeviceChange
from meshray.agent.paths.hub_endpoints import HubEndpoints
from meshray.agent.paths.prober import Prober
from meshray.firewall import Closed
from meshray.model.address import Endpoint, OverlayNetwork
from meshray.model.meshmap import MeshMap
from meshray.model.node import Versions
from meshray.model.problem import Problem
from meshray.model.ray_state import RayState
from meshray.raynode.listeners import ListeningSocket
from meshray.raynode.state import LiveNode
from meshray.raynode.supervisor import RayNow
from meshray.wireguard.device import Device

if TYPE_CHECKING:
    from meshray.agent.device.forwards import Forwards


class FirewallPart(Protocol):
    """See `meshray.firewall.Firewall`."""

    def apply(self) -> list[str]:
        """Makes it so; returns what changed."""

    def remove(self) -> list[str]:
        """Takes back exactly what was made."""

    def problems(self) -> list[Problem]:
        """What could not be made so."""

    @property
    def unguarded(self) -> str:
        """Why Ray's ports are open to others than the overlay; empty: they are not."""

    @property
    def foreign(self) -> frozenset[int]:
        """Ports that Ray would use and another program has."""

    def close(self, closed: Closed) -> list[str]:
        """Closes these ports, and no others, to all but the overlay; returns what changed."""

    def hold(self, silent: Collection[IPv4Address]) -> str:
        """Holds this host's connections to these silent nodes and to no others; why it cannot, or ``""``."""

    def changes(self) -> AsyncIterator[None]:
        """Yields when the host's rules may have changed."""


class RayPart(Protocol):
    """See `meshray.raynode.supervisor.RayNode`."""

    @property
    def now(self) -> RayNow:
        """How the supervised Ray stands."""

    @property
    def failure(self) -> str:
        """Why Ray does not run although it should; empty while nothing is wrong."""

    @property
    def ports(self) -> Sequence[int | range]:
        """The TCP ports that Ray uses here, or may choose to use."""

    def head_instance(self, instance: str) -> None:
        """The head's Ray has this instance now; empty: it is down."""

    def hold_tokens(self, tokens: Mapping[int, str]) -> None:
        """Ray's tokens that this node holds now, by epoch."""

    def drained(self, drained: bool) -> None:
        """Whether Ray, once it has ended, stays away from this node."""

    def label(self, labels: Mapping[str, str]) -> None:
        """Further labels for the next start of Ray."""

    def look(self) -> None:
        """Somebody has seen more of this node's Ray than it was last known to be: it is looked at anew."""

    async def live_nodes(self) -> list[LiveNode] | None:
        """The living nodes of Ray's own table, several of one address included; none where the head does not answer."""

    async def unregister(self, nodes: Sequence[str], reason: str) -> bool:
        """Tells Ray that the nodes with these ids are dead; returns whether it took it."""

    async def node_table(self, *, with_use: bool = False) -> Mapping[IPv4Address, RayState] | None:
        """Ray's own node table, on request with what is in use; None where the head does not answer."""

    async def run(self) -> None:
        """Keeps Ray running until cancelled, which leaves it running."""

    async def stop(self) -> None:
        """Ends Ray."""


class CoordinatorPart(Protocol):
    """See `meshray.agent.connection.coordinator_process.CoordinatorProcess`."""

    async def run(self) -> None:
        """Keeps the coordinator running until cancelled, which leaves it running."""

    async def stop(self) -> None:
        """Ends it."""


@dataclass
class Dependencies:
    """The parts of one agent.

    Attributes:
        endpoints: by which others may try to reach this WireGuard port; None: nobody can.
        network_changes: tells when this machine's network is another one.
        device_changes: tells when something was done to the device of this name, or to routes into the overlay.
        listening: all that listens on this machine now, Ray's and others'. Blocks.
        ray_table: Ray's node table for a node that runs no Ray itself, from the head's dashboard.
        late_ray: makes Ray's part once the map shows a head; None while it does not.
        forwards: ports of the overlay on this machine's loopback, where the overlay is elsewhere.
        no_ray_because: told to the user where ``ray`` is None.
        hub_endpoints: what ``endpoints`` reads on a hub; it has to be kept running.
    """

    device: Device
    prober: Prober | None = None
    firewall: FirewallPart | None = None
    listening: Callable[[], list[ListeningSocket]] = list
    ray: RayPart | None = None
    coordinator: CoordinatorPart | None = None
    endpoints: Callable[[int, OverlayNetwork], Awaitable[tuple[Endpoint, ...]]] | None = None
    network_changes: Callable[[], AsyncIterator[str]] | None = None
    device_changes: Callable[[str, IPv4Network], AsyncIterator[DeviceChange]] | None = None
    versions: Versions = field(default_factory=lambda: Versions(meshray=__version__))
    ray_table: Callable[[Endpoint], Awaitable[Mapping[IPv4Address, RayState] | None]] | None = None
    late_ray: Callable[[MeshMap], RayPart | None] = lambda mesh_map: None
    no_ray_because: str = "not asked for"
    forwards: Forwards | None = None
    hub_endpoints: HubEndpoints | None = None
