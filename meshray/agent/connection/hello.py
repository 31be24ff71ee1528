"""What a node says of itself to the coordinator, besides its versions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from meshray.agent.state import NodeState
from meshray.model.address import Endpoint
from meshray.model.keys import PublicKey
from meshray.model.node import HUB_FORWARDS
from meshray.model.problem import Problem
from meshray.protocol.fields import MAX_ITEMS


def hello_of(
    state: NodeState,
    own: PublicKey,
    *,
    hubs: Sequence[str],
    outside: Endpoint | None,
    problems: Iterable[Problem],
) -> Mapping[str, object]:
    """Return where this node may be reached, the hubs that it can use, what is wrong with it that the others must know,
    where it reached the coordinator, its epoch of the mesh's secrets, and the ports that it chose for its Ray.

    Args:
        own: the key that its device has.
        hubs: that answer, best first, by node id.
        outside: where the coordinator was reached, not through the overlay.
        problems: of its firewall.
    """
    identity, me = state.identity, state.told.nodes[state.enrolment.node_id]
    faults = {problem.code: problem.text for problem in problems if problem.code == HUB_FORWARDS and state.is_hub}
    # While another key is under way, that key's signature travels with it.
    signs = me.public_key == own
    removals = state.pins.newer_removals(state.told)
    return {
        **({"removals": removals.to_json()} if removals is not None else {}),
        **({"attestation": identity.signature_of(me).to_json()} if identity is not None and signs else {}),
        "endpoints": [str(endpoint) for endpoint in state.endpoints],
        "hubs": list(hubs[:MAX_ITEMS]),
        "faults": faults,
        "reached": str(outside) if outside is not None else "",
        "secret_epoch": state.enrolment.secret_epoch,
        **({"ray_ports": dict(ports)} if (ports := state.enrolment.ray_ports) else {}),
    }
