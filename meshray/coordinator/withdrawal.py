"""The withdrawal of an enrolment whose answer did not reach the joining machine (pure).

The machine has no credential. It proves that it has the private half of the key of its request, and uses the same
token.

>>> registry, rows, member = withdrawn(registry, "3f9a01bc", key, now)
"""

from __future__ import annotations

from meshray.coordinator.records import Member
from meshray.coordinator.registry import Outcome, Registry
from meshray.model.keys import PublicKey


def withdrawn(registry: Registry, token_id: str, key: PublicKey, now: float) -> Outcome[Member | None]:
    """Remove the node that enrolled with this key and token, and return the token's use.

    It removes only a node that never came online: one whose agent had the map is in use, and leaves with its
    credential.

    Returns:
        The node; None if there is none, or it is in use: nothing changed.
    """
    member = registry.with_key(key)
    if member is None or member.token_id != token_id or member.had_map or member.node.online:
        return registry, (), None
    return registry.remove(member.node.id, now, take_back=True)
