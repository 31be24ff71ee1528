"""Every operation of the coordinator's API, as data: the application is built from it, and so is its description.

>>> [route.path for route in ROUTES if route.caller is Caller.ANYBODY]
['/v1/hello', '/v1/openapi.json']
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from meshray.coordinator import schemas
from meshray.coordinator.schemas import Schema, enveloped, record, ref
from meshray.linux.reachability import WORD


class Caller(Enum):
    """Who may call; the value says it in the description."""

    ANYBODY = "anybody"
    TOKEN = "who has a token"  # noqa: S105 - words, not a secret
    NODE = "nodes"
    ADMIN = "the node that runs the coordinator"


@dataclass(frozen=True)
class Route:
    """One operation.

    Attributes:
        name: of the operation, and of the function that answers it.
        request: the form of the body; None where there is none.
        body_required: whether an absent body is an error.
        answer: the form of a success; of a WebSocket there is none.
        refusals: HTTP statuses with which it refuses, besides those that every operation has.
        is_socket: it becomes a WebSocket (101), which stays.
    """

    name: str
    method: str
    path: str
    caller: Caller
    summary: str
    answer: Schema = field(default_factory=lambda: enveloped({}))
    request: Schema | None = None
    body_required: bool = True
    refusals: Mapping[int, str] = field(default_factory=dict)
    is_socket: bool = False


_NO_NODE = {404: "there is no such node"}

ROUTES: tuple[Route, ...] = (
    Route(
        *("hello", "GET", "/v1/hello", Caller.ANYBODY, "Which mesh this is; whether the credential is a node's"),
        answer=schemas.HELLO,
        refusals={401: "what was shown has not the form of a credential"},
    ),
    Route(
        *("openapi", "GET", "/v1/openapi.json", Caller.ANYBODY, "This description"),
        answer=record(
            {
                "openapi": {"const": "3.1.0"},
                **{key: {"type": "object"} for key in ("info", "paths", "components")},
            }
        ),
    ),
    Route(
        *("enrol", "POST", "/v1/enroll", Caller.TOKEN, "A machine becomes a node"),
        answer=schemas.ENROL_ANSWER,
        request=schemas.ENROL_REQUEST,
        refusals={
            403: "the token is unknown, revoked, expired, used up or of another mesh, or the key was not proven",
            409: "name, key or role are taken, the versions do not match, or no address is left",
        },
    ),
    Route(
        *("withdraw", "POST", "/v1/withdraw", Caller.TOKEN, "An enrolment whose answer did not arrive is undone"),
        answer=enveloped({"withdrawn": {**schemas.FLAG, "description": "whether there was a node to remove"}}),
        request=schemas.WITHDRAW_REQUEST,
        refusals={403: "the token is unknown, revoked, expired or of another mesh, or the key was not proven"},
    ),
    Route(
        *("environment", "GET", "/v1/environment", Caller.NODE, "What a node is to have that matches the head"),
        answer=schemas.ENVIRONMENT,
    ),
    Route(
        *("show_environment", "POST", "/v1/environment", Caller.TOKEN, "The same for a machine that will enrol"),
        answer=schemas.ENVIRONMENT,
        request=schemas.SHOWN_TOKEN,
        refusals={403: "the token is unknown, revoked, expired or of another mesh"},
    ),
    Route(
        *("lock_environment", "PUT", "/v1/environment", Caller.ADMIN, "What belongs to it beside Ray is recorded"),
        answer=schemas.ENVIRONMENT,
        request=record({"requirements": schemas.REQUIREMENTS}),
    ),
    Route(
        *("agent", "GET", "/v1/agent", Caller.NODE, "The map and its changes, and what the node reports"),
        is_socket=True,
    ),
    Route(
        *("relay", "GET", "/v1/relay", Caller.NODE, "WireGuard's datagrams, where UDP does not pass"),
        is_socket=True,
    ),
    Route(
        *("leave", "POST", "/v1/leave", Caller.NODE, "The calling node leaves the mesh"),
        request=record(
            {},
            {"take_back": {"type": "boolean", "description": "the join failed: the token's use is given back"}},
        ),
        body_required=False,
        refusals={409: "it runs the coordinator"},
    ),
    Route(
        *("rotate", "POST", "/v1/rotate", Caller.NODE, "The calling node has another key from now on"),
        answer=enveloped({"public_key": schemas.KEY, "revision": schemas.REVISION}),
        request=record({"public_key": schemas.KEY}, {"proof": schemas.PROOF, "attestation": ref("Attestation")}),
        refusals={
            403: "the key was not proven",
            409: "another node has this key, its identity did not sign it, it is a hub that static peers use, or no "
            "hub would hear of it",
        },
    ),
    Route(
        *(
            "reach",
            "POST",
            "/v1/reach",
            Caller.NODE,
            "A few UDP packets are sent to an endpoint with which the node enrolled",
        ),
        request=record({"endpoint": schemas.ENDPOINT, "word": schemas.text(32, pattern=WORD.pattern)}),
        refusals={
            403: "it did not enrol with this endpoint",
            409: "the address cannot be another machine's",
            429: "a packet is under way already",
        },
    ),
    Route(
        *("create_token", "POST", "/v1/tokens", Caller.ADMIN, "A new token"),
        answer=schemas.MADE_TOKEN,
        request=schemas.NEW_TOKEN,
        refusals={
            404: "there is no node of this name to replace",
            409: "the mesh has a lock, which must sign it; the name is taken; or that node cannot be replaced",
        },
    ),
    Route(
        *("list_tokens", "GET", "/v1/tokens", Caller.ADMIN, "All tokens, without their secrets"),
        answer=enveloped({"tokens": {"type": "array", "items": ref("Token")}}),
    ),
    Route(
        *("revoke_token", "DELETE", "/v1/tokens/{id}", Caller.ADMIN, "Nobody enrols with it any more"),
        answer={"allOf": [enveloped({}), ref("Token")]},
        refusals={404: "there is no such token"},
    ),
    Route(
        *("list_nodes", "GET", "/v1/nodes", Caller.ADMIN, "All nodes"),
        answer=enveloped(
            {
                "revision": schemas.REVISION,
                "nodes": {"type": "array", "items": schemas.MEMBER},
                "restored": schemas.RESTORED,
            },
            {"mesh": schemas.text(64), "lock": schemas.KEY, "removals": ref("Removals")},
        ),
    ),
    Route(
        *("remove_node", "DELETE", "/v1/nodes/{name}", Caller.ADMIN, "The node is removed from the mesh"),
        answer=enveloped(
            {**schemas.NAMED, "secrets": record(schemas.ROTATION)},
            {"locked": {**schemas.FLAG, "description": "the mesh has a lock, and it did not sign this"}},
        ),
        request=record({}, {"removal": record({"epoch": schemas.COUNTER, "signature": schemas.SIGNATURE})}),
        body_required=False,
        refusals={**_NO_NODE, 409: "it runs the coordinator, or the lock did not sign this"},
    ),
    Route(
        *("rotate_secrets", "POST", "/v1/secrets/rotate", Caller.ADMIN, "All members get new secrets"),
        answer=enveloped(schemas.ROTATION),
        refusals={409: "a node could not take them over"},
    ),
    Route(
        *("change_node", "PATCH", "/v1/nodes/{name}", Caller.ADMIN, "Another name, or Ray's tasks leave or come back"),
        answer=enveloped({**schemas.NAMED, "drained": schemas.FLAG}),
        request=schemas.NODE_CHANGE,
        refusals={**_NO_NODE, 409: "the name is taken, or it runs no Ray worker"},
    ),
    Route(
        *("add_peer", "POST", "/v1/peers", Caller.ADMIN, "A device without an agent; its key is told once"),
        answer=schemas.PEER,
        request=record({"name": schemas.NAME}, {"lock": schemas.LOCK}),
        refusals={409: "the name is taken, there is no hub, no address is left, or the lock must sign it"},
    ),
    Route(
        *("sign_peer", "PUT", "/v1/peers/{name}", Caller.ADMIN, "The key of such a device is signed"),
        answer=enveloped(schemas.NAMED),
        request=record({"attestation": ref("Attestation")}),
        refusals={**_NO_NODE, 409: "the signature is wrong, or it is no such device"},
    ),
    Route(
        *(
            "advertise",
            "POST",
            "/v1/advertise",
            Caller.ADMIN,
            "Others reach this machine there as well",
        ),
        answer=enveloped({"endpoints": schemas.ENDPOINTS}),
        request=record({"endpoints": schemas.ENDPOINTS}),
    ),
    Route(
        *(
            "ask",
            "POST",
            "/v1/ask",
            Caller.ADMIN,
            "Asks the agents of these nodes, or of all others, and gathers answers",
        ),
        answer=enveloped(schemas.GATHERED),
        request=schemas.ASKED,
        refusals={**_NO_NODE, 429: "it waits for the answers to other questions"},
    ),
)
