"""Checks of the mesh from one node's status, in the order of their dependencies (pure).

enrolled ─► agent_running ─┬► coordinator_reachable
                           └► node_answers ─► handshake_fresh ─► peer_answers ─► ray_head_answers ─► ray_alive
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from meshray.doctor import verdicts
from meshray.doctor.facts import Facts
from meshray.doctor.hypotheses import Hypothesis, given, weigh
from meshray.doctor.known_faults import problems_with
from meshray.doctor.ray.facts import STARTING
from meshray.doctor.report import FAIL, OK, SKIP, WARN, Finding, Spec
from meshray.doctor.verdicts import Presence
from meshray.model.node import HEAD, HUB, HUB_FORWARDS, STATIC
from meshray.model.path import PathKind
from meshray.protocol.status import NodeStatus, Status


def _enrolled(facts: Facts) -> Iterable[Finding]:
    if facts.enrolled:
        yield Finding(OK, "enrolled")
    else:
        # A machine that has not joined is not faulty. The requirements of a mesh are checked anyway.
        yield Finding(
            WARN, "this machine is not in a mesh", "meshray init, or meshray join TOKEN", hides_dependents=True
        )


def _agent_running(facts: Facts) -> Iterable[Finding]:
    if facts.status is not None:
        yield Finding(OK, f"it answers for {facts.status.node}")
    elif facts.allowed_by:
        yield Finding(SKIP, facts.agent_error, facts.allowed_by, hides_dependents=True)
    else:
        fix = facts.agent_fix or "meshray up; meshray logs agent"
        yield Finding(FAIL, facts.agent_error or "it does not answer", fix, repair=facts.agent_repair)


def _coordinator_reachable(facts: Facts) -> Iterable[Finding]:
    status = _status(facts)
    if verdicts.coordinator_reachable(status):
        yield Finding(OK, f"connected, map revision {status.revision}", node=status.node)
    else:
        yield Finding(
            FAIL,
            f"no connection; the node continues with the map of revision {status.revision}",
            "on the head: meshray up; or open the mesh's TCP port in its firewall",
            status.node,
        )


def _node_answers(facts: Facts) -> Iterable[Finding]:
    if facts.not_queried:
        yield Finding(SKIP, facts.not_queried)
        return
    for node in _others(facts):
        if node.name in facts.nodes or node.name in facts.silent:
            yield _answer_of_agent(facts, node)


def _answer_of_agent(facts: Facts, node: NodeStatus) -> Finding:
    machine_answers = None if node.online else node.name in facts.answering_machines
    present = verdicts.presence(replies=node.name in facts.nodes, down=node.down, machine_answers=machine_answers)
    if present is Presence.ANSWERS:
        return Finding(OK, "its agent answered", node=node.name)
    if present is Presence.DOWN:
        return Finding(SKIP, "it was taken down (meshray down)", node=node.name)
    reason, age = facts.silent[node.name], node.path.handshake_age_s
    handshake = "no handshake" if age is None else f"last handshake {age:.0f} s ago"
    if present is Presence.NO_REPLY:
        return _no_reply(facts, node, f"the node is connected, but {reason}")
    if present is Presence.AGENT_GONE:
        fix = f"on {node.name}: meshray up; meshray logs agent"
        return Finding(
            FAIL, f"its agent has stopped, but the machine and its tunnel work ({handshake})", fix, node.name
        )
    fix = (
        f"on {node.name}: is the machine on and connected? then: meshray up; if it is gone for good: "
        f"meshray node rm {node.name}"
    )
    return Finding(FAIL, f"no packets arrive from the node ({handshake}): {reason}", fix, node.name)


def _no_reply(facts: Facts, node: NodeStatus, observed: str) -> Finding:
    """Return why a node does not answer, whose connection to the coordinator has not ended."""
    name, here = node.name, _status(facts).node
    alive = name in facts.answering_machines or verdicts.answer(node.path) == OK
    on_its_machine = "its machine answers over the overlay"
    control = facts.nodes[here].control if here in facts.nodes else None
    wanted = control.coordinator_version if control is not None else ""
    version = control.versions.get(name, "") if control is not None else ""
    differs = bool(version and wanted) and version != wanted
    age = node.path.handshake_age_s
    heard = "no handshake with it is known" if age is None else f"its last handshake was {age:.0f} s ago"
    connection = facts.connections.get(name)
    delivered = connection is not None and connection.acknowledged
    lost = connection is not None and not connection.acknowledged
    arrives, lost_there = "what is sent to it is acknowledged", "nothing that is sent to it is acknowledged"
    return weigh(
        observed,
        (
            Hypothesis(
                "its agent hangs, or a signal has stopped it",
                f"on {name}: meshray doctor; meshray logs agent",
                supported=given((alive, on_its_machine), (delivered, arrives)),
                against=given((not alive and not delivered, f"its machine does not answer either, and {heard}")),
            ),
            Hypothesis(
                "its packets no longer arrive, and its connection has not timed out yet",
                f"on {name}: is the machine on and connected? On {here}: meshray ping {name}",
                supported=given((not alive, heard), (lost and not alive, lost_there)),
                against=given((alive, on_its_machine)),
            ),
            Hypothesis(
                f"its meshray {version} does not know this question",
                f"on {name}: pip install meshray=={wanted}, then meshray down; meshray up",
                supported=given((differs, f"the coordinator has {wanted}"), (differs and alive, on_its_machine)),
                against=given((not differs, "it has the coordinator's version")),
            ),
        ),
        node=name,
    )


def _handshake_fresh(facts: Facts) -> Iterable[Finding]:
    others = list(_others(facts))
    hub_is_silent = any(_is_hub(node) and not verdicts.handshake_is_fresh(node.path) for node in others)
    for node in others:
        # A pair's finding concerns the packets from that node to this one.
        yield replace(_handshake(node, hub_is_silent), peer=_status(facts).node)


def _handshake(node: NodeStatus, hub_is_silent: bool) -> Finding:
    if verdicts.handshake_is_fresh(node.path):
        return Finding(OK, f"{node.path.handshake_age_s or 0.0:.0f} s ago", node=node.name)
    if not verdicts.should_have_path(node, is_hub=_is_hub(node)):
        return Finding(SKIP, "offline", node=node.name)
    if hub_is_silent and not _is_hub(node):
        return Finding(SKIP, "its path leads through the silent hub", node=node.name)
    return Finding(
        FAIL,
        "no handshake",
        f"on {node.name}: meshray status; between here and there: is the mesh's UDP port open?",
        node.name,
    )


def _peer_answers(facts: Facts) -> Iterable[Finding]:
    blocking = ", ".join(problems_with(facts, HUB_FORWARDS))
    for node in _others(facts):
        finding = _answer(node)
        if finding.status == FAIL and node.path.kind == PathKind.HUB and blocking:
            finding = Finding(SKIP, f"its path leads through {blocking}, which does not forward", node=node.name)
        yield replace(finding, peer=_status(facts).node)


def _answer(node: NodeStatus) -> Finding:
    path, status = node.path, verdicts.answer(node.path)
    if status == OK:
        return Finding(OK, f"{path.rtt_ms or 0.0:.1f} ms over the {_path_name(path.kind)}", node=node.name)
    if node.down:
        return Finding(SKIP, "it was taken down", node=node.name)
    if not node.online:
        return Finding(WARN, "its agent is not connected to the coordinator", f"on {node.name}: meshray up", node.name)
    if status == SKIP:  # handshake_fresh reports why there is no path.
        reason = "not measured yet" if verdicts.handshake_is_fresh(path) else "there is no path to it"
        return Finding(SKIP, reason, node=node.name)
    fix = f"meshray ping {node.name}; on {node.name}: meshray doctor"
    if status == FAIL:
        return Finding(FAIL, f"no probe came back over the {_path_name(path.kind)}", fix, node.name)
    return Finding(WARN, f"{path.loss or 0.0:.0%} of the probes are lost", fix, node.name)


def _ray_head_answers(facts: Facts) -> Iterable[Finding]:
    heads = _ray_heads(facts)
    if not heads:
        yield Finding(SKIP, "this mesh has no Ray head")
    for head in heads:
        if verdicts.ray_listed(head.ray, head_answers=True) == OK:
            yield Finding(OK, f"it lists its nodes at {head.ip}", node=head.name)
        else:
            yield Finding(
                FAIL,
                f"Ray at {head.ip} " + ("does not answer" if head.ray.alive is None else "does not list its own node"),
                f"on {head.name}: meshray logs ray",
                head.name,
            )


def _ray_heads(facts: Facts) -> list[NodeStatus]:
    return [node for node in _status(facts).nodes if node.role == HEAD and node.name in facts.ray_nodes]


def _ray_alive(facts: Facts) -> Iterable[Finding]:
    head_answers = any(head.ray.alive for head in _ray_heads(facts))
    for node in _status(facts).nodes:
        if node.name in facts.ray_nodes:
            listed = verdicts.ray_listed(node.ray, head_answers=head_answers)
            yield _ray_node(node, listed, _ray_starts(facts, node.name), _ray_fix(facts, node.name))


def _ray_starts(facts: Facts, name: str) -> bool:
    """Return whether the node's own supervisor reports that Ray is starting for the first time."""
    node_facts = facts.nodes.get(name)
    return (
        node_facts is not None
        and node_facts.ray is not None
        and node_facts.ray.state == STARTING
        and not node_facts.ray.deaths
    )


