"""Whether this node can do its work, from what the agent knows: no packet is sent, so probes may ask every second."""

from __future__ import annotations

from meshray.agent.status.snapshot import Sources, external_notices
from meshray.protocol.control import Readiness
from meshray.raynode.supervisor import RUNNING


def readiness(sources: Sources, *, is_up: bool) -> Readiness:
    """Return whether this node's Ray is ALIVE; on a node without Ray, whether the overlay works.

    Args:
        is_up: whether the node's startup is complete.
    """
    ray, enrolment = sources.parts.ray, sources.state.enrolment
    if ray is None and enrolment.with_ray:
        return Readiness(False, f"Ray does not run here: {sources.parts.no_ray_reason}")
    if ray is None:
        return Readiness(is_up, "the overlay works" if is_up else "the overlay does not work yet")
    if sources.state.me.drained:
        return Readiness(False, "this node is drained")
    if ray.now.state == RUNNING:
        return Readiness(True, "Ray is ALIVE")
    reason = ray.failure or next(external_notices(sources), "")
    return Readiness(False, reason or f"Ray is not ALIVE: {ray.now.error or ray.now.state}")
