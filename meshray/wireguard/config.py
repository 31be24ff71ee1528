"""A WireGuard device as values: its desired state and its observed state (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import NamedTuple

from meshray.errors import MeshrayError
from meshray.linux.clock import BootSeconds, UnixSeconds
from meshray.model.address import Endpoint
from meshray.model.keys import PresharedKey, PrivateKey, PublicKey

#: WireGuard's Reject-After-Time (whitepaper, section 6.1), seconds. A live session has a new handshake every 120 s;
#: after this time the keys are rejected: no packet comes back from a peer whose last handshake is older.
REJECT_AFTER_S = 180.0
#: The creator of a route (rtm_protocol): RTPROT_KERNEL, and one below 128 that is not assigned (rt_protos of iproute2).
KERNEL_PROTOCOL, MESHRAY_PROTOCOL = 2, 109


def is_fresh(last_handshake: BootSeconds | None, now: BootSeconds) -> bool:
    """Return whether a peer with this last handshake (seconds of the boot clock) can still have a session."""
    return last_handshake is not None and now - last_handshake < REJECT_AFTER_S


@dataclass(frozen=True)
class PeerConfig:
    """The desired configuration of one peer.

    Attributes:
        allowed_ips: the addresses that are routed to the peer and accepted from it. An address range belongs to one
            peer only.
        endpoint: an IP address and port; None keeps the one that WireGuard learned (roaming).
        keepalive_s: seconds between keepalives, 0 for none.
    """

    public_key: PublicKey
    allowed_ips: frozenset[IPv4Network]
    preshared_key: PresharedKey | None = None
    endpoint: Endpoint | None = None
    keepalive_s: int = 0

    def __post_init__(self) -> None:
        if self.endpoint is not None and self.endpoint.ip is None:
            raise MeshrayError(
                "bad_endpoint", f"a WireGuard endpoint needs an IP address, not the name {self.endpoint.host!r}"
            )


@dataclass(frozen=True)
class Route:
    """A route out of the interface, without a gateway, in the main table and with metric 0.

    Attributes:
        source: the source address of packets; None: the kernel chooses.
        mtu: bytes of an inner packet, with its IP header; 0: that of the interface.
        protocol: its creator: `KERNEL_PROTOCOL` or `MESHRAY_PROTOCOL`, as ``ip route`` prints it.
    """

    destination: IPv4Network
    source: IPv4Address | None = None
    mtu: int = 0
    protocol: int = KERNEL_PROTOCOL


@dataclass(frozen=True)
class RouteState:
    """The effective route for a destination, as observed.

    Attributes:
        elsewhere: where it leads if not directly out of the interface, as ``ip route`` prints it; empty: directly out
            of the interface.
    """

    route: Route
    elsewhere: str = ""


@dataclass(frozen=True)
class DeviceConfig:
    """The desired state of a device.

    Attributes:
        listen_port: UDP port; 0 leaves the choice to the system.
        addresses: the interface's addresses; the first one in a network is the source address of packets to that
            network.
        mtu: bytes of an inner packet.
        routes: the route of the overlay, and those of peers whose paths carry less than ``mtu``.

    Raises:
        MeshrayError: two peers claim one address range; WireGuard would give it to the later one silently.
    """

    private_key: PrivateKey
    listen_port: int
    addresses: tuple[IPv4Interface, ...]
    mtu: int
    peers: Mapping[PublicKey, PeerConfig]
    routes: tuple[Route, ...] = ()

    def __post_init__(self) -> None:
        owners: dict[IPv4Network, PublicKey] = {}
        for key, peer in self.peers.items():
            for network in peer.allowed_ips:
                if owners.setdefault(network, key) != key:
                    raise MeshrayError("bad_device", f"{network} is claimed by two peers: {owners[network]} and {key}")


@dataclass(frozen=True)
class PeerState:
    """The observed state of a peer.

    Attributes:
        config: its configuration, with the endpoint that WireGuard uses now.
        last_handshake: the time of the last handshake by the wall clock, as WireGuard reports it; None before the
            first.
        handshake_at: the same time by the boot clock (`meshray.agent.device.handshakes`); None if it was not computed.
        rx_bytes: bytes received from the peer since it was added, as WireGuard counts.
        tx_bytes: bytes sent to it.
    """

    config: PeerConfig
    last_handshake: UnixSeconds | None = None
    rx_bytes: int = 0
    tx_bytes: int = 0
    handshake_at: BootSeconds | None = None


class WireGuardState(NamedTuple):
    """The state of WireGuard itself; addresses, MTU and up belong to the interface."""

    private_key: PrivateKey | None
    listen_port: int
    peers: dict[PublicKey, PeerState]


@dataclass(frozen=True)
class DeviceState:
    """The observed state of a device.

    Attributes:
        listen_port: UDP port; 0 until one was chosen.
        routes: by destination; the routes to the networks of its addresses, and to single addresses in them.
    """

    private_key: PrivateKey | None
    listen_port: int
    addresses: tuple[IPv4Interface, ...]
    mtu: int
    up: bool
    peers: Mapping[PublicKey, PeerState]
    routes: Mapping[IPv4Network, RouteState] = field(default_factory=dict)
