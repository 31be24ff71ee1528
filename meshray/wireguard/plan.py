"""The steps from a device's observed state to its desired state. Pure; used to apply, to log and for --dry-run.

>>> for step in plan(None, desired):
...     print(step)
create the device
set the private key
set the MTU to 1420
add address 10.99.0.7/16
bring the device up
listen on UDP port 51888
add peer gN65BkIKy1eCE9pP1wdc8ROUtkHLF2PfAqYdyYBz6EA=: allowed 10.99.0.0/16, endpoint 203.0.113.7:51888, ...
route 10.99.0.0/16 to the device
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Interface, IPv4Network
from typing import Literal

from meshray.model.keys import PrivateKey, PublicKey
from meshray.wireguard.config import (
    KERNEL_PROTOCOL,
    MESHRAY_PROTOCOL,
    DeviceConfig,
    DeviceState,
    PeerConfig,
    Route,
    RouteState,
)

PeerField = Literal["allowed_ips", "endpoint", "keepalive_s", "preshared_key"]


@dataclass(frozen=True)
class CreateDevice:
    """Create the interface."""

    def __str__(self) -> str:
        return "create the device"


@dataclass(frozen=True)
class SetPrivateKey:
    """Set the private key, which is the device's identity."""

    key: PrivateKey

    def __str__(self) -> str:
        return "set the private key"


@dataclass(frozen=True)
class SetListenPort:
    """Set the UDP port."""

    port: int

    def __str__(self) -> str:
        return f"listen on UDP port {self.port}"


@dataclass(frozen=True)
class SetMtu:
    """Set the MTU, in bytes of an inner packet."""

    mtu: int

    def __str__(self) -> str:
        return f"set the MTU to {self.mtu}"


@dataclass(frozen=True)
class AddAddress:
    """Add an address; does nothing if the interface has it."""

    address: IPv4Interface

    def __str__(self) -> str:
        return f"add address {self.address}"


@dataclass(frozen=True)
class RemoveAddress:
    """Remove an address. Other addresses of its network may go too: Linux drops secondaries with their primary."""

    address: IPv4Interface

    def __str__(self) -> str:
        return f"remove address {self.address}"


@dataclass(frozen=True)
class SetUp:
    """Bring the interface up."""

    def __str__(self) -> str:
        return "bring the device up"


@dataclass(frozen=True)
class AddPeer:
    """Add a peer that the device does not know."""

    peer: PeerConfig

    def __str__(self) -> str:
        fields: tuple[PeerField, ...] = ("allowed_ips", "endpoint", "keepalive_s", "preshared_key")
        return f"add peer {self.peer.public_key}: {_describe(self.peer, fields)}"


@dataclass(frozen=True)
class UpdatePeer:
    """Set the named fields of a known peer.

    Attributes:
        fields: the fields that change; the others are unchanged.
        replace_allowed_ips: also remove other allowed IPs of the peer. Without it they are only added: a range moves
            from one peer to another atomically, and no packet is lost in between.
    """

    peer: PeerConfig
    fields: tuple[PeerField, ...]
    replace_allowed_ips: bool = False

    def __str__(self) -> str:
        return f"update peer {self.peer.public_key}: {_describe(self.peer, self.fields)}"


@dataclass(frozen=True)
class RemovePeer:
    """Remove the peer and its session."""

    public_key: PublicKey

    def __str__(self) -> str:
        return f"remove peer {self.public_key}"


@dataclass(frozen=True)
class SetRoute:
    """Create a route, or replace the one with the same destination and metric.

    Attributes:
        replaces: where the existing route leads, as ``ip route`` prints it; empty: there is none, or it leads to the
            interface as well.
    """

    route: Route
    replaces: str = ""

    def __str__(self) -> str:
        limit = f", packets of at most {self.route.mtu} bytes" if self.route.mtu else ""
        instead = f", in place of {self.replaces}" if self.replaces else ""
        return f"route {self.route.destination} to the device{limit}{instead}"


@dataclass(frozen=True)
class RemoveRoute:
    """Remove a peer's own route, which meshray created."""

    destination: IPv4Network

    def __str__(self) -> str:
        return f"remove the route {self.destination}"


#: Steps that concern the interface, whichever device implements WireGuard.
InterfaceStep = SetMtu | AddAddress | RemoveAddress | SetUp | SetRoute | RemoveRoute
#: Steps that concern WireGuard itself.
WireGuardStep = SetPrivateKey | SetListenPort | AddPeer | UpdatePeer | RemovePeer
Step = CreateDevice | InterfaceStep | WireGuardStep

_ABSENT = DeviceState(private_key=None, listen_port=0, addresses=(), mtu=0, up=False, peers={})


def plan(observed: DeviceState | None, desired: DeviceConfig) -> tuple[Step, ...]:
    """Return the steps that turn ``observed`` (None: no device) into ``desired``; empty if they are equal.

    A peer whose desired endpoint is None keeps the one that WireGuard learned.
    """
    created = [CreateDevice()] if observed is None else []
    state = observed or _ABSENT
    # Removals come first: if a later step fails, no peer keeps an access that was revoked.
    removals = tuple(_removal_steps(state, desired))
    current = _after(removals, state)
    interface = tuple(_interface_steps(state, desired))
    # Adding and removing addresses also creates and removes routes.
    affected = any(isinstance(step, (AddAddress, RemoveAddress, SetUp)) for step in interface)
    # Routes come last: if one cannot be set, everything else is in place.
    return (*created, *removals, *interface, *_peer_steps(current, desired), *_route_steps(state, desired, affected))