def _ray_fix(facts: Facts, name: str) -> str:
    """Return what to do where the head does not count a node's Ray."""
    answer = facts.nodes.get(name)
    if answer is not None and answer.ray is not None and answer.ray.external:
        return f"on {name}, start Ray again: {answer.ray.start_line}"
    return f"on {name}: meshray logs ray"


def _ray_node(node: NodeStatus, listed: str, starting: bool, fix: str) -> Finding:
    if listed == SKIP:
        return Finding(SKIP, "the Ray head does not answer", node=node.name)
    if listed == FAIL and not node.online:
        return Finding(SKIP, "offline", node=node.name)
    if listed == FAIL and starting:
        return Finding(WARN, "Ray is starting; the head does not list it yet", fix, node.name)
    if listed == FAIL:
        return Finding(FAIL, "the head does not list it as ALIVE", fix, node.name)
    offered = {name: amount for name, amount in node.ray.resources.items() if ":" not in name and amount > 0}
    if not offered:
        return Finding(FAIL, "it is ALIVE, but the head lists no resources of it", fix, node.name)
    counted = ", ".join(f"{name} {offered[name]:g}" for name in ("CPU", "GPU") if name in offered)
    return Finding(OK, f"ALIVE, {counted or f'{len(offered)} resources'}", node=node.name)


