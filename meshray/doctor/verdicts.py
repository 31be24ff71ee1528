"""The verdicts that the doctor's checks and status share: one predicate and one threshold for each code (pure).

`meshray.doctor.mesh` calls them with fresh measurements, `meshray.doctor.health` with what the agent knows already;
only their sentences differ. `health` itself decides one_identity and hub_forwards, and the doctor takes those over.

Neither adds a delay. How long a fault has lasted when status shows it is decided where the evidence comes from:

    coordinator_reachable  the agent's connection ended      `meshray.client.coordinator.HEARTBEAT_S`
    device_up              at once                           the reconciler's last read of the device
    handshake_fresh        180 s without a handshake         `meshray.wireguard.config.is_fresh`
    peer_answers           2 probes in a row are lost        `meshray.agent.paths.samples.OUTAGE`
    node_answers           4 s without a sign of life        `meshray.agent.paths.silence_decision.SILENT_S`
                           or its processes were killed      `meshray.model.node.Node.ended`
    ray_head_answers       one request is not answered       `meshray.raynode.dashboard_client`
    ray_alive              Ray itself gave the node up       Ray's own health checks
    one_identity           two agents alternate              `meshray.coordinator.takeovers`
    hub_forwards           at once, as the hub reports       `meshray.firewall.firewall`
"""

from __future__ import annotations

from enum import Enum

from meshray.doctor.device.facts import DOWN, FOREIGN, MISSING, SILENT
from meshray.doctor.path.facts import BAD_LOSS
from meshray.doctor.report import FAIL, OK, SKIP, WARN
from meshray.model.node import STATIC
from meshray.model.path import PathKind
from meshray.protocol.status import NodeStatus, PathStatus, RayStatus, Status


class Presence(Enum):
    """Whether the agent of a node answers, and if not, why."""

    ANSWERS = "answers"
    #: A user took the node down.
    DOWN = "down"
    #: The agent is connected to the coordinator, but does not answer.
    NO_REPLY = "mute"
    #: The agent is gone, but the machine and its tunnel work.
    AGENT_GONE = "agent gone"
    LOST = "lost"


def should_have_path(node: NodeStatus, *, is_hub: bool) -> bool:
    """Return whether there should be a path to this node: to a hub even while it is not connected."""
    return node.role != STATIC and (node.online or is_hub)


def coordinator_reachable(status: Status) -> bool:
    """Return whether the node has a connection to the coordinator."""
    return status.coordinator.reachable


def device_is_faulty(state: str) -> bool:
    """Return whether this state of the overlay interface is a fault; a state that is not known is none."""
    return state in (MISSING, FOREIGN, SILENT, DOWN)


def handshake_is_fresh(path: PathStatus) -> bool:
    """Return whether there is a path: one whose last handshake is stale does not count."""
    return path.kind != PathKind.NONE


def answer(path: PathStatus, *, outage: bool = False) -> str:
    """Return the doctor's status of the answers over a path.

    Args:
        outage: the last probes were all lost, although earlier ones in the measurement were answered.
    """
    if not outage and path.rtt_ms is not None and (path.loss or 0.0) < BAD_LOSS:
        return OK
    if path.kind == PathKind.NONE or path.loss is None:
        return SKIP
    return FAIL if outage or path.rtt_ms is None or path.loss == 1.0 else WARN


def presence(*, replies: bool, down: bool, machine_answers: bool | None) -> Presence:
    """Return whether a node is present.

    Args:
        replies: its agent is known to work.
        machine_answers: its machine answers over the overlay; None: not asked, because its agent is connected.
    """
    if replies:
        return Presence.ANSWERS
    if down:
        return Presence.DOWN
    if machine_answers is None:
        return Presence.NO_REPLY
    return Presence.AGENT_GONE if machine_answers else Presence.LOST


def ray_listed(ray: RayStatus, *, head_answers: bool) -> str:
    """Return the doctor's status of a node in Ray's node table; SKIP while the head does not answer."""
    if not head_answers:
        return SKIP
    return OK if ray.alive else FAIL
