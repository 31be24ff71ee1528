"""WireGuard in the kernel, through generic netlink (pyroute2).

    device = KernelDevice("meshray0", home)

Values of netlink are turned into ours and back by small functions without I/O, which the unit tests cover.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, ip_address, ip_network
from typing import TYPE_CHECKING, Any

from meshray.linux.clock import UnixSeconds
from meshray.linux.pyroute2_lazy import allow_submodule_imports
from meshray.model.address import Endpoint
from meshray.model.keys import KEY_BYTES, PresharedKey, PrivateKey, PublicKey
from meshray.wireguard.config import PeerConfig, PeerState, WireGuardState
from meshray.wireguard.interface import Interface, InterfaceTable
from meshray.wireguard.linux_device import LinuxDevice
from meshray.wireguard.plan import AddPeer, RemovePeer, SetListenPort, SetPrivateKey, UpdatePeer, WireGuardStep
from meshray.wireguard.unmanaged import keep_unmanaged

if TYPE_CHECKING:
    from pyroute2.netlink.generic.wireguard import WireGuard

#: The link type, as in `ip link add type wireguard`.
INTERFACE_KIND = "wireguard"
#: All zeros means "no key" in both directions.
_NO_KEY = bytes(KEY_BYTES)


class KernelDevice(LinuxDevice):
    """The kernel's WireGuard as a `meshray.wireguard.device.Device`."""

    kind = "kernel"

    def _is_ours(self, interface: Interface) -> bool:
        return interface.kind == INTERFACE_KIND and interface.alias == self._mark

    def _create(self, interfaces: InterfaceTable) -> None:
        keep_unmanaged(self.name)
        interfaces.create(self.name, INTERFACE_KIND)
        interface = interfaces.find(self.name)
        if interface is not None:
            interfaces.set_alias(interface, self._mark)

    def _configure(self, interfaces: InterfaceTable, step: WireGuardStep) -> None:
        self._require_interface(interfaces)
        with _wireguard() as wireguard:
            wireguard.set(self.name, **set_arguments(step))

    def _read_wireguard(self) -> WireGuardState:
        with _wireguard() as wireguard:
            return device_values(wireguard.info(self.name))

    def _stop(self) -> None:
        """Do nothing: the kernel's WireGuard ends with its interface."""


def _wireguard() -> WireGuard:
    allow_submodule_imports()
    from pyroute2.netlink.generic.wireguard import WireGuard

    return WireGuard()


def set_arguments(step: WireGuardStep) -> dict[str, Any]:
    """Return the arguments of `WireGuard.set` that carry out the step."""
    match step:
        case SetPrivateKey(key):
            return {"private_key": key.reveal()}
        case SetListenPort(port):
            return {"listen_port": port}
        case RemovePeer(public_key):
            return {"peer": {"public_key": str(public_key), "remove": True}}
        case AddPeer(peer):
            fields = ("preshared_key", "endpoint", "keepalive_s")
            return {"peer": _peer_arguments(peer, fields, update_only=False, replace=True)}
        case UpdatePeer(peer, fields, replace_allowed_ips):
            return {"peer": _peer_arguments(peer, fields, update_only=True, replace=replace_allowed_ips)}


def _peer_arguments(peer: PeerConfig, fields: Sequence[str], *, update_only: bool, replace: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "public_key": str(peer.public_key),
        "update_only": update_only,
        "replace_allowed_ips": replace,
        # All of them, always: pyroute2 up to 0.9.1 knows neither flag and replaces them with those given, so an update
        # of the endpoint alone would leave the peer without any.
        "allowed_ips": [str(network) for network in sorted(peer.allowed_ips)],
    }
    if "preshared_key" in fields:
        secret = peer.preshared_key.raw if peer.preshared_key else _NO_KEY
        arguments["preshared_key"] = b64encode(secret).decode("ascii")
    if "endpoint" in fields and peer.endpoint is not None:
        # pyroute2 does not carry a link-local zone.
        arguments["endpoint_addr"] = peer.endpoint.host.partition("%")[0]
        arguments["endpoint_port"] = peer.endpoint.port
    if "keepalive_s" in fields:
        arguments["persistent_keepalive"] = peer.keepalive_s
    return arguments


def device_values(messages: Iterable[Any]) -> WireGuardState:
    """Return the state in the messages of one dump.

    A dump of many peers comes in several messages, and a peer with many allowed IPs continues in the next one
    (WG_CMD_GET_DEVICE of linux/wireguard.h).
    """
    private: PrivateKey | None = None
    port = 0
    peers: dict[PublicKey, PeerState] = {}
    for message in messages:
        raw = _key(message.get_attr("WGDEVICE_A_PRIVATE_KEY"))
        private = PrivateKey(raw) if raw != _NO_KEY else private
        port = message.get_attr("WGDEVICE_A_LISTEN_PORT") or port
        for attributes in message.get_attr("WGDEVICE_A_PEERS") or ():
            peer = _peer(attributes)
            peers[peer.config.public_key] = _joined(peers.get(peer.config.public_key), peer)
    return WireGuardState(private, port, peers)


def _joined(first: PeerState | None, rest: PeerState) -> PeerState:
    """Return a peer with its continuation, which holds the peer's key and further allowed IPs only."""
    if first is None:
        return rest
    config = first.config
    allowed = config.allowed_ips | rest.config.allowed_ips
    joined = PeerConfig(config.public_key, allowed, config.preshared_key, config.endpoint, config.keepalive_s)
    return PeerState(joined, first.last_handshake, first.rx_bytes, first.tx_bytes)


def _peer(attributes: Any) -> PeerState:
    preshared = _key(attributes.get_attr("WGPEER_A_PRESHARED_KEY"))
    address = attributes.get_attr("WGPEER_A_ENDPOINT")
    handshake = attributes.get_attr("WGPEER_A_LAST_HANDSHAKE_TIME")
    seconds = handshake["tv_sec"] + handshake["tv_nsec"] / 1e9 if handshake else 0.0
    networks = (ip_network(entry["addr"]) for entry in attributes.get_attr("WGPEER_A_ALLOWEDIPS") or ())
    return PeerState(
        PeerConfig(
            PublicKey(_key(attributes.get_attr("WGPEER_A_PUBLIC_KEY"))),
            # meshray routes IPv4 only; an IPv6 range that a user set by hand is ignored.
            frozenset(network for network in networks if isinstance(network, IPv4Network)),
            preshared_key=PresharedKey(preshared) if preshared != _NO_KEY else None,
            endpoint=Endpoint(str(ip_address(address["addr"])), address["port"]) if address else None,
            keepalive_s=attributes.get_attr("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL") or 0,
        ),
        last_handshake=UnixSeconds(seconds) if seconds else None,
        rx_bytes=attributes.get_attr("WGPEER_A_RX_BYTES") or 0,
        tx_bytes=attributes.get_attr("WGPEER_A_TX_BYTES") or 0,
    )


def _key(value: Any) -> bytes:
    """Return the key that pyroute2 gives as base64 in bytes, or as a mapping that holds them; None if there is none."""
    if isinstance(value, dict):
        value = value.get("value")
    return b64decode(value) if value else _NO_KEY
