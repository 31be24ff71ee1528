"""Admission of an enrolment: which machine may join, under which name and with which roles. Pure.

>>> token = token_of(request, mesh, tokens, now=0.0)      # RefusedError token_expired, …
>>> roles_of(request, token, known=None, head=None)
frozenset({'worker'})
"""

from __future__ import annotations

import hmac
from collections.abc import Collection, Mapping, Set
from dataclasses import replace

from meshray.coordinator.records import Member, TokenRecord
from meshray.errors import RefusedError, UsageError
from meshray.model.address import Endpoint, NodeName
from meshray.model.attestation import Attestation
from meshray.model.endpoints import MAX_ENDPOINTS
from meshray.model.enrol import EnrolRequest
from meshray.model.meshmap import MeshInfo
from meshray.model.node import COORDINATOR, HEAD, HUB, STATIC, WORKER, Node
from meshray.model.token import hash_secret
from meshray.protocol.api import PresentedToken
from meshray.protocol.fields import LONGEST_LABELS

_NEW_TOKEN = "on the head: meshray token create"  # noqa: S105 - a command line, not a secret


class UnknownError(UsageError):
    """No node or token has that name."""


class ConflictError(UsageError):
    """This node does not allow the operation."""


def token_of(
    request: EnrolRequest | PresentedToken, mesh: MeshInfo, tokens: Mapping[str, TokenRecord], now: float
) -> TokenRecord:
    """Return the token of the request. Raises RefusedError if it is not one of this mesh or may no longer be used."""
    if request.mesh_id != mesh.id:
        raise RefusedError(
            "token_other_mesh", "the token belongs to another mesh than the one that answered", hint=_NEW_TOKEN
        )
    token = tokens.get(request.token_id)
    if token is None or not hmac.compare_digest(token.secret_hash, hash_secret(request.secret)):
        raise RefusedError("token_unknown", f"the mesh {mesh.name} does not know this token", hint=_NEW_TOKEN)
    refusal = token.refusal(now)
    if refusal is not None:
        raise refusal
    return token


def roles_of(request: EnrolRequest, token: TokenRecord, known: Member | None, head: Node | None) -> frozenset[str]:
    """Return the roles of the node.

    Hubs can read what they forward, and workers dial the head, so only a token grants these roles. An existing node
    gets none by enrolling again, whatever token it uses.

    Args:
        known: the member that already has this key.
        head: the mesh's current head.

    Raises:
        RefusedError: role_not_granted, head_exists. UsageError: hub_needs_endpoint.
    """
    _require_granted(request, token, known)
    if HEAD in request.roles and head is not None and (known is None or head.id != known.node.id):
        other = "" if COORDINATOR in head.roles else f"; if {head.name} is gone for good: meshray node rm {head.name}"
        raise RefusedError(
            "head_exists", f"{head.name} is the Ray head of this mesh already", hint=f"join without --head{other}"
        )
    if HUB in request.roles and not request.endpoints:
        raise UsageError(
            "hub_needs_endpoint",
            "a hub must be reachable from outside, but no endpoint was given",
            hint="--endpoint HOST:PORT",
        )
    return request.roles | ({WORKER} if request.with_ray and HEAD not in request.roles else set())


def _require_granted(request: EnrolRequest, token: TokenRecord, known: Member | None) -> None:
    granted = token.roles if known is None else known.node.roles
    missing = sorted(request.roles - granted)
    if not missing:
        return
    options = " ".join(f"--{role}" for role in missing)
    if known is None:
        raise RefusedError(
            "role_not_granted",
            f"the token {token.id} does not let a node become a {' or '.join(missing)}",
            hint=f"on the head: meshray token create {options}; or join without {options}",
        )
    raise RefusedError(
        "role_not_granted",
        f"this machine is the node {known.node.name} already, and not a {' or '.join(missing)}",
        hint=f"meshray leave, then join {options} with a token of: meshray token create {options}",
    )


def require_may_reenrol(known: Member, token: TokenRecord) -> None:
    """Raise RefusedError unless the holder of this token may enrol again as this member.

    Public keys are not secret. Otherwise the holder of any token could become the coordinator's node, whose credential
    creates tokens; or join again with a spent token and another node's key; or take the role of the head or a hub,
    whose own killed `join` is repeated with the same token.
    """
    would_take_role = known.node.roles & {HEAD, HUB} and known.token_id != token.id
    if known.node.roles & {COORDINATOR, STATIC} or would_take_role:
        raise RefusedError(
            "key_taken",
            f"this machine's key belongs to the node {known.node.name} already",
            hint="start with a new key: meshray leave, then join again",
        )
    if token.is_spent and known.token_id != token.id:
        raise token.spent()


