"""Find the WireGuard peer that carries packets to a node now (pure)."""

from __future__ import annotations

from ipaddress import IPv4Network

from meshray.linux.clock import BootSeconds
from meshray.model.node import Node
from meshray.model.path import PathKind
from meshray.wireguard.config import DeviceState, PeerState, is_fresh


def live_peer_towards(device: DeviceState | None, node: Node, now: BootSeconds) -> tuple[PeerState | None, PathKind]:
    """Return the WireGuard peer that carries packets to this node, and the path kind; (None, NONE) if none does."""
    peer, kind = _peer_towards(device, node)
    return (peer, kind) if peer is not None and is_fresh(peer.handshake_at, now) else (None, PathKind.NONE)


def _peer_towards(device: DeviceState | None, node: Node) -> tuple[PeerState | None, PathKind]:
    """Return the WireGuard peer that carries packets to this node: the node itself, else the hub."""
    if device is None:
        return None, PathKind.NONE
    own = device.peers.get(node.public_key)
    if own is not None and IPv4Network(node.ip) in own.config.allowed_ips:
        return own, PathKind.DIRECT  # No prefix is longer.
    # As in WireGuard: the peer with the longest prefix that contains the address.
    candidates = [
        (network.prefixlen, key)
        for key, peer in device.peers.items()
        for network in peer.config.allowed_ips
        if node.ip in network
    ]
    if not candidates:
        return None, PathKind.NONE
    key = max(candidates)[1]
    return device.peers[key], PathKind.DIRECT if key == node.public_key else PathKind.HUB
