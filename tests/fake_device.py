"""A WireGuard device in memory that behaves like the real ones, for tests.

>>> device = FakeDevice("meshray0")
>>> device.apply(plan(device.read(), desired))
>>> device.hear(peer_key, now=1000.0, endpoint=Endpoint("203.0.113.7", 40000), rx_bytes=148)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Interface

from meshray.errors import MeshrayError
from meshray.linux.clock import UnixSeconds
from meshray.model.address import Endpoint
from meshray.model.keys import PublicKey
from meshray.wireguard.config import DeviceState, PeerConfig, PeerState, Route, RouteState
from meshray.wireguard.plan import (
    AddAddress,
    AddPeer,
    CreateDevice,
    RemoveAddress,
    RemovePeer,
    RemoveRoute,
    SetListenPort,
    SetMtu,
    SetPrivateKey,
    SetRoute,
    SetUp,
    Step,
    UpdatePeer,
)

#: The state of a new interface.
_NEW = DeviceState(private_key=None, listen_port=0, addresses=(), mtu=1420, up=False, peers={})
#: The port that the system picks when a device without a port comes up.
_RANDOM_PORT = 54321


@dataclass
class FakeDevice:
    """A `Device` in memory.

    Attributes:
        state: the state that `read` returns; tests may change it without meshray's knowledge.
        applied: every step taken, in order.
        failing: the exception that every call raises while it is set.
    """

    name: str = "meshray0"
    kind: str = "fake"
    state: DeviceState | None = None
    applied: list[Step] = field(default_factory=list)
    failing: MeshrayError | None = None

    def read(self) -> DeviceState | None:
        """See `Device.read`."""
        self._fail()
        return self.state

    def apply(self, steps: Sequence[Step]) -> None:
        """See `Device.apply`."""
        for step in steps:
            self._fail()
            self.state = _after(self.state, step)
            self.applied.append(step)

    def remove(self) -> None:
        """See `Device.remove`."""
        self._fail()
        self.state = None

    def hear(
        self,
        public_key: PublicKey,
        *,
        now: UnixSeconds,
        endpoint: Endpoint | None = None,
        rx_bytes: int = 0,
        tx_bytes: int = 0,
    ) -> None:
        """Simulate a handshake with the peer at ``now``, from ``endpoint``; the byte counts are added."""
        state = _existing(self.state)
        peer = state.peers[public_key]
        config = replace(peer.config, endpoint=endpoint or peer.config.endpoint)
        received = PeerState(config, now, peer.rx_bytes + rx_bytes, peer.tx_bytes + tx_bytes)
        self.state = replace(state, peers={**state.peers, public_key: received})

    def _fail(self) -> None:
        if self.failing is not None:
            raise self.failing


def _existing(state: DeviceState | None) -> DeviceState:
    if state is None:
        raise MeshrayError("no_device", "the fake device was not created")
    return state


def _after(state: DeviceState | None, step: Step) -> DeviceState:
    if isinstance(step, CreateDevice):
        if state is not None:
            raise MeshrayError("device_failed", "the fake device is there already")
        return _NEW
    if isinstance(step, (AddPeer, UpdatePeer, RemovePeer)):
        return _after_peer_step(_existing(state), step)
    if isinstance(step, (SetRoute, RemoveRoute)):
        return _after_route_step(_existing(state), step)
    return _after_interface_step(_existing(state), step)


def _after_route_step(state: DeviceState, step: SetRoute | RemoveRoute) -> DeviceState:
    if isinstance(step, SetRoute):
        return replace(state, routes={**state.routes, step.route.destination: RouteState(step.route)})
    return replace(state, routes={key: seen for key, seen in state.routes.items() if key != step.destination})


def _after_interface_step(
    state: DeviceState,
    step: SetPrivateKey | SetListenPort | SetMtu | AddAddress | RemoveAddress | SetUp,
) -> DeviceState:
    match step:
        case SetPrivateKey(key):
            return replace(state, private_key=key)
        case SetListenPort(port):
            return replace(state, listen_port=port)
        case SetMtu(mtu):
            return replace(state, mtu=mtu)
        case SetUp():
            return _connected(replace(state, up=True, listen_port=state.listen_port or _RANDOM_PORT))
        case AddAddress(address):
            return _connected(replace(state, addresses=tuple(dict.fromkeys((*state.addresses, address)))))
        case RemoveAddress(address):
            return _sourceless(replace(state, addresses=_without(state.addresses, address)))


def _connected(state: DeviceState) -> DeviceState:
    """Return the state with the routes that Linux adds for the addresses of an interface that is up."""
    made = {
        address.network: RouteState(Route(address.network, address.ip))
        for address in reversed(state.addresses)
        if state.up and address.network.prefixlen < 32
    }
    return replace(state, routes={**made, **state.routes})


def _sourceless(state: DeviceState) -> DeviceState:
    """Return the state without routes whose source is gone, as Linux drops them."""
    left = {address.ip for address in state.addresses}
    return replace(
        state, routes={key: seen for key, seen in state.routes.items() if seen.route.source in {None, *left}}
    )


def _without(addresses: tuple[IPv4Interface, ...], removed: IPv4Interface) -> tuple[IPv4Interface, ...]:
    primary = next((address for address in addresses if address.network == removed.network), None)
    if removed == primary:
        return tuple(address for address in addresses if address.network != removed.network)
    return tuple(address for address in addresses if address != removed)


def _after_peer_step(state: DeviceState, step: AddPeer | UpdatePeer | RemovePeer) -> DeviceState:
    if isinstance(step, RemovePeer):
        return replace(state, peers={key: peer for key, peer in state.peers.items() if key != step.public_key})
    key = step.peer.public_key
    if isinstance(step, AddPeer):
        changed = PeerState(step.peer)
    elif key in state.peers:
        changed = replace(state.peers[key], config=_updated(state.peers[key].config, step))
    else:
        return state  # as in WireGuard: updating a removed peer does not add it
    # An address range has one owner: the peer that gets it takes it from its previous owner.
    others = {
        other: replace(peer, config=replace(peer.config, allowed_ips=peer.config.allowed_ips - step.peer.allowed_ips))
        for other, peer in state.peers.items()
    }
    taken = others if isinstance(step, AddPeer) or "allowed_ips" in step.fields else dict(state.peers)
    return replace(state, peers={**taken, key: changed})


def _updated(config: PeerConfig, step: UpdatePeer) -> PeerConfig:
    wanted = {name: getattr(step.peer, name) for name in step.fields}
    if "allowed_ips" in step.fields and not step.replace_allowed_ips:
        wanted["allowed_ips"] = config.allowed_ips | step.peer.allowed_ips
    return replace(config, **wanted)
