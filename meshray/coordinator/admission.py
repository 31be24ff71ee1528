"""Who may come in, under which name and with which roles: the refusals of an enrolment. Pure.

>>> token = token_of(request, mesh, tokens, now=0.0)      # RefusedError token_expired, …
>>> roles_of(request, known=None, head=None)
frozenset({'worker'})
"""

from __future__ import annotations

import hmac
from collections.abc import Collection, Mapping

from meshray.coordinator.records import Member, TokenRecord
from meshray.errors import RefusedError, UsageError
from meshray.model.address import Endpoint, NodeName
from meshray.model.enrol import EnrolRequest
from meshray.model.environment import ShownToken
from meshray.model.meshmap import MeshInfo
from meshray.model.node import COORDINATOR, HEAD, HUB, STATIC, WORKER, Node
from meshray.model.token import hash_secret

#: More endpoints than this nobody tries.
MAX_ENDPOINTS = 16
_NEW_TOKEN = "on the head: meshray token create"  # noqa: S105 - a command line, not a secret


class UnknownError(UsageError):
    """There is no node or token of that name here."""


class ConflictError(UsageError):
    """It cannot be done to this node."""


def token_of(
    request: EnrolRequest | ShownToken, mesh: MeshInfo, tokens: Mapping[str, TokenRecord], now: float
) -> TokenRecord:
    """The token that was shown. Raises RefusedError where it is none of this mesh or may not be used any more."""
    if request.mesh_id != mesh.id:
        raise RefusedError(
            "token_other_mesh", "the token belongs to another mesh than the one that answered", hint=_NEW_TOKEN
        )
    token = tokens.get(request.token_id)
    if token is None or not hmac.compare_digest(token.secret_hash, hash_secret(request.secret)):
        raise RefusedError("token_unknown", f"the mesh {mesh.name} knows no such token", hint=_NEW_TOKEN)
    refusal = token.refusal(now)
    if refusal is not None:
        raise refusal
    return token


def roles_of(request: EnrolRequest, known: Member | None, head: Node | None) -> frozenset[str]:
    """What the node will be.

    Args:
        known: the member that has this key already.
        head: the mesh's head of the moment.

    Raises:
        RefusedError: head_exists. UsageError: hub_needs_endpoint.
    """
    if HEAD in request.roles and head is not None and (known is None or head.id != known.node.id):
        other = (
            "" if COORDINATOR in head.roles else f"; where {head.name} is gone for good: meshray node rm {head.name}"
        )
        raise RefusedError(
            "head_exists", f"{head.name} is the Ray head of this mesh already", hint=f"join without --head{other}"
        )
    if HUB in request.roles and not request.endpoints:
        raise UsageError(
            "hub_needs_endpoint",
            "a hub is reached from outside, and no endpoint was given",
            hint="--endpoint HOST:PORT",
        )
    return request.roles | ({WORKER} if request.with_ray and HEAD not in request.roles else set())


def require_same(known: Member, token: TokenRecord) -> None:
    """Raises RefusedError unless whoever shows this token may come back as this member.

    Public keys are no secret. Whoever holds any token could otherwise become the coordinator's node,
    whose credential makes tokens; or get in once more with a spent token and another's key; or take its
    role from the head or a hub, whose own killed `join` comes back with the same token.
    """
    is_others = known.node.roles & {HEAD, HUB} and known.token_id != token.id
    if known.node.roles & {COORDINATOR, STATIC} or is_others:
        raise RefusedError(
            "key_taken",
            f"this machine's key belongs to the node {known.node.name} already",
            hint="start with a new key: meshray leave, then join again",
        )
    if token.is_spent and known.token_id != token.id:
        raise token.spent()


def endpoints_of(request: EnrolRequest) -> tuple[Endpoint, ...]:
    """Those that a person gave, each once."""
    return tuple(dict.fromkeys(request.endpoints))[:MAX_ENDPOINTS]


def free_name(wanted: NodeName, taken: Collection[str], *, exact: bool) -> NodeName:
    """The wanted name, or with a number where another node has it. Raises RefusedError name_taken where exact."""
    if wanted not in taken:
        return wanted
    numbered = (NodeName(f"{wanted[:57].rstrip('-')}-{number}") for number in range(2, len(taken) + 3))
    free = next(name for name in numbered if name not in taken)
    if exact:
        raise RefusedError(
            "name_taken", f"another node is called {wanted}", hint=f"{free} is free (join: --name {free})"
        )
    return free
