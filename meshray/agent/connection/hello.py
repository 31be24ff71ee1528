"""The report of a node to the coordinator."""

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
    """Return this node's report to the coordinator.

    It contains what the node runs, its endpoints, the hubs that it can use, its faults that others must know, the
    endpoint at which it reached the coordinator, its epoch of the secrets, the ports that it chose for Ray, and whether
    it accepts orders.

    Args:
        own: the device's key.
        hubs: the hubs that answer, best first, by node id.
        outside: the endpoint at which the coordinator was reached outside the overlay.
        problems: the firewall's problems.
    """
    identity, me = state.identity, state.published_map.nodes[state.enrolment.node_id]
    faults = {problem.code: problem.text for problem in problems if problem.code == HUB_FORWARDS and state.is_hub}
    # During a key change the new key's signature is sent as well.
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
        takes_orders=not state.enrolment.no_remote,
    )
