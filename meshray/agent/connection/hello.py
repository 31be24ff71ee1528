"""What a node reports to the coordinator."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import UNSET

from meshray.agent.state import NodeState
from meshray.model.address import Endpoint
from meshray.model.keys import PublicKey
from meshray.model.node import HUB_FORWARDS, Versions
from meshray.model.problem import Problem
from meshray.protocol.codec import or_unset
from meshray.protocol.connection import Hello
from meshray.protocol.fields import MAX_ITEMS


def hello_of(
    state: NodeState,
    own: PublicKey,
    versions: Versions,
    *,
    hubs: Sequence[str],
    outside: Endpoint | None,
    problems: Iterable[Problem],
) -> Hello:
    """Return what this node runs, where it may be reached, the hubs that it can use, what is wrong with it that the
    others must know, where it reached the coordinator, its epoch of the secrets, and the ports that it chose for Ray.

    Args:
        own: the key that its device has.
        hubs: that answer, best first, by node id.
        outside: where the coordinator was reached, not through the overlay.
        problems: of its firewall.
    """
    identity, me = state.identity, state.published_map.nodes[state.enrolment.node_id]
    faults = {problem.code: problem.text for problem in problems if problem.code == HUB_FORWARDS and state.is_hub}
    # While another key is under way, that key's signature travels with it.
    signs = me.public_key == own
    removals = state.pins.newer_removals(state.published_map)
    return Hello(
        versions=versions.form(),
        endpoints=tuple(map(str, state.endpoints)),
        hubs=tuple(hubs[:MAX_ITEMS]),
        faults=faults,
        reached=str(outside) if outside is not None else "",
        secret_epoch=state.enrolment.secret_epoch,
        attestation=identity.signature_of(me).form() if identity is not None and signs else UNSET,
        removals=removals.form() if removals is not None else UNSET,
        ray_ports=or_unset(dict(state.enrolment.ray_ports)),
    )
