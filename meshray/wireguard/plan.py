"""The diff between a device and what it should be. Pure; drives apply, log lines and --dry-run alike.

>>> for step in plan(None, desired):
...     print(step)
create the device
set the private key
set the MTU to 1420
add address 10.99.0.7/16
bring the device up
listen on UDP port 51888
add peer gN65BkIKy1eCE9pP1wdc8ROUtkHLF2PfAqYdyYBz6EA=: allowed 10.99.0.0/16, endpoint 203.0.113.7:51888, ...
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Interface
from typing import Literal

from meshray.model.keys import PrivateKey, PublicKey
from meshray.wireguard.device import DeviceConfig, DeviceState, PeerConfig

PeerField = Literal["allowed_ips", "endpoint", "keepalive_s", "preshared_key"]


@dataclass(frozen=True)
class CreateDevice:
    """Makes the interface."""

    def __str__(self) -> str:
        return "create the device"


@dataclass(frozen=True)
class SetPrivateKey:
    """Gives the device its identity."""

    key: PrivateKey

    def __str__(self) -> str:
        return "set the private key"


@dataclass(frozen=True)
class SetListenPort:
    """UDP port."""

    port: int

    def __str__(self) -> str:
        return f"listen on UDP port {self.port}"


@dataclass(frozen=True)
class SetMtu:
    """Bytes of an inner packet."""

    mtu: int

    def __str__(self) -> str:
        return f"set the MTU to {self.mtu}"


@dataclass(frozen=True)
class AddAddress:
    """Does nothing where the interface has the address."""

    address: IPv4Interface

    def __str__(self) -> str:
        return f"add address {self.address}"


@dataclass(frozen=True)
class RemoveAddress:
    """May take other addresses of the same network along: Linux drops secondaries with their primary."""

    address: IPv4Interface

    def __str__(self) -> str:
        return f"remove address {self.address}"


@dataclass(frozen=True)
class SetUp:
    """Brings the interface up."""

    def __str__(self) -> str:
        return "bring the device up"


@dataclass(frozen=True)
class AddPeer:
    """A peer that the device does not know."""

    peer: PeerConfig

    def __str__(self) -> str:
        fields: tuple[PeerField, ...] = ("allowed_ips", "endpoint", "keepalive_s", "preshared_key")
        return f"add peer {self.peer.public_key}: {_describe(self.peer, fields)}"


@dataclass(frozen=True)
class UpdatePeer:
    """Sets the named fields of a known peer.

    Attributes:
        fields: which of the peer's fields change; the others are left alone.
        replace_allowed_ips: also takes away what the peer has beyond its allowed ips. Without it they are
            only added: a range moves from one peer to another in one stroke, with no packet lost between.
    """

    peer: PeerConfig
    fields: tuple[PeerField, ...]
    replace_allowed_ips: bool = False

    def __str__(self) -> str:
        return f"update peer {self.peer.public_key}: {_describe(self.peer, self.fields)}"


@dataclass(frozen=True)
class RemovePeer:
    """Forgets the peer and its session."""

    public_key: PublicKey

    def __str__(self) -> str:
        return f"remove peer {self.public_key}"


Step = (
    CreateDevice
    | SetPrivateKey
    | SetListenPort
    | SetMtu
    | AddAddress
    | RemoveAddress
    | SetUp
    | AddPeer
    | UpdatePeer
    | RemovePeer
)

_ABSENT = DeviceState(private_key=None, listen_port=0, addresses=(), mtu=0, up=False, peers={})


def plan(observed: DeviceState | None, desired: DeviceConfig) -> tuple[Step, ...]:
    """The steps that turn ``observed`` (None: no device) into ``desired``; empty where it is so already.

    A peer whose desired endpoint is None keeps the one that WireGuard learnt.
    """
    created = [CreateDevice()] if observed is None else []
    state = observed or _ABSENT
    return (*created, *_interface_steps(state, desired), *_peer_steps(state, desired))


def _interface_steps(observed: DeviceState, desired: DeviceConfig) -> Iterator[Step]:
    if observed.private_key != desired.private_key:
        yield SetPrivateKey(desired.private_key)
    if observed.mtu != desired.mtu:
        yield SetMtu(desired.mtu)
    yield from _address_steps(observed.addresses, desired.addresses)
    if not observed.up:
        yield SetUp()
    # After up: a port that is in use is refused at once then, while a device that is down takes any.
    if desired.listen_port not in (0, observed.listen_port):
        yield SetListenPort(desired.listen_port)


def _address_steps(observed: tuple[IPv4Interface, ...], desired: tuple[IPv4Interface, ...]) -> Iterator[Step]:
    removed = [address for address in observed if address not in desired]
    # What shares a network with a removed address may vanish with it, so it is added again.
    shaken = {address.network for address in removed}
    yield from (RemoveAddress(address) for address in removed)
    for address in desired:
        if address not in observed or address.network in shaken:
            yield AddAddress(address)


def _peer_steps(observed: DeviceState, desired: DeviceConfig) -> Iterator[Step]:
    """First who gains addresses, then who loses them, then who goes: no range is ever without an owner."""
    has = {key: state.config.allowed_ips for key, state in observed.peers.items()}
    gained = {
        network for key, peer in desired.peers.items() for network in peer.allowed_ips - has.get(key, frozenset())
    }
    losing: list[Step] = []
    for key, peer in desired.peers.items():
        if key not in observed.peers:
            yield AddPeer(peer)
            continue
        fields = _changed_fields(observed.peers[key].config, peer)
        if fields:
            yield UpdatePeer(peer, fields)
        # What another peer gains in this plan is taken from this one by that very step.
        if has[key] - peer.allowed_ips - gained:
            losing.append(UpdatePeer(peer, ("allowed_ips",), replace_allowed_ips=True))
    yield from losing
    yield from (RemovePeer(key) for key in sorted(observed.peers.keys() - desired.peers.keys()))


def _changed_fields(seen: PeerConfig, wanted: PeerConfig) -> tuple[PeerField, ...]:
    """All that is set or gained; what only goes away of the allowed ips is no matter here."""
    fields: list[PeerField] = []
    if wanted.allowed_ips - seen.allowed_ips:
        fields.append("allowed_ips")
    if wanted.endpoint is not None and wanted.endpoint != seen.endpoint:
        fields.append("endpoint")
    if wanted.keepalive_s != seen.keepalive_s:
        fields.append("keepalive_s")
    if wanted.preshared_key != seen.preshared_key:
        fields.append("preshared_key")
    return tuple(fields)


def _describe(peer: PeerConfig, fields: Iterable[PeerField]) -> str:
    texts = {
        "allowed_ips": "allowed " + (" ".join(str(network) for network in sorted(peer.allowed_ips)) or "nothing"),
        "endpoint": f"endpoint {peer.endpoint}" if peer.endpoint else "",
        "keepalive_s": f"keepalive {peer.keepalive_s} s" if peer.keepalive_s else "no keepalive",
        "preshared_key": "a preshared key" if peer.preshared_key else "no preshared key",
    }
    return ", ".join(texts[field] for field in fields if texts[field])
