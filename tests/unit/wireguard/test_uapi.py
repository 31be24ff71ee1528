"""The engine's text: requests as the protocol requires them, answers as wireguard-go gives them."""

from __future__ import annotations

import errno
from ipaddress import IPv4Network

import pytest

from meshray.errors import MeshrayError
from meshray.model.address import Endpoint
from meshray.model.keys import PresharedKey, PrivateKey, PublicKey
from meshray.wireguard import uapi
from meshray.wireguard.config import PeerConfig
from meshray.wireguard.plan import AddPeer, RemovePeer, SetListenPort, SetPrivateKey, UpdatePeer, WireGuardStep

KEY = PublicKey(b"\x0a" * 32)
PEER = PeerConfig(
    KEY,
    frozenset([IPv4Network("10.99.0.2/32"), IPv4Network("10.99.128.2/32")]),
    PresharedKey(b"\x0b" * 32),
    Endpoint("2001:db8::7", 51888),
    20,
)
ANSWER = f"""private_key={"0c" * 32}
listen_port=51888
fwmark=1
public_key={"0a" * 32}
preshared_key={"0b" * 32}
protocol_version=1
endpoint=[2001:db8:0::7]:51888
last_handshake_time_sec=1700000000
last_handshake_time_nsec=500000000
tx_bytes=92
rx_bytes=148
persistent_keepalive_interval=20
allowed_ip=10.99.0.2/32
allowed_ip=10.99.128.2/32
allowed_ip=fd00::/64
public_key={"0d" * 32}
preshared_key={"00" * 32}
last_handshake_time_sec=0
last_handshake_time_nsec=0
tx_bytes=0
rx_bytes=0
persistent_keepalive_interval=0
errno=0

"""


def test_an_answer_becomes_state() -> None:
    state = uapi.parse(ANSWER)
    assert (state.private_key, state.listen_port) == (PrivateKey(b"\x0c" * 32), 51888)
    peer, quiet = state.peers.values()
    assert peer.config == PEER
    assert (peer.last_handshake, peer.rx_bytes, peer.tx_bytes) == (1700000000.5, 148, 92)
    assert quiet.config == PeerConfig(PublicKey(b"\x0d" * 32), frozenset())
    assert quiet.last_handshake is None


def test_a_new_engine_has_neither_key_nor_peers() -> None:
    state = uapi.parse(f"private_key={'00' * 32}\nerrno=0\n\n")
    assert (state.private_key, state.listen_port, state.peers) == (None, 0, {})


@pytest.mark.parametrize(
    ("step", "lines"),
    [
        (SetPrivateKey(PrivateKey(b"\x0c" * 32)), [f"private_key={'0c' * 32}"]),
        (SetListenPort(51888), ["listen_port=51888"]),
        (RemovePeer(KEY), [f"public_key={'0a' * 32}", "remove=true"]),
        (
            AddPeer(PEER),
            [
                f"public_key={'0a' * 32}",
                "replace_allowed_ips=true",
                f"preshared_key={'0b' * 32}",
                "endpoint=[2001:db8::7]:51888",
                "persistent_keepalive_interval=20",
                "allowed_ip=10.99.0.2/32",
                "allowed_ip=10.99.128.2/32",
            ],
        ),
        (
            UpdatePeer(PeerConfig(KEY, frozenset()), ("preshared_key", "allowed_ips"), replace_allowed_ips=True),
            [
                f"public_key={'0a' * 32}",
                "update_only=true",
                "replace_allowed_ips=true",
                f"preshared_key={'00' * 32}",
            ],
        ),
        (
            UpdatePeer(PEER, ("keepalive_s",)),
            [f"public_key={'0a' * 32}", "update_only=true", "persistent_keepalive_interval=20"],
        ),
    ],
)
def test_a_step_becomes_a_request(step: WireGuardStep, lines: list[str]) -> None:
    assert uapi.request(step) == "\n".join(["set=1", *lines, "", ""])


def test_an_error_number_becomes_an_os_error() -> None:
    with pytest.raises(OSError, match="in use") as caught:
        uapi.check(f"errno=-{errno.EADDRINUSE}\n\n")
    assert caught.value.errno == errno.EADDRINUSE
    with pytest.raises(OSError, match="Invalid"):
        uapi.parse("errno=22\n\n")


def test_half_an_answer_does_not_count() -> None:
    with pytest.raises(MeshrayError, match="is incomplete"):
        uapi.parse("listen_port=51888\n")
