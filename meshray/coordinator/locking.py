"""The identities of the members, and the lock of the mesh: the signatures that the coordinator accepts (pure).

The agents verify signatures themselves (`meshray.node.pins`). They would refuse what is refused here, but here the
sender learns why.

>>> require_attested(request, registry.mesh, member=None, removals=None)
>>> registry, rows, member = attested(registry, "n2", attestation)
"""

from __future__ import annotations

from dataclasses import replace

from meshray.coordinator.records import Member
from meshray.errors import RefusedError
from meshray.model.attestation import PRIVILEGED, Attestation, Removals
from meshray.model.enrol import EnrolRequest
from meshray.model.keys import PublicKey, VerifyKey
from meshray.model.meshmap import MeshInfo

_LOCKED_TOKEN = "where the lock file is: meshray token create --lock FILE"  # noqa: S105 - a command line, not a secret


def require_attested(
    request: EnrolRequest, mesh: MeshInfo, member: Member | None, removals: Removals | None
) -> Attestation | None:
    """Return the signature of the request; None if it has none and needs none.

    Raises:
        RefusedError: ``token_not_signed``, ``attestation_wrong``, ``role_not_granted``, ``identity_removed``,
            ``key_taken``.
    """
    attestation = request.attestation
    before = member.node.attestation if member is not None else None
    if attestation is None:
        if mesh.lock is not None:
            raise RefusedError(
                "token_not_signed",
                f"the mesh {mesh.name} has a lock, but nothing in the request is signed by it: the token was "
                "made without the lock, or that machine's meshray is too old",
                hint=_LOCKED_TOKEN,
            )
        return before
    if not _is_of_key(attestation, mesh, request.public_key):
        raise RefusedError("attestation_wrong", "the signature of this machine's key is wrong", hint="meshray leave")
    if before is not None and before.identity != attestation.identity:
        raise RefusedError(
            "key_taken",
            "this machine's key belongs to a node with another identity",
            hint="start with a new key: meshray leave, then join again",
        )
    if mesh.lock is None:
        return replace(attestation, chain=None)
    if attestation.chain is None or not attestation.chain.leads(mesh.lock, mesh.id, attestation.identity):
        raise RefusedError(
            "token_not_signed", f"the token was not signed by the lock of the mesh {mesh.name}", hint=_LOCKED_TOKEN
        )
    if not request.roles & PRIVILEGED <= attestation.chain.grant.roles:
        options = " ".join(f"--{role}" for role in sorted(request.roles & PRIVILEGED))
        raise RefusedError(
            "role_not_granted", "the lock did not sign the token for that role", hint=f"{_LOCKED_TOKEN} {options}"
        )
    if removals is not None and attestation.identity in removals.identities:
        raise RefusedError(
            "identity_removed", "the lock has removed this machine", hint="start again: meshray leave, then join again"
        )
    return attestation


def require_lock(mesh: MeshInfo, lock_key: VerifyKey | None) -> None:
    """Raise RefusedError ``lock_needed`` or ``lock_other`` unless the mesh's lock will sign what is created.

    Args:
        lock_key: the public half of the lock that will sign; None: no lock will.
    """
    if lock_key is None and mesh.lock is not None:
        raise RefusedError(
            "lock_needed", f"the mesh {mesh.name} has a lock, which must sign this", hint="--lock FILE, as for init"
        )
    if lock_key is not None and lock_key != mesh.lock:
        raise RefusedError(
            "lock_other",
            f"this is the lock of another mesh than {mesh.name}" if mesh.lock else f"the mesh {mesh.name} has no lock",
            hint="--lock with the file of `meshray init --lock`" if mesh.lock else "leave out --lock",
        )


def _is_of_key(attestation: Attestation, mesh: MeshInfo, key: PublicKey) -> bool:
    """Return whether the signature is the key's and names no address, because none is assigned yet."""
    return attestation.ip is None and attestation.covers(mesh.id, key, next(iter(mesh.network.node_addresses())))
