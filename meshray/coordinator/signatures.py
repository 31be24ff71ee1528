"""Signatures that change the registry: of keys and addresses by identities, of removals by the lock (pure)."""

from __future__ import annotations

from dataclasses import replace

from meshray.coordinator.records import Member, PutRemovals
from meshray.coordinator.registry import Outcome, Registry
from meshray.errors import RefusedError
from meshray.model.attestation import Attestation, Removals
from meshray.model.keys import PublicKey
from meshray.model.lock import removal_key
from meshray.model.node import STATIC, Node


def attested(registry: Registry, node_id: str, attestation: Attestation) -> Outcome[Member]:
    """Record the identity's signature of the node's current key and address. An old or wrong one changes nothing.

    Raises:
        UnknownError: there is no such node.
    """
    member = registry.member(node_id)
    node, known, mesh = member.node, member.node.attestation, registry.mesh
    if mesh.lock is None:
        attestation = replace(attestation, chain=None)
    elif attestation.chain is None or not attestation.chain.leads(mesh.lock, mesh.id, attestation.identity):
        return registry, (), member
    # This is limited: a new signature of the same content only has a higher counter, and every agent gets it.
    is_new = known is None or not known.covers(mesh.id, node.public_key, node.ip) or known.ip is None
    if not is_new or not _may_follow(attestation, known) or not attestation.covers(mesh.id, node.public_key, node.ip):
        return registry, (), member
    return registry.put(replace(member, node=replace(node, attestation=attestation)))


def signature_of_next(
    registry: Registry, node: Node, key: PublicKey, attestation: Attestation | None
) -> Attestation | None:
    """Return the signature of a node's next key; None if the request has none and the mesh has no lock.

    Raises:
        RefusedError: ``attestation_wrong``.
    """
    known, mesh = node.attestation, registry.mesh
    if attestation is None and known is None:
        return None
    if attestation is None or not _may_follow(attestation, known) or not attestation.covers(mesh.id, key, node.ip):
        raise RefusedError(
            "attestation_wrong",
            f"the new key of {node.name} is not signed by its identity: the others would refuse it",
            hint="meshray down; meshray up; meshray node rotate-key",
        )
    return replace(attestation, chain=known.chain if known is not None else None)


def signed_static(registry: Registry, name: str, attestation: Attestation) -> Outcome[Member]:
    """Record the signature of a static peer's key by the coordinator's node or the lock.

    Raises:
        UnknownError: there is no such node.
        RefusedError: ``attestation_wrong``.
    """
    member, mesh = registry.named(name), registry.mesh
    node, own = member.node, registry.map.coordinator
    issuer = mesh.lock or (own.attestation.identity if own is not None and own.attestation is not None else None)
    is_valid = STATIC in node.roles and attestation.identity == issuer
    if not is_valid or not attestation.covers(mesh.id, node.public_key, node.ip, static=True):
        raise RefusedError("attestation_wrong", f"the signature of the key of {node.name} is wrong")
    return registry.put(replace(member, node=replace(node, attestation=replace(attestation, chain=None))))


def removed(registry: Registry, name: str, epoch: int, signature: bytes, now: float) -> Outcome[Member]:
    """Remove the node; the lock has signed that it must not return.

    Raises:
        UnknownError, ConflictError: as `Registry.remove` does.
        RefusedError: ``removal_wrong``: there is no lock, or it did not sign the removal.
    """
    member, lock = registry.named(name), registry.mesh.lock
    before = registry.removals.identities if registry.removals is not None else ()
    removals = Removals(epoch, frozenset({*before, removal_key(member.node)}), signature)
    known = registry.removals.epoch if registry.removals is not None else 0
    if lock is None or epoch <= known or not removals.is_signed(lock, registry.mesh.id):
        raise RefusedError(
            "removal_wrong", "this mesh's lock did not sign the removal", hint="meshray node rm NODE --lock FILE"
        )
    after, rows, member = registry.remove(member.node.id, now)
    return replace(after, removals=removals), (*rows, PutRemovals(removals)), member


def learned(registry: Registry, removals: Removals) -> Outcome[None]:
    """Record removals of a later epoch than the known ones, if the lock signed them."""
    known, mesh = registry.removals, registry.mesh
    is_later = removals.epoch > (known.epoch if known is not None else 0)
    if mesh.lock is None or not is_later or not removals.is_signed(mesh.lock, mesh.id):
        return registry, (), None
    after, rows = registry.next_revision((PutRemovals(removals),))
    return replace(after, removals=removals), rows, None


def _may_follow(attestation: Attestation, known: Attestation | None) -> bool:
    return known is None or (attestation.identity == known.identity and attestation.counter > known.counter)
