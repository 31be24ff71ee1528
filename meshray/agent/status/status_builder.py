"""The status of the mesh from this node's point of view: map + device + probes + Ray's node table → Status (pure)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address

from meshray.agent.paths.live_peer import live_peer_towards
from meshray.agent.paths.samples import Measured
from meshray.client.coordinator import ON_THE_COPY
from meshray.defaults import DEFAULT_MTU, INTERFACE
from meshray.firewall.advice import SWITCH, forwarding_fix
from meshray.linux.clock import BootSeconds
from meshray.model.meshmap import MeshMap
from meshray.model.node import COORDINATOR, HEAD, HUB, HUB_FORWARDS, ONE_IDENTITY, STATIC, Node
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
        why_not_direct: returns why packets to a node go through the hub.
        mtu: returns the MTU of the path to a node, bytes.
        expects_ray: whether the mesh runs Ray.
        complaints: failures of other parts (firewall, Ray's supervisor, this node's files).
        silent_s: returns for how long a node has not answered over the overlay, by this node's own probes, seconds;
            None: it answers, or was not probed.
        now: seconds of the boot clock, which also times the handshakes in ``device``.
        wall_clock: unix seconds at the same moment.
        changed: when a node's state in the map last changed, unix seconds; None: before this agent started.
        notices: information for the user that is not a fault.
        last_offer: the resources of a node when Ray last listed it; None: not known.
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
    unguarded: bool = False
    environment: tuple[str, ...] = ()
    why_not_direct: Callable[[Node], str] = lambda node: ""
    silent_s: Callable[[Node], float | None] = lambda node: None
    mtu: Callable[[IPv4Address], int] = lambda ip: DEFAULT_MTU
    last_offer: Callable[[Node], Mapping[str, float] | None] = lambda node: None


def build_status(snapshot: Snapshot) -> Status:
    """Return every node with its path and its Ray, and the problems."""
    mesh_map = snapshot.mesh_map
    nodes = tuple(_node_status(snapshot, node) for node in sorted(mesh_map.nodes.values(), key=lambda node: node.ip))
    health = (*snapshot.complaints, *_problems(snapshot, nodes))
    return Status(
        mesh=str(mesh_map.mesh.name),
        revision=mesh_map.revision,
        node=str(snapshot.me.name),
        coordinator=CoordinatorStatus(snapshot.coordinator_reachable),
        nodes=nodes,
        totals=_totals(nodes) if snapshot.ray is not None or not snapshot.expects_ray else Totals(),
        problems=tuple(problem.text for problem in health),
        health=health,
        notices=snapshot.notices,
        open=snapshot.open,
        unguarded=snapshot.unguarded,
        environment=snapshot.environment,
    )


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
    mtu: Callable[[IPv4Address], int],
    why_not_direct: Callable[[Node], str],
    now: BootSeconds,
) -> PathStatus:
    """Return the current path to this node. The arguments are as in `Snapshot`."""
    if node.id == me.id:
        return PathStatus(PathKind.SELF, mtu=device.mtu if device else None)
    peer, kind = live_peer_towards(device, node, now)
    if device is None or peer is None:
        return PathStatus(PathKind.NONE)
    seen = measured(node.ip)
    return PathStatus(
        kind=kind,
        transport=Transport.WSS if _is_relayed(peer) else Transport.UDP,
        endpoint=str(peer.config.endpoint) if peer.config.endpoint else None,
        rtt_ms=seen.rtt_ms,
        loss=seen.loss,
        mtu=min(device.mtu, mtu(node.ip)),
        handshake_age_s=round(max(0.0, now - (peer.heard or 0.0)), 1),
        rx_bytes=peer.rx_bytes,
        tx_bytes=peer.tx_bytes,
        reason=why_not_direct(node) if kind == PathKind.HUB else "",
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
        path=path_to(
            node,
            me=snapshot.me,
            device=snapshot.device,
            measured=snapshot.measured,
            mtu=snapshot.mtu,
            why_not_direct=snapshot.why_not_direct,
            now=snapshot.now,
        ),
        ray=_ray_status(snapshot, node, ray, silent=silent) if _runs_ray(snapshot, node) else RayStatus(),
        drained=node.drained,
        down=node.down,
        silent=silent,
        since=round(since, 1) if since is not None else None,
    )


def _ray_status(snapshot: Snapshot, node: Node, ray: RayState, *, silent: bool) -> RayStatus:
    return RayStatus(
        alive=ray.alive,
        resources=ray.resources,
        used=ray.used,
        last_known=snapshot.last_offer(node) if silent else None,
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


def _problems(snapshot: Snapshot, nodes: Iterable[NodeStatus]) -> Iterable[Problem]:
    me = str(snapshot.me.name)
    yield from _faults(snapshot)
    # If another machine has its connection, the coordinator does answer.
    taken_over = any(problem.code == ONE_IDENTITY for problem in snapshot.complaints)
    if not snapshot.coordinator_reachable and not taken_over:
        yield Problem(
            "coordinator_reachable",
            "the coordinator does not answer; this is the last map that it sent",
            me,
            f"{_on_coordinator(snapshot)}meshray status; here: meshray doctor. Where that machine has another address "
            "now, here: meshray up --coordinator HOST:PORT",
        )
    if snapshot.device is None:
        yield Problem("device_up", "the tunnel is down", me, "meshray down; meshray up")
        return
    by_name = {str(node.name): node for node in snapshot.mesh_map.nodes.values()}
    is_cut_off = any(status.silent and COORDINATOR in by_name[status.name].roles for status in nodes)
    for status in nodes:
        node = by_name[status.name]
        if status.silent or (node.ended and not node.online):
            # A node that hears nothing from the coordinator's node cannot know which others are away.
            if not is_cut_off or COORDINATOR in node.roles:
                yield _lost(snapshot, node)
        elif (node.online or HUB in node.roles) and STATIC not in node.roles:
            yield from _problems_of(snapshot, status, node)
    if snapshot.expects_ray and snapshot.ray is None:
        head = snapshot.mesh_map.head
        name = str(head.name) if head is not None else ""
        there = "" if name in ("", me) else f"on {name}: "
        yield Problem("ray_head_answers", "the Ray head does not answer", name or None, f"{there}meshray logs ray")


def _problems_of(snapshot: Snapshot, status: NodeStatus, node: Node) -> Iterable[Problem]:
    """Return the problems of a node that answers."""
    me = str(snapshot.me.name)
    named = f"{status.name} ({status.ip})"
    there = "" if status.name == me else f"on {status.name}: "
    if status.path.kind == PathKind.NONE:
        yield Problem("handshake_fresh", f"{named}: no WireGuard handshake", status.name, "meshray doctor")
    elif status.path.kind != PathKind.SELF and snapshot.measured(node.ip).silent:
        yield Problem("peer_answers", f"{named}: no answer over the overlay", status.name, "meshray doctor")
    elif _runs_ray(snapshot, node) and status.ray.alive is False and not node.drained:
        code = "ray_head_answers" if HEAD in node.roles else "ray_alive"
        yield Problem(code, f"{named}: not ALIVE in Ray", status.name, f"{there}meshray logs ray")


def _lost(snapshot: Snapshot, node: Node) -> Problem:
    """Return whether the node is lost: it does not answer, or its agent was killed, although it should be up."""
    named = f"{node.name} ({node.ip})"
    fix = f"on {node.name}: meshray up; if it is gone for good: meshray node rm {node.name}"
    if not _is_silent(snapshot, node):
        return Problem(
            "node_answers", f"{named}: its agent is no longer connected, but its machine answers", node.name, fix
        )
    quiet_s = snapshot.silent_s(node)
    since = f", for {quiet_s:.0f} s" if quiet_s is not None else ""
    why = "; its processes were killed" if node.ended and not node.online else ""
    return Problem("node_answers", f"{named} does not answer over the overlay{since}{why}", node.name, fix)


def _faults(snapshot: Snapshot) -> Iterable[Problem]:
    """Return the faults of nodes in the map.

    An identity in use twice concerns that node and the coordinator's; a fault of a hub concerns all nodes whose packets
    it forwards. This node's own reports are among its complaints.
    """
    reported = {(problem.code, problem.node) for problem in snapshot.complaints}
    for node in snapshot.mesh_map.nodes.values():
        for code, detail in node.faults.items():
            name, mine = str(node.name), node.id == snapshot.me.id
            if (code, name) in reported or not (node.online or mine):
                continue
            if code == ONE_IDENTITY and (mine or COORDINATOR in snapshot.me.roles):
                text = f"two machines use the identity of {name}: was its disk cloned? They connect from {detail}"
                yield Problem(ONE_IDENTITY, text, name, ON_THE_COPY)
            elif code == HUB_FORWARDS and not mine:
                text = f"the hub {name} does not forward between nodes: {detail}"
                switch = detail.startswith(SWITCH)
                fix = forwarding_fix(INTERFACE, "1") if switch else "meshray status shows the command"
                yield Problem(HUB_FORWARDS, text, name, f"on {name}: {fix}")


def _on_coordinator(snapshot: Snapshot) -> str:
    node = snapshot.mesh_map.coordinator
    return "" if node is None or node.id == snapshot.me.id else f"on {node.name}: "
