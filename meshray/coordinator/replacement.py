"""Tokens that are bound to a node name, and the node that the new one replaces (pure).

    token create --name N            the name is reserved for the machine that joins with the token
    token create --name N --replace  the token record has the id of the node that is called N now
    that machine enrols              that node is removed; name and address go to the machine, in one transaction

Only the token determines which node is replaced, and only the coordinator's own node creates tokens. The joining
machine has no influence. The token is bound to the id, so that it never replaces another node that has the name by
then.

>>> registry, rows, record = bound(registry, record, replace_node=True)
>>> registry, rows, replaced = without_replaced(registry, request, fresh, now=now, wall=wall)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from meshray.coordinator.admission import ConflictError, token_of
from meshray.coordinator.records import Member, SecretEpoch, TokenRecord
from meshray.coordinator.registry import Outcome, Registry
from meshray.coordinator.secret_epochs import rotated_without
from meshray.errors import RefusedError
from meshray.model.enrol import EnrolRequest
from meshray.model.node import COORDINATOR, HEAD, HUB, STATIC
from meshray.model.token import require_one_node
from meshray.protocol.api import Rotation


@dataclass(frozen=True)
class Replaced:
    """The removed node, and the result for the secrets that it knew."""

    member: Member
    rotation: Rotation


def bound(registry: Registry, record: TokenRecord, *, replace_node: bool) -> Outcome[TokenRecord]:
    """Add a new token, which may be bound to a node name.

    Args:
        replace_node: the node that enrols with the token replaces the one that has this name now.

    Raises:
        UsageError: see `require_one_node`.
        RefusedError: ``name_taken``; ``removal_not_signed``, see `_require_replaceable`.
        UnknownError: ``node_unknown``: the node to replace does not exist.
        ConflictError: ``node_not_replaceable``.
    """
    require_one_node(record.name, uses=record.uses, replaces=replace_node)
    name = record.name
    if name is None:
        return registry.add_token(record)
    if replace_node:
        member = registry.named(name)
        _require_replaceable(registry, member)
        record = replace(record, replaces=member.node.id)
    elif any(member.node.name == name for member in registry.members.values()):
        raise RefusedError(
            "name_taken",
            f"a node with the name {name} exists already",
            hint=f"for a machine that takes its place: meshray token create --name {name} --replace",
        )
    return registry.add_token(record)


def without_replaced(
    registry: Registry, request: EnrolRequest, fresh: SecretEpoch, *, now: float, wall: float
) -> Outcome[Replaced | None]:
    """Remove the node that the enrolling one replaces according to its token; None if it replaces none.

    The enrolment that follows in the same transaction finds the name free and gets the address. If it is refused,
    nothing changes. The removal equals ``node rm``: the others get secrets that the old machine does not know.

    Args:
        fresh: the secrets of the next epoch.
        now, wall: unix seconds, as of `Registry.enrol`.

    Raises:
        RefusedError: as `token_of` and `bound` do.
        ConflictError: since the token was created, the node has become one that cannot be replaced.
    """
    token = token_of(request, registry.mesh, registry.tokens, wall)
    old = registry.members.get(token.replaces)
    if old is None or old.node.name != token.name or token.is_spent:
        return registry, (), None
    if registry.with_key(request.public_key) is not None:
        # A member enrols again: either the node itself, which does not change, or another one, which is refused.
        return registry, (), None
    if request.name_is_exact and request.name != token.name:
        return registry, (), None
    _require_replaceable(registry, old)
    registry, rows, (member, rotation) = rotated_without(registry, old.node.id, now, fresh)
    return registry, rows, Replaced(member, rotation)


def _require_replaceable(registry: Registry, member: Member) -> None:
    """Raise if no other machine may replace this node.

    Others dial the head, and hubs can read what they forward: a token for a plain node must not create either. A lock
    signs each removal, and it is not available during the enrolment.
    """
    name, roles = member.node.name, member.node.roles
    if COORDINATOR in roles:
        raise ConflictError(
            "node_not_replaceable",
            f"{name} runs the coordinator of this mesh and cannot be replaced",
            hint="meshray node list",
        )
    for role, what, command in (
        (HEAD, "the Ray head", "meshray token create --head"),
        (HUB, "a hub", "meshray token create --hub"),
        (STATIC, "a static peer", f"meshray peer add {name} --config {name}.conf"),
    ):
        if role in roles:
            raise ConflictError(
                "node_not_replaceable",
                f"{name} is {what} and cannot be replaced by a token",
                hint=f"meshray node rm {name} --yes; {command}",
            )
    if registry.mesh.lock is not None:
        raise RefusedError(
            "removal_not_signed",
            f"the mesh {registry.mesh.name} has a lock, which must sign the removal of {name}; for an hour after that "
            "a token for the name brings back its address",
            hint=f"meshray node rm {name} --yes --lock FILE; meshray token create --name {name} --lock FILE",
        )