ENROLLED = Spec("enrolled", "enrolment", (), _enrolled)
AGENT_RUNNING = Spec("agent_running", "the agent", ("enrolled", "credential"), _agent_running)
CONTROL: tuple[Spec, ...] = (
    Spec(
        "coordinator_reachable",
        "the agent's connection to the coordinator",
        (
            "agent_running",
            "proxy_works",
            "captive_portal",
            "certificate_pin",
            "coordinator_tcp",
            "websocket_upgrade",
            "credential",
        ),
        _coordinator_reachable,
    ),
    # Not after coordinator_reachable, which would hide the data path as well: while the coordinator is away no node was
    # asked.
    Spec("node_answers", "answer of the node's agent", ("agent_running",), _node_answers),
)
PATH: tuple[Spec, ...] = (
    Spec(
        "handshake_fresh",
        "WireGuard handshake",
        ("agent_running", "node_answers", "udp_in", "udp_out", "udp_data", "transports"),
        _handshake_fresh,
    ),
    Spec(
        "peer_answers",
        "answer over the overlay",
        (
            "agent_running",
            "node_answers",
            "udp_in",
            "udp_out",
            "udp_data",
            "transports",
            "one_way",
            "path_loss",
            "handshake_fresh",
        ),
        _peer_answers,
    ),
)
#: The checks of a node's own Ray (`meshray.doctor.ray.checks`) without which the head's entry for it means nothing.
_OF_A_NODE = ("own_address", "ray_installed", "ray_versions", "ray_running", "ray_ports", "ray_token")
RAY: tuple[Spec, ...] = (
    Spec(
        "ray_head_answers",
        "answer of the Ray head",
        ("agent_running", "node_answers", "handshake_fresh", "peer_answers", *_OF_A_NODE),
        _ray_head_answers,
    ),
    Spec(
        "ray_alive",
        "the node's resources in Ray",
        (
            "agent_running",
            "ray_head_answers",
            "node_answers",
            "handshake_fresh",
            "peer_answers",
            *_OF_A_NODE,
            "ray_advertised",
        ),
        _ray_alive,
    ),
)


def _status(facts: Facts) -> Status:
    if facts.status is None:
        raise ValueError("checks after agent_running need a status")
    return facts.status


def _others(facts: Facts) -> Iterator[NodeStatus]:
    """Return the nodes on which an agent of ours should answer."""
    status = _status(facts)
    return (node for node in status.nodes if node.name != status.node and node.role != STATIC)


def _is_hub(node: NodeStatus) -> bool:
    return node.role in (HEAD, HUB)


def _path_name(kind: PathKind) -> str:
    return {PathKind.DIRECT: "direct path", PathKind.HUB: "hub"}.get(kind, "overlay")
