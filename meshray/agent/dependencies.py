"""An agent's dependencies as protocols: the real parts are in `meshray.agent.main`, stateful fakes in the tests."""

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
from meshray.raynode.dashboard_client import LiveNode
from meshray.raynode.listeners import ListeningSocket
from meshray.raynode.supervisor import RayNow
from meshray.wireguard.device import Device

if TYPE_CHECKING:
    from meshray.agent.device.forwards import Forwards


class FirewallPart(Protocol):
    """See `meshray.firewall.Firewall`."""

    def apply(self) -> list[str]:
        """Add the missing rules; return what changed."""

    def remove(self) -> list[str]:
        """Remove exactly the rules that were added."""

    def problems(self) -> list[Problem]:
        """Return the failures of the last call."""

    @property
    def applied(self) -> bool:
        """Whether the rules should be in place: `apply` was called, and `remove` was not."""

    @property
    def unguarded(self) -> str:
        """The reason why Ray's ports are reachable from outside the overlay; empty: they are not."""

    @property
    def foreign(self) -> frozenset[int]:
        """Ports of Ray that another program uses."""

    def close(self, closed: Closed) -> list[str]:
        """Close exactly these ports to all but the overlay; return what changed."""

    def hold(self, silent: Collection[IPv4Address]) -> str:
        """Hold this host's connections to exactly these silent nodes; return why that is impossible, or ``""``."""

    def changes(self) -> AsyncIterator[None]:
        """Yield when the host's rules may have changed."""


class RayPart(Protocol):
    """See `meshray.raynode.supervisor.RayNode`."""

    @property
    def now(self) -> RayNow:
        """The state of the supervised Ray."""

    @property
    def failure(self) -> str:
        """The reason why Ray does not run although it should; empty without a fault."""

    @property
    def ports(self) -> Sequence[int | range]:
        """The TCP ports that Ray uses here, or may choose to use."""

    def head_instance(self, instance: str) -> None:
        """Use this instance of the head's Ray; empty: the head's Ray is down."""

    def head_at(self, ip: IPv4Address) -> None:
        """Use the head at this address from the next start of Ray on."""

    def hold_tokens(self, tokens: Mapping[int, str]) -> None:
        """Hold these tokens of Ray, by epoch."""

    def drained(self, drained: bool) -> None:
        """Set whether Ray, once it has ended, stays away from this node."""

    def label(self, labels: Mapping[str, str]) -> None:
        """Add labels for the next start of Ray."""

    def check_now(self) -> None:
        """Check Ray now, because another component observed a newer state of this node's Ray."""

    async def live_nodes(self) -> list[LiveNode] | None:
        """Return the living nodes in Ray's own table, several per address included; none without an answer."""

    async def unregister(self, nodes: Sequence[str], reason: str) -> bool:
        """Report the nodes with these ids to Ray as dead; return whether Ray accepted that."""

    async def node_table(self, *, with_use: bool = False) -> Mapping[IPv4Address, RayState] | None:
        """Return Ray's own node table, on request with the resources in use; None if the head does not answer."""

    async def run(self) -> None:
        """Keep Ray running until cancelled, which does not stop Ray."""

    async def stop(self) -> None:
        """Stop Ray."""


class CoordinatorPart(Protocol):
    """See `meshray.agent.connection.coordinator_process.CoordinatorProcess`."""

    @property
    def is_current(self) -> bool:
        """Whether the running coordinator is of this installation of meshray."""

    async def run(self) -> None:
        """Keep the coordinator running until cancelled, which does not stop it."""

    async def stop(self) -> None:
        """Stop the coordinator."""


class TrafficPart(Protocol):
    """See `meshray.agent.paths.traffic.Traffic`."""

    @property
    def is_denied(self) -> bool:
        """Whether this process lacks the right to see the packets."""

    async def run(
        self,
        own: IPv4Address,
        network: OverlayNetwork,
        on_traffic: Callable[[IPv4Address], None],
        on_denied: Callable[[], None],
    ) -> None:
        """Report the peers with which packets are exchanged, until cancelled."""


@dataclass
class Dependencies:
    """The parts of one agent.

    Attributes:
        endpoints: the endpoints at which others may reach this WireGuard port; None: they cannot.
        network_changes: yields when this machine's network changes.
        device_changes: yields when the device of this name, or a route into the overlay, was changed.
        listening: returns all listening sockets of this machine, Ray's and others'. Blocks.
        ray_table: Ray's node table from the head's dashboard, for a node without its own Ray.
        late_ray: creates Ray's part once the map shows a head; returns None until then.
        forwards: ports of the overlay on this machine's loopback, if the overlay is in another network namespace.
        no_ray_reason: the reason that is shown to the user if ``ray`` is None.
        traffic: reports with which nodes packets are exchanged; None: unknown, so every direct path is kept ready.
        hub_endpoints: the source of ``endpoints`` on a hub; it must be kept running.
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
    no_ray_reason: str = "not asked for"
    forwards: Forwards | None = None
    hub_endpoints: HubEndpoints | None = None
    traffic: TrafficPart | None = None
