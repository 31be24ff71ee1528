"""The status of the mesh from this node's point of view: map + device + probes + Ray's node table → Status (pure)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address

from msgspec import structs

from meshray.agent.paths.path_in_use import live_peer_towards
from meshray.agent.paths.samples import Measured
from meshray.defaults import DEFAULT_MTU
from meshray.linux.clock import BootSeconds
from meshray.model.meshmap import MeshMap
from meshray.model.node import HEAD, STATIC, Node
from meshray.model.path import PathKind, Transport
from meshray.model.problem import Problem
from meshray.model.ray_state import RayState
from meshray.protocol.status import CoordinatorStatus, NodeStatus, PathStatus, RayStatus, Status, Totals
from meshray.wireguard.config import DeviceState, PeerState


@dataclass(frozen=True)
class Snapshot:
    """Everything that one node knows at one moment.

    Attributes:
        device: None if the tunnel is down.
        ray: Ray's node table by overlay address; None if the head's Ray did not answer.
        known: returns what the parts that manage the paths know of the path to a node.
        expects_ray: whether the mesh runs Ray.
        complaints: failures of other parts (firewall, Ray's supervisor, this node's files).
        silent_s: returns for how long a node has not answered over the overlay, by this node's own probes, seconds;
            None: it answers, or was not probed.
        now: seconds of the boot clock, which also times the handshakes in ``device``.
        wall_clock: unix seconds at the same moment.
        changed: when a node's state in the map last changed, unix seconds; None: before this agent started.
        notices: information for the user that is not a fault.
        last_resources: the resources of a node when Ray last listed it; None: not known.
    """

    me: Node
    mesh_map: MeshMap
    device: DeviceState | None
    measured: Callable[[IPv4Address], Measured]
    ray: Mapping[IPv4Address, RayState] | None
    expects_ray: bool
    coordinator_reachable: bool
    complaints: tuple[Problem, ...]
    now: BootSeconds
    wall_clock: float = 0.0
    changed: Callable[[Node], float | None] = lambda node: None
    notices: tuple[str, ...] = ()
    open: tuple[str, ...] = ()
    exposed: tuple[int, ...] = ()
    unguarded: bool = False
    no_remote: bool = False
    environment: tuple[str, ...] = ()
    known: Callable[[Node], PathStatus] = lambda node: PathStatus(mtu=DEFAULT_MTU)
    silent_s: Callable[[Node], float | None] = lambda node: None
    last_resources: Callable[[Node], Mapping[str, float] | None] = lambda node: None


def build_status(snapshot: Snapshot) -> Status:
    """Return every node with its path and its Ray, and the problems."""
    # The agent's start needs none of the doctor's modules.
    from meshray.doctor.device.facts import MISSING, UP
    from meshray.doctor.health import Known, problems

    mesh_map = snapshot.mesh_map
    nodes = tuple(_node_status(snapshot, node) for node in sorted(mesh_map.nodes.values(), key=lambda node: node.ip))
    status = Status(
        mesh=str(mesh_map.mesh.name),
        revision=mesh_map.revision,
        node=str(snapshot.me.name),
        coordinator=CoordinatorStatus(snapshot.coordinator_reachable),
        nodes=nodes,
        totals=_totals(nodes) if snapshot.ray is not None or not snapshot.expects_ray else Totals(),
        notices=snapshot.notices,
        open=snapshot.open,
        exposed=snapshot.exposed,
        unguarded=snapshot.unguarded,
        no_remote=snapshot.no_remote,
        environment=snapshot.environment,
    )
    known = Known(
        me=snapshot.me,
        mesh_map=mesh_map,
        status=status,
        complaints=snapshot.complaints,
        device_state=UP if snapshot.device is not None else MISSING,
        expects_ray=snapshot.expects_ray,
        ray_answers=snapshot.ray is not None,
        runs_ray=lambda node: _runs_ray(snapshot, node),
        outage=lambda node: snapshot.measured(node.ip).silent,
        silent_s=snapshot.silent_s,
    )
    health = (*snapshot.complaints, *problems(known))
    return structs.replace(status, problems=tuple(problem.text for problem in health), health=health)


def _totals(nodes: Iterable[NodeStatus]) -> Totals:
    alive = [node.ray.resources for node in nodes if node.ray.alive]
    return Totals(
        *(sum(offered.get(name, 0.0) for offered in alive) for name in ("CPU", "GPU", "memory", "object_store_memory"))
    )


def path_to(
    node: Node,
    *,
    me: Node,
    device: DeviceState | None,
    measured: Callable[[IPv4Address], Measured],
    known: Callable[[Node], PathStatus],
    now: BootSeconds,
) -> PathStatus:
    """Return the current path to this node. The arguments are as in `Snapshot`."""
    if node.id == me.id:
        return PathStatus(PathKind.SELF, mtu=device.mtu if device else None)
    peer, kind = live_peer_towards(device, node, now)
    if device is None or peer is None:
        return PathStatus(PathKind.NONE)
    samples, path = measured(node.ip), known(node)
    return structs.replace(
        path,
        kind=kind,
        transport=Transport.WSS if _is_relayed(peer) else Transport.UDP,
        endpoint=str(peer.config.endpoint) if peer.config.endpoint else None,
        rtt_ms=samples.rtt_ms,
        loss=samples.loss,
        queue_ms=samples.queue_ms,
        mtu=device.mtu if path.mtu is None else min(device.mtu, path.mtu),
        handshake_age_s=round(max(0.0, now - (peer.handshake_at or 0.0)), 1),
        rx_bytes=peer.rx_bytes,
        tx_bytes=peer.tx_bytes,
        reason=path.reason if kind == PathKind.HUB else "",
    )


def path_in(snapshot: Snapshot, node: Node) -> PathStatus:
    """Return the path to this node at the time of the snapshot."""
    return path_to(
        node,
        me=snapshot.me,
        device=snapshot.device,
        measured=snapshot.measured,
        known=snapshot.known,
        now=snapshot.now,
    )


def _is_relayed(peer: PeerState) -> bool:
    """Return whether the peer is relayed: a node dials its relay's end on loopback, as the relay at the hub does."""
    endpoint = peer.config.endpoint
    return endpoint is not None and endpoint.ip is not None and endpoint.ip.is_loopback


