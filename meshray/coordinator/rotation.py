"""The rotation of a node's key; the node stays the same (pure).

>>> registry, rows, member = rotated(registry, "n2", key)
"""

from __future__ import annotations

from dataclasses import replace

from meshray.coordinator.admission import ConflictError
from meshray.coordinator.records import Member
from meshray.coordinator.registry import Outcome, Registry
from meshray.coordinator.signatures import attested, signature_of_next
from meshray.errors import RefusedError
from meshray.model.attestation import Attestation
from meshray.model.keys import PublicKey
from meshray.model.node import HUB, STATIC


def rotated(registry: Registry, node_id: str, key: PublicKey, signature: Attestation | None = None) -> Outcome[Member]:
    """Set the node's key; idempotent, so that the request may be repeated.

    Args:
        signature: the identity's signature of the key; None: the node has no identity.

    Raises:
        UnknownError: there is no such node.
        RefusedError: ``key_taken``: another node has this key. ``attestation_wrong``: its identity did not sign it.
        ConflictError: ``has_static_peers``: a file that only a user can change contains a hub's key. ``hub_away``: no
            hub would learn the new key, and the node would be cut off.
    """
    member = registry.member(node_id)
    if member.node.public_key == key:
        return (registry, (), member) if signature is None else attested(registry, node_id, signature)
    if any(other.node.public_key == key for other in registry.members.values()):
        raise RefusedError("key_taken", "another node has this key", hint="meshray node rotate-key makes a new one")
    nodes = [other.node for other in registry.members.values()]
    static = sorted(node.name for node in nodes if STATIC in node.roles)
    if HUB in member.node.roles and static:
        raise ConflictError(
            "has_static_peers",
            f"{member.node.name} is a hub, and the files of the static peers {', '.join(static[:5])} may name its key: "
            "they would be cut off",
            hint=f"meshray node rm {static[0]}, rotate, then make its file again: meshray peer add {static[0]}",
        )
    hubs = [hub for hub in registry.map.hubs if hub.id != node_id]
    if HUB not in member.node.roles and hubs and not any(hub.online for hub in hubs):
        raise ConflictError(
            "hub_away",
            f"the hub {hubs[0].name} is not connected to the coordinator: it would not receive the new key",
            hint=f"try again when it is; on {hubs[0].name}: meshray status",
        )
    attestation = signature_of_next(registry, member.node, key, signature)
    return registry.put(replace(member, node=replace(member.node, public_key=key, attestation=attestation)))
