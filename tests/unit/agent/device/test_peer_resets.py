"""Peers that need a handshake at once are added again; peers in the middle of a handshake are left alone."""

from __future__ import annotations

from dataclasses import replace

from meshray.agent.device.peer_resets import PeerResets
from meshray.model.keys import PublicKey
from meshray.wireguard.config import DeviceState, PeerConfig, PeerState
from meshray.wireguard.plan import RemovePeer

SILENT, SPEAKS, OTHER = (PublicKey(bytes([number]) * 32) for number in (1, 2, 3))
DEVICE = DeviceState(
    private_key=None,
    listen_port=51888,
    addresses=(),
    mtu=1420,
    up=True,
    peers={key: PeerState(PeerConfig(key, frozenset())) for key in (SILENT, SPEAKS, OTHER)},
)
HEARD = replace(DEVICE, peers={**DEVICE.peers, SPEAKS: replace(DEVICE.peers[SPEAKS], rx_bytes=148)})


def test_a_peer_is_reset_once_whatever_it_sent() -> None:
    resets = PeerResets()
    resets.reset([SPEAKS])
    assert resets.take(HEARD, may_change_port=False) == [RemovePeer(SPEAKS)]
    assert resets.take(HEARD, may_change_port=False) == []


def test_only_silent_peers_are_reset_a_second_time() -> None:
    resets = PeerResets()
    resets.reset_silent([SILENT, SPEAKS])
    assert resets.take(HEARD, may_change_port=False) == [RemovePeer(SILENT)]
    assert resets.take(HEARD, may_change_port=False) == []
