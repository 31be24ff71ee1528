"""The picture of the mesh as this node sees it: map + device + probes + Ray's node table → Status (pure)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from meshray.agent.paths.hubs import is_fresh
from meshray.agent.paths.prober import Measured
from meshray.model.meshmap import MeshMap
from meshray.model.node import HUB, STATIC, Node
from meshray.model.path import DIRECT, NONE, SELF, UDP, VIA_HUB, WSS, Path
from meshray.model.status import NodeStatus, RayState, Status
from meshray.settings import DEFAULT_MTU
from meshray.wireguard.device import DeviceState, PeerState


@dataclass(frozen=True)
class View:
    """All that one node knows at one moment.

    Attributes:
        device: None where the tunnel is down.
        ray: Ray's node table by overlay address; None where the head's Ray did not answer.
        why_not_direct: why packets to a node go through the hub.
        throughput: of the path to a node, Mbit/s, sampled once.
        mtu: of the path to a node, bytes.
        expects_ray: the mesh runs Ray at all.
        complaints: what other parts (firewall, Ray's supervisor) could not do, one sentence each.
        now: seconds of the boot clock, by which ``device`` tells the handshakes too.
    """

    me: Node
    mesh_map: MeshMap
    device: DeviceState | None
    measured: Callable[[IPv4Address], Measured]
    ray: Mapping[IPv4Address, RayState] | None
    expects_ray: bool
    coordinator_reachable: bool
    complaints: tuple[str, ...]
    now: float
    why_not_direct: Callable[[Node], str] = lambda node: ""
    throughput: Callable[[IPv4Address], float | None] = lambda ip: None
    mtu: Callable[[IPv4Address], int] = lambda ip: DEFAULT_MTU


def build_status(view: View) -> Status:
    """Every node with its path and its Ray, and what is not as it should be."""
    nodes = tuple(_node_status(view, node) for node in sorted(view.mesh_map.nodes.values(), key=lambda node: node.ip))
    return Status(
        mesh=view.mesh_map.mesh.name,
        revision=view.mesh_map.revision,
        node=view.me.name,
        coordinator_reachable=view.coordinator_reachable,
        nodes=nodes,
        problems=(*view.complaints, *_problems(view, nodes)),
    )


def path_to(view: View, node: Node) -> Path:
    """How packets to this node travel now."""
    if node.id == view.me.id:
        return Path(SELF, mtu=view.device.mtu if view.device else None)
    peer, kind = _peer_towards(view, node)
    if view.device is None or peer is None or not is_fresh(peer.last_handshake, view.now):
        return Path(NONE)
    seen = view.measured(node.ip)
    return Path(
        kind=kind,
        transport=WSS if _is_relayed(view, peer) else UDP,
        endpoint=peer.config.endpoint,
        rtt_ms=seen.rtt_ms,
        loss=seen.loss,
        mtu=min(view.device.mtu, view.mtu(node.ip)),
        handshake_age_s=round(max(0.0, view.now - (peer.last_handshake or 0.0)), 1),
        rx_bytes=peer.rx_bytes,
        tx_bytes=peer.tx_bytes,
        throughput_mbit_s=view.throughput(node.ip),
        reason=view.why_not_direct(node) if kind == VIA_HUB else "",
    )


def _peer_towards(view: View, node: Node) -> tuple[PeerState | None, str]:
    """The WireGuard peer that carries packets to this node: the node itself, else the hub."""
    if view.device is None:
        return None, NONE
    own = view.device.peers.get(node.public_key)
    if own is not None and IPv4Network(node.ip) in own.config.allowed_ips:
        return own, DIRECT  # no prefix is longer
    # As WireGuard does it: the peer with the longest prefix that holds the address.
    ways = [
        (network.prefixlen, key)
        for key, peer in view.device.peers.items()
        for network in peer.config.allowed_ips
        if node.ip in network
    ]
    if not ways:
        return None, NONE
    key = max(ways)[1]
    return view.device.peers[key], DIRECT if key == node.public_key else VIA_HUB


def _is_relayed(view: View, peer: PeerState) -> bool:
    """A node dials its relay's end on loopback, and so does the relay at the hub: nobody else is seen there."""
    endpoint = peer.config.endpoint
    return endpoint is not None and endpoint.ip is not None and endpoint.ip.is_loopback


def _node_status(view: View, node: Node) -> NodeStatus:
    ray = RayState() if view.ray is None else view.ray.get(node.ip, RayState(alive=False))
    return NodeStatus(
        name=node.name,
        ip=node.ip,
        role=node.role,
        online=node.online,
        path=path_to(view, node),
        ray=ray if _runs_ray(view, node) else RayState(),
        drained=node.drained,
        down=node.down,
    )


def _runs_ray(view: View, node: Node) -> bool:
    return view.expects_ray and bool(node.versions.ray) and STATIC not in node.roles


def _problems(view: View, nodes: Iterable[NodeStatus]) -> Iterable[str]:
    if not view.coordinator_reachable:
        yield "the coordinator does not answer; this is the last map that it sent"
    if view.device is None:
        yield "the tunnel is down"
        return
    by_name = {str(node.name): node for node in view.mesh_map.nodes.values()}
    for status in nodes:
        node = by_name[status.name]
        if not (node.online or HUB in node.roles) or STATIC in node.roles:
            continue
        if status.path.kind == NONE:
            yield f"{status.name} ({status.ip}): no WireGuard handshake"
        elif status.path.kind != SELF and view.measured(status.ip).silent:
            yield f"{status.name} ({status.ip}): no answer over the overlay"
        elif _runs_ray(view, node) and status.ray.alive is False and not node.drained:
            yield f"{status.name} ({status.ip}): not ALIVE in Ray"
    if view.expects_ray and view.ray is None:
        yield "the Ray head does not answer"
