"""Netlink's values and ours, without a kernel: messages are pyroute2's own, encoded and decoded again."""

from __future__ import annotations

from ipaddress import IPv4Network
from typing import Any

from meshray.model.address import Endpoint
from meshray.model.keys import PresharedKey, PrivateKey, PublicKey
from meshray.wireguard.config import PeerConfig
from meshray.wireguard.kernel import device_values, set_arguments
from meshray.wireguard.plan import AddPeer, RemovePeer, SetListenPort, SetPrivateKey, UpdatePeer

PRIVATE = PrivateKey(b"\x0c" * 32)
PEER = PeerConfig(
    PublicKey(b"\x0a" * 32),
    frozenset([IPv4Network("10.99.0.2/32"), IPv4Network("10.99.128.2/32")]),
    PresharedKey(b"\x0b" * 32),
    Endpoint("203.0.113.7", 51888),
    20,
)


class Attributes:
    """The part of pyroute2's message that is read."""

    def __init__(self, **values: Any) -> None:
        self._values = values

    def get_attr(self, name: str) -> Any:
        return self._values.get(name)


def _message(*peers: Attributes, key: bytes | None = None, port: int | None = None) -> Attributes:
    return Attributes(WGDEVICE_A_PRIVATE_KEY=key, WGDEVICE_A_LISTEN_PORT=port, WGDEVICE_A_PEERS=list(peers))


def _first_half() -> Attributes:
    return Attributes(
        WGPEER_A_PUBLIC_KEY={"key": b"\x0a" * 32, "value": str(PEER.public_key).encode()},
        WGPEER_A_PRESHARED_KEY={"key": b"\x0b" * 32, "value": PresharedKey(b"\x0b" * 32).reveal().encode()},
        WGPEER_A_ENDPOINT={"addr": "203.0.113.7", "port": 51888},
        WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL=20,
        WGPEER_A_LAST_HANDSHAKE_TIME={"tv_sec": 1700000000, "tv_nsec": 500000000},
        WGPEER_A_RX_BYTES=148,
        WGPEER_A_TX_BYTES=92,
        WGPEER_A_ALLOWEDIPS=[{"addr": "10.99.0.2/32"}, {"addr": "fd00::/64"}],
    )


def _second_half() -> Attributes:
    return Attributes(
        WGPEER_A_PUBLIC_KEY=str(PEER.public_key).encode(), WGPEER_A_ALLOWEDIPS=[{"addr": "10.99.128.2/32"}]
    )


def test_a_peer_that_continues_in_the_next_message_is_one_peer() -> None:
    first = _message(_first_half(), key=PRIVATE.reveal().encode(), port=51888)
    private, port, peers = device_values([first, _message(_second_half())])
    assert (private, port, list(peers)) == (PRIVATE, 51888, [PEER.public_key])
    peer = peers[PEER.public_key]
    assert peer.config == PEER
    assert (peer.last_handshake, peer.rx_bytes, peer.tx_bytes) == (1700000000.5, 148, 92)


def test_all_zeros_means_no_key_and_no_handshake() -> None:
    quiet = Attributes(
        WGPEER_A_PUBLIC_KEY=str(PEER.public_key).encode(),
        WGPEER_A_PRESHARED_KEY=PrivateKey(bytes(32)).reveal().encode(),
        WGPEER_A_LAST_HANDSHAKE_TIME={"tv_sec": 0, "tv_nsec": 0},
    )
    private, port, peers = device_values([_message(quiet)])
    assert (private, port) == (None, 0)
    state = peers[PEER.public_key]
    assert (state.config, state.last_handshake) == (PeerConfig(PEER.public_key, frozenset()), None)


def test_steps_become_arguments() -> None:
    key = str(PEER.public_key)
    assert set_arguments(SetPrivateKey(PRIVATE)) == {"private_key": PRIVATE.reveal()}
    assert set_arguments(SetListenPort(51888)) == {"listen_port": 51888}
    assert set_arguments(RemovePeer(PEER.public_key)) == {"peer": {"public_key": key, "remove": True}}
    assert set_arguments(AddPeer(PEER))["peer"] == {
        "public_key": key,
        "update_only": False,
        "replace_allowed_ips": True,
        "allowed_ips": ["10.99.0.2/32", "10.99.128.2/32"],
        "preshared_key": PresharedKey(b"\x0b" * 32).reveal(),
        "endpoint_addr": "203.0.113.7",
        "endpoint_port": 51888,
        "persistent_keepalive": 20,
    }


def test_an_update_sends_all_allowed_ips_but_only_the_named_fields() -> None:
    # pyroute2 up to 0.9.1 replaces them at every update, whatever the flags are.
    assert set_arguments(UpdatePeer(PEER, ("keepalive_s",)))["peer"] == {
        "public_key": str(PEER.public_key),
        "update_only": True,
        "replace_allowed_ips": False,
        "allowed_ips": ["10.99.0.2/32", "10.99.128.2/32"],
        "persistent_keepalive": 20,
    }