def _interface_steps(observed: DeviceState, desired: DeviceConfig) -> Iterator[Step]:
    if observed.private_key != desired.private_key:
        yield SetPrivateKey(desired.private_key)
    if observed.mtu != desired.mtu:
        yield SetMtu(desired.mtu)
    yield from _address_steps(observed.addresses, desired.addresses)
    if not observed.up:
        yield SetUp()
    # The port is set after up: the kernel then rejects a port that is in use at once, while a device that is down
    # accepts any.
    if desired.listen_port not in (0, observed.listen_port):
        yield SetListenPort(desired.listen_port)


def _address_steps(observed: tuple[IPv4Interface, ...], desired: tuple[IPv4Interface, ...]) -> Iterator[Step]:
    removed = [address for address in observed if address not in desired]
    # Addresses in the network of a removed address may vanish with it, so they are added again.
    affected = {address.network for address in removed}
    yield from (RemoveAddress(address) for address in removed)
    for address in desired:
        if address not in observed or address.network in affected:
            yield AddAddress(address)


def _removal_steps(observed: DeviceState, desired: DeviceConfig) -> Iterator[Step]:
    """Yield the removals of peers. They contain nothing that a node chooses itself, such as endpoints.

    A range that another peer takes over is given to that peer first: no range is ever without an owner.
    """
    removed = sorted(observed.peers.keys() - desired.peers.keys())
    left = {network for key in removed for network in observed.peers[key].config.allowed_ips}
    for key, peer in desired.peers.items():
        taken = peer.allowed_ips & left
        if taken and key in observed.peers:
            config = observed.peers[key].config
            yield UpdatePeer(replace(config, allowed_ips=config.allowed_ips | taken), ("allowed_ips",))
        elif taken:
            yield AddPeer(PeerConfig(key, taken))
    yield from (RemovePeer(key) for key in removed)


def _after(removals: Iterable[Step], observed: DeviceState) -> dict[PublicKey, PeerConfig]:
    """Return the peers after the removals."""
    peers = {key: state.config for key, state in observed.peers.items()}
    for step in removals:
        if isinstance(step, RemovePeer):
            del peers[step.public_key]
        elif isinstance(step, (AddPeer, UpdatePeer)):
            peers[step.peer.public_key] = step.peer
    return peers


def _peer_steps(current: Mapping[PublicKey, PeerConfig], desired: DeviceConfig) -> Iterator[Step]:
    """Yield first the peers that gain addresses, then those that lose them: no range is ever without an owner."""
    gained = {
        network
        for key, peer in desired.peers.items()
        for network in peer.allowed_ips - (current[key].allowed_ips if key in current else frozenset())
    }
    losing: list[Step] = []
    for key, peer in desired.peers.items():
        if key not in current:
            yield AddPeer(peer)
            continue
        fields = _changed_fields(current[key], peer)
        if fields:
            yield UpdatePeer(peer, fields)
        # The step that gives addresses to another peer also removes them from this one.
        if current[key].allowed_ips - peer.allowed_ips - gained:
            losing.append(UpdatePeer(peer, ("allowed_ips",), replace_allowed_ips=True))
    yield from losing


def _changed_fields(observed: PeerConfig, wanted: PeerConfig) -> tuple[PeerField, ...]:
    """Return the fields that are set or that gain values. Removed allowed IPs do not count here."""
    fields: list[PeerField] = []
    if wanted.allowed_ips - observed.allowed_ips:
        fields.append("allowed_ips")
    if wanted.endpoint is not None and wanted.endpoint != observed.endpoint:
        fields.append("endpoint")
    if wanted.keepalive_s != observed.keepalive_s:
        fields.append("keepalive_s")
    if wanted.preshared_key != observed.preshared_key:
        fields.append("preshared_key")
    return tuple(fields)


def _route_steps(observed: DeviceState, desired: DeviceConfig, affected: bool) -> Iterator[Step]:
    """Yield the steps for routes. Only routes directly out of the interface with meshray's mark are removed."""
    wanted = {route.destination for route in desired.routes}
    for destination, state in sorted(observed.routes.items()):
        is_own = state.route.protocol == MESHRAY_PROTOCOL and not state.elsewhere
        if is_own and destination not in wanted:
            yield RemoveRoute(destination)
    for route in desired.routes:
        current = observed.routes.get(route.destination)
        if affected or current is None or not _matches(current, route):
            yield SetRoute(route, current.elsewhere if current is not None else "")


def _matches(observed: RouteState, wanted: Route) -> bool:
    """Return whether the route is as desired. Who created the overlay's does not matter; a peer's must be ours."""
    route, protocols = observed.route, (observed.route.protocol, KERNEL_PROTOCOL)
    same = (route.source, route.mtu) == (wanted.source, wanted.mtu)
    return not observed.elsewhere and same and wanted.protocol in protocols


def _describe(peer: PeerConfig, fields: Iterable[PeerField]) -> str:
    texts = {
        "allowed_ips": "allowed " + (" ".join(str(network) for network in sorted(peer.allowed_ips)) or "nothing"),
        "endpoint": f"endpoint {peer.endpoint}" if peer.endpoint else "",
        "keepalive_s": f"keepalive {peer.keepalive_s} s" if peer.keepalive_s else "no keepalive",
        "preshared_key": "a preshared key" if peer.preshared_key else "no preshared key",
    }
    return ", ".join(texts[field] for field in fields if texts[field])
