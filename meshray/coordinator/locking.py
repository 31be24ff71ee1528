"""The identities of the members, and the lock of the mesh: what the coordinator takes of signatures (pure).

The agents judge for themselves (`meshray.agent.pins`). What is refused here would be refused by each of them, and
whoever sent it learns why.

>>> require_attested(request, registry.mesh, known=None, removals=None)
>>> registry, rows, member = attested(registry, "n2", attestation)
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from meshray.coordinator.records import Member, PutRemovals
from meshray.errors import RefusedError
from meshray.model.attestation import PRIVILEGED, Attestation, Removals
from meshray.model.enrol import EnrolRequest
from meshray.model.keys import PublicKey, VerifyKey
from meshray.model.lock import removed_as
from meshray.model.meshmap import MeshInfo
from meshray.model.node import STATIC, Node

if TYPE_CHECKING:
    from meshray.coordinator.registry import Outcome, Registry

_LOCKED_TOKEN = "where the lock file is: meshray token create --lock FILE"  # noqa: S105 - a command line, not a secret


def require_attested(
    request: EnrolRequest, mesh: MeshInfo, known: Member | None, removals: Removals | None
) -> Attestation | None:
    """Return the signature that the request brings; None where it brings none and none is needed.

    Raises:
        RefusedError: ``token_not_signed``, ``attestation_wrong``, ``role_not_granted``, ``identity_removed``,
            ``key_taken``.
    """
    shown = request.attestation
    before = known.node.attestation if known is not None else None
    if shown is None:
        if mesh.lock is not None:
            raise RefusedError(
                "token_not_signed",
                f"the mesh {mesh.name} has a lock, and nothing that it signed came with the request: the token was "
                "made without the lock, or that machine's meshray is too old",
                hint=_LOCKED_TOKEN,
            )
        return before
    if not _is_of_key(shown, mesh, request.public_key):
        raise RefusedError("attestation_wrong", "the signature of this machine's key is wrong", hint="meshray leave")
    if before is not None and before.identity != shown.identity:
        raise RefusedError(
            "key_taken",
            "this machine's key belongs to a node with another identity",
            hint="start with a new key: meshray leave, then join again",
        )
    if mesh.lock is None:
        return replace(shown, chain=None)
    if shown.chain is None or not shown.chain.leads(mesh.lock, mesh.id, shown.identity):
        raise RefusedError(
            "token_not_signed", f"the token was not signed by the lock of the mesh {mesh.name}", hint=_LOCKED_TOKEN
        )
    if not request.roles & PRIVILEGED <= shown.chain.grant.roles:
        options = " ".join(f"--{role}" for role in sorted(request.roles & PRIVILEGED))
        raise RefusedError(
            "role_not_granted", "the lock did not sign the token for that role", hint=f"{_LOCKED_TOKEN} {options}"
        )
    if removals is not None and shown.identity in removals.identities:
        raise RefusedError(
            "identity_removed", "the lock has removed this machine", hint="start anew: meshray leave, then join again"
        )
    return shown


def attested(registry: Registry, node_id: str, shown: Attestation) -> Outcome[Member]:
    """The node's identity signs its present key and address. What says nothing new, or is wrong, changes nothing.

    Raises:
        UnknownError: there is no such node.
    """
    member = registry.member(node_id)
    node, known, mesh = member.node, member.node.attestation, registry.mesh
    if mesh.lock is None:
        shown = replace(shown, chain=None)
    elif shown.chain is None or not shown.chain.leads(mesh.lock, mesh.id, shown.identity):
        return registry, (), member
    # As often as it likes: all that a new signature of the same says is a higher counter, and every agent hears of it.
    is_news = known is None or not known.covers(mesh.id, node.public_key, node.ip) or known.ip is None
    if not is_news or not _may_follow(shown, known) or not shown.covers(mesh.id, node.public_key, node.ip):
        return registry, (), member
    return registry.put(replace(member, node=replace(node, attestation=shown)))


def signature_of_next(registry: Registry, node: Node, key: PublicKey, shown: Attestation | None) -> Attestation | None:
    """Return the signature that goes with a node's next key; None where it brings none and the mesh has no lock.

    Raises:
        RefusedError: ``attestation_wrong``.
    """
    known, mesh = node.attestation, registry.mesh
    if shown is None and known is None:
        return None
    if shown is None or not _may_follow(shown, known) or not shown.covers(mesh.id, key, node.ip):
        raise RefusedError(
            "attestation_wrong",
            f"the new key of {node.name} is not signed by its identity: the others would refuse it",
            hint="meshray down; meshray up; meshray node rotate-key",
        )
    return replace(shown, chain=known.chain if known is not None else None)


def signed_static(registry: Registry, name: str, shown: Attestation) -> Outcome[Member]:
    """The coordinator's node, or the lock, signs the key of a static peer.

    Raises:
        UnknownError: there is no such node.
        RefusedError: ``attestation_wrong``.
    """
    member, mesh = registry.named(name), registry.mesh
    node, own = member.node, registry.map.coordinator
    issuer = mesh.lock or (own.attestation.identity if own is not None and own.attestation is not None else None)
    good = STATIC in node.roles and shown.identity == issuer
    if not good or not shown.covers(mesh.id, node.public_key, node.ip, static=True):
        raise RefusedError("attestation_wrong", f"the signature of the key of {node.name} is wrong")
    return registry.put(replace(member, node=replace(node, attestation=replace(shown, chain=None))))


def removed(registry: Registry, name: str, epoch: int, signature: bytes, now: float) -> Outcome[Member]:
    """The node is removed, and the lock has signed that it does not come back.

    Raises:
        UnknownError, ConflictError: as `Registry.remove` does.
        RefusedError: ``removal_wrong``: there is no lock, or it did not sign this.
    """
    member, lock = registry.named(name), registry.mesh.lock
    before = registry.removals.identities if registry.removals is not None else ()
    removals = Removals(epoch, frozenset({*before, removed_as(member.node)}), signature)
    known = registry.removals.epoch if registry.removals is not None else 0
    if lock is None or epoch <= known or not removals.is_signed(lock, registry.mesh.id):
        raise RefusedError(
            "removal_wrong", "this mesh's lock did not sign the removal", hint="meshray node rm NODE --lock FILE"
        )
    after, rows, member = registry.remove(member.node.id, now)
    return replace(after, removals=removals), (*rows, PutRemovals(removals)), member


def require_lock(mesh: MeshInfo, shown: VerifyKey | None) -> None:
    """Raise RefusedError ``lock_needed`` or ``lock_other`` unless what is made now will be signed by the mesh's lock.

    Args:
        shown: the public half of the lock that will sign; None: none will.
    """
    if shown is None and mesh.lock is not None:
        raise RefusedError(
            "lock_needed", f"the mesh {mesh.name} has a lock, which must sign this", hint="--lock FILE, as for init"
        )
    if shown is not None and shown != mesh.lock:
        raise RefusedError(
            "lock_other",
            f"this is the lock of another mesh than {mesh.name}" if mesh.lock else f"the mesh {mesh.name} has no lock",
            hint="--lock with the file of `meshray init --lock`" if mesh.lock else "leave out --lock",
        )


def learned(registry: Registry, removals: Removals) -> Outcome[None]:
    """Removals of a later epoch than those that are known here, where the lock signed them."""
    known, mesh = registry.removals, registry.mesh
    is_later = removals.epoch > (known.epoch if known is not None else 0)
    if mesh.lock is None or not is_later or not removals.is_signed(mesh.lock, mesh.id):
        return registry, (), None
    after, rows = registry.next_revision((PutRemovals(removals),))
    return replace(after, removals=removals), rows, None


def _may_follow(shown: Attestation, known: Attestation | None) -> bool:
    return known is None or (shown.identity == known.identity and shown.counter > known.counter)


def _is_of_key(shown: Attestation, mesh: MeshInfo, key: PublicKey) -> bool:
    """The address is not given yet, so none may be named."""
    return shown.ip is None and shown.covers(mesh.id, key, next(iter(mesh.network.node_addresses())))
