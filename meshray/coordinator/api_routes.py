"""Every operation of the coordinator's API, as data for the application and for its description.

>>> [route.path for route in ROUTES if route.caller is Caller.ANYONE]
['/v1/hello', '/v1/openapi.json']
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from msgspec import Struct

from meshray.protocol import api, passes


class Caller(Enum):
    """The callers that an operation accepts; the value is their description."""

    ANYONE = "anyone"
    TOKEN = "holders of a token"  # noqa: S105 - words, not a secret
    NODE = "nodes"
    ADMIN = "the node that runs the coordinator"


@dataclass(frozen=True)
class Route:
    """One operation.

    Attributes:
        name: the name of the operation, and of the function that answers it.
        request: the form of the body; None if there is none.
        body_required: whether an absent body is an error.
        answer: the form of a success; a WebSocket has none.
        refusals: the HTTP statuses of its refusals, in addition to those of every operation.
        is_socket: it becomes a WebSocket (101), which stays open.
    """

    name: str
    method: str
    path: str
    caller: Caller
    summary: str
    answer: type[Struct] = api.Done
    request: type[Struct] | None = None
    body_required: bool = True
    refusals: Mapping[int, str] = field(default_factory=dict)
    is_socket: bool = False


_NO_NODE = {404: "the node does not exist"}

ROUTES: tuple[Route, ...] = (
    Route(
        *("hello", "GET", "/v1/hello", Caller.ANYONE, "The mesh, and whether the credential is a node's"),
        answer=api.HelloForm,
        refusals={401: "the credential is malformed"},
    ),
    Route(
        *("openapi", "GET", "/v1/openapi.json", Caller.ANYONE, "This description"),
        answer=api.Description,
    ),
    Route(
        *("enrol", "POST", "/v1/enroll", Caller.TOKEN, "Enrol a machine as a node"),
        answer=api.EnrolledForm,
        request=api.EnrolForm,
        refusals={
            403: "the token is unknown, revoked, expired, used up or of another mesh, or the key was not proven",
            409: "the name, key or role is taken, the versions do not match, or no address is free",
        },
    ),
    Route(
        *("withdraw", "POST", "/v1/withdraw", Caller.TOKEN, "Undo an enrolment whose answer did not arrive"),
        answer=api.Withdrawn,
        request=api.WithdrawForm,
        refusals={403: "the token is unknown, revoked, expired or of another mesh, or the key was not proven"},
    ),
    Route(
        *("environment", "GET", "/v1/environment", Caller.NODE, "The environment that matches the head's"),
        answer=api.EnvironmentForm,
    ),
    Route(
        *("show_environment", "POST", "/v1/environment", Caller.TOKEN, "The environment for a machine that will enrol"),
        answer=api.EnvironmentForm,
        request=api.PresentedToken,
        refusals={403: "the token is unknown, revoked, expired or of another mesh"},
    ),
    Route(
        *(
            "lock_environment",
            "PUT",
            "/v1/environment",
            Caller.ADMIN,
            "Record the packages of the head's environment",
        ),
        answer=api.EnvironmentForm,
        request=api.LockEnvironment,
    ),
    Route(
        *("agent", "GET", "/v1/agent", Caller.NODE, "The map and its changes, and the node's reports"),
        refusals={503: "too many agents connect; Retry-After has the seconds until the next attempt"},
        is_socket=True,
    ),
    Route(
        *("relay", "GET", "/v1/relay", Caller.NODE, "WireGuard's datagrams, for networks that block UDP"),
        is_socket=True,
    ),
    Route(
        *("leave", "POST", "/v1/leave", Caller.NODE, "Remove the calling node from the mesh"),
        request=api.Leave,
        body_required=False,
        refusals={409: "it runs the coordinator"},
    ),
    Route(
        *("rotate", "POST", "/v1/rotate", Caller.NODE, "Change the key of the calling node"),
        answer=api.KeyRotated,
        request=api.RotateKey,
        refusals={
            403: "the key was not proven",
            409: "another node has this key, its identity did not sign it, it is a hub that static peers use, "
            "or no hub would receive it",
        },
    ),
    Route(
        *(
            "reach",
            "POST",
            "/v1/reach",
            Caller.NODE,
            "Send a few UDP packets to an endpoint with which the node enrolled",
        ),
        request=api.Reach,
        refusals={
            403: "the node did not enrol with this endpoint",
            409: "the address cannot belong to another machine",
            429: "a check is in progress already",
        },
    ),
    Route(
        *("create_token", "POST", "/v1/tokens", Caller.ADMIN, "Create a token"),
        answer=api.CreatedToken,
        request=api.NewToken,
        refusals={
            404: "no node has this name",
            409: "the mesh has a lock, which must sign it; the name is taken; or that node cannot be replaced",
        },
    ),
    Route(
        *("list_tokens", "GET", "/v1/tokens", Caller.ADMIN, "List all tokens, without their secrets"),
        answer=api.Tokens,
    ),
    Route(
        *("revoke_token", "DELETE", "/v1/tokens/{id}", Caller.ADMIN, "Revoke a token"),
        answer=api.TokenForm,
        refusals={404: "the token does not exist"},
    ),
    Route(
        *("list_nodes", "GET", "/v1/nodes", Caller.ADMIN, "List all nodes"),
        answer=api.Nodes,
    ),
    Route(
        *("remove_node", "DELETE", "/v1/nodes/{name}", Caller.ADMIN, "Remove a node from the mesh"),
        answer=api.NodeRemoved,
        request=api.RemoveNode,
        body_required=False,
        refusals={**_NO_NODE, 409: "it runs the coordinator, or the lock did not sign this"},
    ),
    Route(
        *("rotate_secrets", "POST", "/v1/secrets/rotate", Caller.ADMIN, "Give all members new secrets"),
        answer=api.Rotation,
        refusals={409: "a node cannot change its secrets"},
    ),
    Route(
        *("change_node", "PATCH", "/v1/nodes/{name}", Caller.ADMIN, "Rename, drain or undrain a node"),
        answer=api.NodeChanged,
        request=api.ChangeNode,
        refusals={**_NO_NODE, 409: "the name is taken, or it runs no Ray worker"},
    ),
    Route(
        *("add_peer", "POST", "/v1/peers", Caller.ADMIN, "Add a device without an agent; its key is sent once"),
        answer=api.PeerAdded,
        request=api.AddPeer,
        refusals={409: "the name is taken, there is no hub, no address is free, or the lock must sign it"},
    ),
    Route(
        *("sign_peer", "PUT", "/v1/peers/{name}", Caller.ADMIN, "Sign the key of a device without an agent"),
        answer=api.Named,
        request=api.SignPeer,
        refusals={**_NO_NODE, 409: "the signature is wrong, or the node is not such a device"},
    ),
    Route(
        *(
            "advertise",
            "POST",
            "/v1/advertise",
            Caller.ADMIN,
            "Record another address of this machine",
        ),
        answer=api.Endpoints,
        request=api.Endpoints,
    ),
    Route(
        *(
            "copy_store",
            "POST",
            "/v1/backup",
            Caller.ADMIN,
            "Write a copy of the database on the coordinator's machine",
        ),
        answer=api.StoreCopy,
    ),
    Route(
        *("create_pass", "POST", "/v1/web/passes", Caller.ADMIN, "Create a pass for the coordinator's page"),
        answer=passes.CreatedPass,
        request=passes.NewPass,
        refusals={409: "a valid pass has this name, or there are too many passes"},
    ),
    Route(
        *("list_passes", "GET", "/v1/web/passes", Caller.ADMIN, "List all passes, without their secrets"),
        answer=passes.Passes,
    ),
    Route(
        *("revoke_pass", "DELETE", "/v1/web/passes/{pass}", Caller.ADMIN, "Revoke a pass and end its session"),
        answer=passes.PassForm,
        refusals={404: "the pass does not exist"},
    ),
    Route(
        *("open_session", "POST", "/v1/web/session", Caller.NODE, "Create a link for one browser of the calling node"),
        answer=passes.CreatedLink,
    ),
    Route(
        *("wheel", "GET", "/v1/wheel", Caller.NODE, "A wheel of meshray that the head offers for an upgrade"),
        is_socket=True,
    ),
    Route(
        *(
            "order",
            "GET",
            "/v1/orders",
            Caller.NODE,
            "Give one order to a node; only to the node that runs the coordinator is this not refused",
        ),
        is_socket=True,
    ),
    Route(
        *("metrics", "GET", "/v1/metrics", Caller.ADMIN, "The coordinator's own metrics, for Prometheus"),
        answer=api.MetricsText,
    ),
    Route(
        *(
            "ask",
            "POST",
            "/v1/ask",
            Caller.ADMIN,
            "Query the agents of these nodes, or of all others",
        ),
        answer=api.Gathered,
        request=api.AskForm,
        refusals={**_NO_NODE, 429: "too many queries are open"},
    ),
)
