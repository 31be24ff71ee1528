"""The site of this agent's own node: nodes of one site are near each other."""

from __future__ import annotations

from meshray.agent.state import NodeState
from meshray.model.address import Endpoint
from meshray.model.link_labels import site_of


def site_of_node(state: NodeState) -> str:
    """Return the user's site, else one derived from the node's address outside the overlay; see `site_of`."""
    # The hub observes the endpoint a moment after the first handshake; the address of the enrolment is known already.
    return site_of(state.enrolment.labels, state.me.seen or _of_hub(state) or _enrolled_from(state))


def _of_hub(state: NodeState) -> Endpoint | None:
    """Return the first address of a hub, which no other hub observes."""
    return state.me.endpoints[0] if state.is_hub and state.me.endpoints else None


def _enrolled_from(state: NodeState) -> Endpoint | None:
    endpoint = Endpoint(state.enrolment.observed, state.enrolment.mesh_port)
    # Through ssh the enrolment came from the coordinator's own machine.
    return endpoint if endpoint.ip is not None and not endpoint.ip.is_loopback else None
