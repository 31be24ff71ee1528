"""The problems in status: those that an agent knows without measuring, by the doctor's criteria (pure).

The predicates are those of the doctor's checks, see `meshray.doctor.verdicts`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from meshray.client.coordinator import ON_THE_COPY
from meshray.defaults import INTERFACE
from meshray.doctor import verdicts
from meshray.doctor.report import FAIL
from meshray.doctor.verdicts import Presence
from meshray.model.forwarding_switch import SWITCH, forwarding_fix
from meshray.model.meshmap import MeshMap
from meshray.model.node import COORDINATOR, HEAD, HUB, HUB_FORWARDS, ONE_IDENTITY, Node
from meshray.model.problem import Problem
from meshray.protocol.status import NodeStatus, RayStatus, Status


@dataclass(frozen=True)
class Known:
    """What one agent knows.

    Attributes:
        status: its status, without problems.
        complaints: the failures of its node's parts.
        device_state: a state of `meshray.doctor.device.facts`.
        expects_ray: whether the mesh runs Ray.
        ray_answers: whether Ray's head answered.
        runs_ray: returns whether Ray runs on a node.
        outage: returns whether the last probes of a node were all lost.
        silent_s: returns for how long a node has not answered, by this node's own probes, seconds; None: it answers, or
            was not probed.
    """

    me: Node
    mesh_map: MeshMap
    status: Status
    complaints: tuple[Problem, ...]
    device_state: str
    expects_ray: bool
    ray_answers: bool
    runs_ray: Callable[[Node], bool]
    outage: Callable[[Node], bool]
    silent_s: Callable[[Node], float | None]


def problems(known: Known) -> Iterable[Problem]:
    """Return the problems of the mesh, besides the complaints."""
    me = str(known.me.name)
    yield from _faults(known)
    # If another machine has its connection, the coordinator does answer.
    taken_over = any(problem.code == ONE_IDENTITY for problem in known.complaints)
    if not verdicts.coordinator_reachable(known.status) and not taken_over:
        yield Problem(
            "coordinator_reachable",
            "the coordinator does not answer; this is the last map that it sent",
            me,
            f"{_on_node(known, known.mesh_map.coordinator)}meshray status; here: meshray doctor. If that machine has a "
            "new address, here: meshray up --coordinator HOST:PORT",
        )
    if verdicts.device_is_faulty(known.device_state):
        yield Problem("device_up", "the tunnel is down", me, "meshray down; meshray up")
        return
    by_name = {str(node.name): node for node in known.mesh_map.nodes.values()}
    is_cut_off = any(status.silent and COORDINATOR in by_name[status.name].roles for status in known.status.nodes)
    for status in known.status.nodes:
        node = by_name[status.name]
        present = _presence(status, node)
        if present in (Presence.AGENT_GONE, Presence.LOST):
            # A node that hears nothing from the coordinator's node cannot know which others are away.
            if not is_cut_off or COORDINATOR in node.roles:
                yield _lost(known, node, present)
        elif verdicts.should_have_path(status, is_hub=HUB in node.roles):
            yield from _problems_of(known, status, node)
    if known.expects_ray and verdicts.ray_listed(RayStatus(known.ray_answers or None), head_answers=True) == FAIL:
        head = known.mesh_map.head
        fix = f"{_on_node(known, head)}meshray logs ray"
        yield Problem("ray_head_answers", "the Ray head does not answer", head.name if head else None, fix)


def _presence(status: NodeStatus, node: Node) -> Presence:
    was_killed = node.ended and not node.online
    replies = not (status.silent or was_killed)
    return verdicts.presence(replies=replies, down=status.down, machine_answers=not status.silent)


def _problems_of(known: Known, status: NodeStatus, node: Node) -> Iterable[Problem]:
    """Return the problems of a node that answers."""
    named = f"{status.name} ({status.ip})"
    if not verdicts.handshake_is_fresh(status.path):
        yield Problem("handshake_fresh", f"{named}: no WireGuard handshake", status.name, "meshray doctor")
    elif verdicts.answer(status.path, outage=known.outage(node)) == FAIL:
        yield Problem("peer_answers", f"{named}: no answer over the overlay", status.name, "meshray doctor")
    elif known.runs_ray(node) and not node.drained and _ray(status.ray) == FAIL:
        code = "ray_head_answers" if HEAD in node.roles else "ray_alive"
        yield Problem(code, f"{named}: not ALIVE in Ray", status.name, f"{_on_node(known, node)}meshray logs ray")


def _ray(ray: RayStatus) -> str:
    return verdicts.ray_listed(ray, head_answers=ray.alive is not None)


def _lost(known: Known, node: Node, present: Presence) -> Problem:
    """Return the problem of a node that does not answer, or whose agent was killed, although it should be up."""
    named = f"{node.name} ({node.ip})"
    fix = f"on {node.name}: meshray up; if it is gone for good: meshray node rm {node.name}"
    if present is Presence.AGENT_GONE:
        return Problem(
            "node_answers", f"{named}: its agent is no longer connected, but its machine answers", node.name, fix
        )
    silence_s = known.silent_s(node)
    since = f", for {silence_s:.0f} s" if silence_s is not None else ""
    cause = "; its processes were killed" if node.ended and not node.online else ""
    return Problem("node_answers", f"{named} does not answer over the overlay{since}{cause}", node.name, fix)


def _faults(known: Known) -> Iterable[Problem]:
    """Return the faults of nodes in the map.

    An identity in use twice concerns that node and the coordinator's; a fault of a hub concerns all nodes whose packets
    it forwards. This node's own reports are among its complaints.
    """
    reported = {(problem.code, problem.node) for problem in known.complaints}
    for node in known.mesh_map.nodes.values():
        for code, detail in node.faults.items():
            name, is_own = str(node.name), node.id == known.me.id
            if (code, name) in reported or not (node.online or is_own):
                continue
            if code == ONE_IDENTITY and (is_own or COORDINATOR in known.me.roles):
                text = f"two machines use the identity of {name}: was its disk cloned? They connect from {detail}"
                yield Problem(ONE_IDENTITY, text, name, ON_THE_COPY)
            elif code == HUB_FORWARDS and not is_own:
                text = f"the hub {name} does not forward between nodes: {detail}"
                switch = detail.startswith(SWITCH)
                fix = forwarding_fix(INTERFACE, "1") if switch else "meshray status shows the command"
                yield Problem(HUB_FORWARDS, text, name, f"on {name}: {fix}")


def _on_node(known: Known, node: Node | None) -> str:
    """Return the beginning of a command for a node: where to run it, if not on this one."""
    return "" if node is None or node.id == known.me.id else f"on {node.name}: "
