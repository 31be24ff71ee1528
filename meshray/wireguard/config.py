"""A WireGuard device as values: as it should be, and as it is (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import NamedTuple

from meshray.errors import MeshrayError
from meshray.linux.clock import BootSeconds, UnixSeconds
from meshray.model.address import Endpoint
from meshray.model.keys import PresharedKey, PrivateKey, PublicKey

#: WireGuard's Reject-After-Time (whitepaper, section 6.1), seconds. A living session has a new handshake each 120 s;
#: after this the keys are refused: nothing comes back through a peer whose last handshake is older.
REJECT_AFTER_S = 180.0
#: Who made a route (rtm_protocol): RTPROT_KERNEL, and one below 128 that is in nobody's list (rt_protos of iproute2).
KERNEL_PROTOCOL, MESHRAY_PROTOCOL = 2, 109


def is_fresh(last_handshake: BootSeconds | None, now: BootSeconds) -> bool:
    """Whether a peer with this last handshake (seconds of the boot clock) can still be heard."""
    return last_handshake is not None and now - last_handshake < REJECT_AFTER_S


@dataclass(frozen=True)
class PeerConfig:
    """What a device should know of one peer.

    Attributes:
        allowed_ips: what is routed to the peer and accepted from it. One address range belongs to one peer only.
        endpoint: an IP address and port; None keeps what WireGuard learnt (roaming).
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
                "bad_endpoint", f"WireGuard wants an IP address as endpoint, not the name {self.endpoint.host!r}"
            )


@dataclass(frozen=True)
class Route:
    """A route out of the interface, without a gateway, in the main table and with metric 0.

    Attributes:
        source: the own address that packets get; None: the kernel chooses.
        mtu: bytes of an inner packet, with its IP header; 0: that of the interface.
        protocol: who made it: `KERNEL_PROTOCOL` or `MESHRAY_PROTOCOL`, as ``ip route`` prints it.
    """

    destination: IPv4Network
    source: IPv4Address | None = None
    mtu: int = 0
    protocol: int = KERNEL_PROTOCOL


@dataclass(frozen=True)
class RouteState:
    """The route that counts for a destination, as it is.

    Attributes:
        elsewhere: where it leads instead of straight out of the interface, in the words of ``ip route``; empty: it
            does lead there.
    """

    route: Route
    elsewhere: str = ""


@dataclass(frozen=True)
class DeviceConfig:
    """A device as it should be.

    Attributes:
        listen_port: UDP port; 0 leaves the choice to the system.
        addresses: of the interface; the first one in a network is the source of what is sent there.
        mtu: bytes of an inner packet.
        routes: that of the overlay, and those of peers whose paths carry less than ``mtu``.

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
    """A peer as the device has it.

    Attributes:
        config: with the endpoint that WireGuard uses now.
        last_handshake: by the wall clock, as WireGuard reports it; None where there was none.
        heard: when that was by the boot clock, see `meshray.agent.device.handshakes`; None where nobody worked it out.
        rx_bytes: received from the peer since it was added, as WireGuard counts.
        tx_bytes: sent to it.
    """

    config: PeerConfig
    last_handshake: UnixSeconds | None = None
    rx_bytes: int = 0
    tx_bytes: int = 0
    heard: BootSeconds | None = None


class WireGuardState(NamedTuple):
    """What WireGuard itself knows of a device; addresses, MTU and up are the interface's."""

    private_key: PrivateKey | None
    listen_port: int
    peers: dict[PublicKey, PeerState]


@dataclass(frozen=True)
class DeviceState:
    """A device as it is.

    Attributes:
        listen_port: 0 where none was chosen yet.
        routes: by destination: those to the networks of its addresses, and to single addresses in them.
    """

    private_key: PrivateKey | None
    listen_port: int
    addresses: tuple[IPv4Interface, ...]
    mtu: int
    up: bool
    peers: Mapping[PublicKey, PeerState]
    routes: Mapping[IPv4Network, RouteState] = field(default_factory=dict)