def reenrolled(
    known: Member,
    request: EnrolRequest,
    token: TokenRecord,
    *,
    name: NodeName,
    roles: frozenset[str],
    attestation: Attestation | None,
) -> Member:
    """Return the member after its machine enrolled again. Raises as `labels_of` does."""
    node = as_requested(replace(known.node, name=name, roles=roles), request, token, attestation)
    return replace(known, node=node, advertised=node.endpoints)


def as_requested(node: Node, request: EnrolRequest, token: TokenRecord, attestation: Attestation | None) -> Node:
    """Return the node with what its machine requested. Raises as `labels_of` does."""
    return replace(
        node,
        endpoints=endpoints_of(request),
        ephemeral=request.ephemeral or token.ephemeral,
        labels=labels_of(request),
        versions=request.versions,
        attestation=attestation,
    )


def labels_of(request: EnrolRequest) -> dict[str, str]:
    """Return a user's labels. Raises UsageError if they are too long: every node gets them with each change."""
    size = sum(len(key) + len(value) for key, value in request.labels.items())
    if size > LONGEST_LABELS:
        raise UsageError(
            "labels_too_long",
            f"the labels have {size} characters; at most {LONGEST_LABELS} are kept",
            hint="fewer or shorter --label KEY=VALUE",
        )
    return dict(request.labels)


def endpoints_of(request: EnrolRequest) -> tuple[Endpoint, ...]:
    """Return a user's endpoints, each once."""
    return tuple(dict.fromkeys(request.endpoints))[:MAX_ENDPOINTS]


def name_of(
    request: EnrolRequest,
    token: TokenRecord,
    known: Member | None,
    taken: Set[str],
    reserved: Set[NodeName],
) -> NodeName:
    """Return the name that the node will have.

    A token that is bound to a name decides it. While such a token is valid, no other node gets that name.

    Args:
        known: the member that already has this key.
        taken: the names of all members.
        reserved: the names to which valid tokens are bound.

    Raises:
        RefusedError: ``name_taken``; ``token_other_name``: the token is bound to another name.
    """
    if token.name is not None:
        _require_bound_name(request, token, known)
        if known is not None:
            return known.node.name
        if token.name in taken:
            raise RefusedError(
                "name_taken",
                f"another node is called {token.name}",
                hint=f"on the head: meshray token create --name {token.name} --replace",
            )
        return token.name
    if known is not None and (not request.name_is_exact or request.name == known.node.name):
        return known.node.name
    if request.name_is_exact and request.name in reserved and request.name not in taken:
        raise RefusedError(
            "name_taken",
            f"the name {request.name} is reserved for the machine that joins with the token made for it",
            hint=f"join with another --name; or on the head: meshray token create --name {request.name}",
        )
    return free_name(
        request.name, taken | reserved if reserved else taken, exact=request.name_is_exact, option="--name"
    )


def _require_bound_name(request: EnrolRequest, token: TokenRecord, known: Member | None) -> None:
    if request.name_is_exact and request.name != token.name:
        raise RefusedError(
            "token_other_name",
            f"the token {token.id} was made for the node {token.name}, not for {request.name}",
            hint=f"join without --name; or on the head: meshray token create --name {request.name}",
        )
    if known is not None and known.token_id != token.id and known.node.name != token.name:
        raise RefusedError(
            "token_other_name",
            f"this machine is the node {known.node.name} already, and the token was made for {token.name}",
            hint="meshray leave, then join again with this token",
        )


def free_name(requested: NodeName, taken: Collection[str], *, exact: bool, option: str = "") -> NodeName:
    """Return the requested name, or one with a number if another node has it.

    Args:
        option: the command line's option for the name; empty: it is an argument.

    Raises:
        RefusedError: ``name_taken``, if it must be exactly this name.
    """
    if requested not in taken:
        return requested
    numbered = (NodeName(f"{requested[:57].rstrip('-')}-{number}") for number in range(2, len(taken) + 3))
    free = next(name for name in numbered if name not in taken)
    if exact:
        hint = f"{free} is free" + (f": {option} {free}" if option else "")
        raise RefusedError("name_taken", f"another node is called {requested}", hint=hint)
    return free