def _node_status(snapshot: Snapshot, node: Node) -> NodeStatus:
    ray = RayState() if snapshot.ray is None else snapshot.ray.get(node.ip, RayState(alive=False))
    silent = _is_silent(snapshot, node)
    if silent:
        # Ray reports it as ALIVE until its own timeout; its current resources are not known.
        ray = RayState(alive=False if ray.alive is False else None)
    since = _since(snapshot, node, ray, silent=silent)
    return NodeStatus(
        name=str(node.name),
        ip=str(node.ip),
        role=node.role,
        online=node.online,
        path=path_in(snapshot, node),
        ray=_ray_status(snapshot, node, ray, silent=silent) if _runs_ray(snapshot, node) else RayStatus(),
        drained=node.drained,
        down=node.down,
        silent=silent,
        since=round(since, 1) if since is not None else None,
        no_remote=node.no_remote,
        meshray=node.versions.meshray,
        build=node.versions.build,
    )


def _ray_status(snapshot: Snapshot, node: Node, ray: RayState, *, silent: bool) -> RayStatus:
    return RayStatus(
        alive=ray.alive,
        resources=ray.resources,
        used=ray.used,
        last_known=snapshot.last_resources(node) if silent else None,
        ports=snapshot.mesh_map.ports_of(node).to_json(head=HEAD in node.roles),
    )


def _since(snapshot: Snapshot, node: Node, ray: RayState, *, silent: bool) -> float | None:
    """Return when the node's current state began."""
    silent_s = snapshot.silent_s(node) if silent else None
    if silent_s is not None:
        return snapshot.wall_clock - silent_s
    is_ready = node.online and not node.down and not node.drained and not silent and ray.alive is True
    return ray.started if is_ready and ray.started else snapshot.changed(node)


def _is_silent(snapshot: Snapshot, node: Node) -> bool:
    """Return whether the node is silent: by this node's own probes, else by those of the coordinator's node."""
    if node.down or STATIC in node.roles or node.id == snapshot.me.id:
        return False
    return snapshot.silent_s(node) is not None or bool(node.silence)


def _runs_ray(snapshot: Snapshot, node: Node) -> bool:
    return snapshot.expects_ray and bool(node.versions.ray) and STATIC not in node.roles
