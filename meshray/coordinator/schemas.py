"""The forms of what the coordinator takes and answers, as JSON Schema 2020-12 (data).

The same bounds stand in the ``from_json`` of the types; that both agree is shown by fuzzing the coordinator from this
description. Fields that are not described are passed over, so that an older side understands a newer one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meshray.model.node import GONE, ROLES, SILENT
from meshray.protocol.api import LONGEST_REQUIREMENTS, WISHES
from meshray.protocol.connection import MAX_WAIT_S
from meshray.protocol.fields import (
    FIRST_EPOCH,
    HIGHEST_PORT,
    LONGEST_LABELS,
    LONGEST_MARK,
    LONGEST_TICKET,
    LOWEST_PORT,
    MAX_COUNTER,
    MAX_ENDPOINT,
    MAX_EPOCH,
    MAX_ITEM_CHARACTERS,
    MAX_ITEMS,
    MAX_PATIENCE_S,
    MAX_REVISION,
    MIN_PATIENCE_S,
)

Schema = Mapping[str, Any]

#: Ten years, in seconds; who wants longer wants 0, for ever.
MAX_TTL_S = 10 * 366 * 86400
MAX_USES = 1_000_000


def text(longest: int, *, shortest: int = 0, pattern: str = "", **more: object) -> Schema:
    """A text; its bounds are in characters."""
    schema: dict[str, Any] = {"type": "string", "maxLength": longest}
    if shortest:
        schema["minLength"] = shortest
    if pattern:
        schema["pattern"] = f"^(?:{pattern})$"
    return {**schema, **more}


def number(low: int, high: int, **more: object) -> Schema:
    """A whole number, both bounds included."""
    return {"type": "integer", "minimum": low, "maximum": high, **more}


def listed(items: Schema, most: int = MAX_ITEMS) -> Schema:
    """A list of at most so many."""
    return {"type": "array", "items": items, "maxItems": most}


def record(properties: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    """An object; ``properties`` must be there, ``optional`` may be."""
    return {"type": "object", "properties": {**properties, **(optional or {})}, "required": list(properties)}


def enveloped(properties: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    """An answer: everything carries the version of its form."""
    return record({"schema": {"const": 1}, **properties}, optional)


def ref(name: str) -> Schema:
    """One of `COMPONENTS`."""
    return {"$ref": f"#/components/schemas/{name}"}


REVISION = number(0, MAX_REVISION)
FLAG: Schema = {"type": "boolean"}
EPOCH = number(FIRST_EPOCH, MAX_EPOCH)
TIME: Schema = {"type": "number", "description": "unix seconds"}
TIME_OR_NEVER: Schema = {"type": ["number", "null"], "description": "unix seconds; null: never"}
SIGNATURE = text(88, shortest=88, pattern="[A-Za-z0-9+/]{86}==", description="Ed25519, base64")
COUNTER = number(0, MAX_COUNTER)
GRANTED: Schema = {
    **listed({"enum": sorted(WISHES)}),
    "description": "what a node that enrols with the token may be beyond a node",
}
#: What a node's name may be when it comes in; it is made lower case.
NAME = text(63, pattern="[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?", description="a host-name label (RFC 1123)")
OWN_NAME = text(63, pattern="[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
#: 32 bytes in base64: the last character holds four bits and two zeros.
KEY = text(44, pattern="[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=", description="WireGuard's form of a key")
LOCK = {**KEY, "description": "the public half of the lock that will sign it, where the mesh has one"}
SECRET_KEY: Schema = {**KEY, "format": "password"}
ADDRESS = text(15, pattern=r"[0-9]{1,3}(\.[0-9]{1,3}){3}", description="IPv4, in the overlay")
NETWORK = text(18, pattern=r"[0-9]{1,3}(\.[0-9]{1,3}){3}/[0-9]{1,2}")
#: Where a server stands in the world: nothing that is not HOST:PORT, [IPv6]:PORT.
ENDPOINT = text(MAX_ENDPOINT, pattern=r".*:[0-9]{1,5}", description="HOST:PORT or [IPv6]:PORT")
ENDPOINTS = listed(ENDPOINT)
#: See `meshray.model.proof`.
PROOF = text(64, description="that the sender has the private half of the key: HMAC-SHA256; refused without")
#: Of a token, to which node it is bound.
BOUND: Mapping[str, Schema] = {
    "name": {
        "type": ["string", "null"],
        "maxLength": 63,
        "description": "the name of the node that enrols with it; null: the node chooses",
    },
    "replace": {**FLAG, "description": "that node takes the place of the one that had this name"},
}
LABELS: Schema = {
    "type": "object",
    "maxProperties": MAX_ITEMS,
    "propertyNames": {"maxLength": MAX_ITEM_CHARACTERS},
    "additionalProperties": text(MAX_ITEM_CHARACTERS),
    "description": f"at enrolment keys and values have {LONGEST_LABELS} characters together at most",
}
RAY_PORTS: Schema = {
    "type": "object",
    "additionalProperties": number(LOWEST_PORT, HIGHEST_PORT),
    "description": "those of the head's Ray that `meshray init` chose, by name; absent: the defaults",
}
_VERSION = text(MAX_ITEM_CHARACTERS)
_MESH_MAP = record(
    {
        "mesh": record(
            {
                "id": text(64),
                "name": text(63),
                "network": NETWORK,
                "patience_s": number(
                    MIN_PATIENCE_S,
                    MAX_PATIENCE_S,
                    description="seconds for which Ray waits for a node that does not answer",
                ),
            },
            {"lock": KEY, "ray_ports": RAY_PORTS},
        ),
        "revision": REVISION,
        "nodes": {"type": "object", "additionalProperties": ref("Node")},
        "mark": text(LONGEST_MARK, description="this moment, by the coordinator's own name; shown to it again"),
    },
    {"removals": ref("Removals")},
)

#: What more than one operation names.
COMPONENTS: Mapping[str, Schema] = {
    "Error": {
        **record(
            {
                "schema": {"const": 1},
                "error": record(
                    {"code": text(64, pattern="[a-z][a-z0-9_]*"), "message": text(4096), "hint": text(4096)}
                ),
                "exit_code": {"enum": [1, 2, 3, 4, 5], "description": "what the command line ends with"},
            }
        ),
        "description": "why not; `hint` is the next command or step, and may be empty",
    },
    "Versions": {
        **record({}, {"meshray": _VERSION, "ray": _VERSION, "python": _VERSION}),
        "description": "what a node runs; empty: not there, or not known; cut at 64 characters",
    },
    "Node": record(
        {
            "id": text(64),
            "name": OWN_NAME,
            "ip": ADDRESS,
            "public_key": KEY,
            "roles": listed({"enum": sorted(ROLES)}),
            "endpoints": listed(ENDPOINT),
            "seen": text(MAX_ENDPOINT, description="where a hub sees it; empty: not over UDP"),
            "hubs": listed(text(MAX_ITEM_CHARACTERS)),
            "online": FLAG,
            "ephemeral": FLAG,
            "drained": FLAG,
            "down": FLAG,
            "ended": {**FLAG, "description": "its agent was killed"},
            "silence": {
                "enum": ["", SILENT, GONE],
                "description": "whether it answers over the overlay, as the coordinator's node finds",
            },
            "labels": LABELS,
            "versions": ref("Versions"),
            "ray_instance": text(64),
        },
        {
            "faults": {**LABELS, "description": "what is wrong with it that others must know: detail by code"},
            "secret_epoch": {**EPOCH, "description": "the newest epoch of the secrets that it holds; absent: 1"},
            "attestation": ref("Attestation"),
            "ray_ports": {**RAY_PORTS, "description": "those of its Ray that it chose for itself, by name"},
        },
    ),
    "Attestation": {
        **record(
            {"identity": KEY, "counter": COUNTER, "signature": SIGNATURE},
            {
                "ip": ADDRESS,
                "chain": record(
                    {
                        "grant": record(
                            {
                                "key": KEY,
                                "roles": listed(text(MAX_ITEM_CHARACTERS)),
                                "epoch": COUNTER,
                                "signature": SIGNATURE,
                            }
                        ),
                        "signature": SIGNATURE,
                    }
                ),
            },
        ),
        "description": "a node's identity signs its WireGuard key; the chain says how the lock let the identity in",
    },
    "Removals": {
        **record({"epoch": COUNTER, "identities": {"type": "array", "items": KEY}, "signature": SIGNATURE}),
        "description": "the identities that the lock removed for good",
    },
    "Map": {**_MESH_MAP, "description": "what every node knows of the others, by node id"},
    "Token": record(
        {
            "id": text(64),
            "uses": number(0, MAX_USES, description="0: any number"),
            "used": number(0, MAX_REVISION),
            "expires": TIME_OR_NEVER,
            "ephemeral": FLAG,
            "created": TIME,
            "revoked": FLAG,
        },
        {"roles": GRANTED, **BOUND},
    ),
}

_TOKEN_PARTS = {"mesh_id": text(64), "token_id": text(64), "secret": text(128, format="password")}
SHOWN_TOKEN = record(_TOKEN_PARTS)
WITHDRAW_REQUEST = record({**_TOKEN_PARTS, "public_key": KEY}, {"proof": PROOF})
ENROL_REQUEST = record(
    {
        **_TOKEN_PARTS,
        "name": NAME,
        "public_key": KEY,
    },
    {
        "name_is_exact": {**FLAG, "description": "a taken name is refused; else it gets a number"},
        "with_ray": FLAG,
        "ephemeral": FLAG,
        "labels": LABELS,
        "endpoints": listed(ENDPOINT),
        "roles": {**listed({"enum": sorted(WISHES)}), "description": "what it wants to be beyond a node"},
        "follows_epochs": {**FLAG, "description": "its agent takes over new epochs of the secrets"},
        "versions": ref("Versions"),
        "proof": PROOF,
        "attestation": ref("Attestation"),
    },
)
ENROL_ANSWER = enveloped(
    {
        "node_id": text(64),
        "credential": text(128, format="password"),
        "mesh_secret": SECRET_KEY,
        "ray_token": text(256, format="password"),
        "map": ref("Map"),
        "observed": text(45, description="the address from which the request came; empty: not known"),
        "ticket": text(
            LONGEST_TICKET, description="by which a coordinator put back from a copy knows the node again; empty: none"
        ),
        "secret_epoch": {**EPOCH, "description": "of mesh_secret and ray_token"},
    }
)
REQUIREMENTS = text(LONGEST_REQUIREMENTS, description="one requirement (PEP 508) a line; empty: none")
ENVIRONMENT = enveloped({"ray": text(64), "python": text(64), "requirements": REQUIREMENTS}, {"ray_ports": RAY_PORTS})
HELLO = enveloped(
    {"mesh": text(64), "name": text(63), "version": text(64)},
    {
        "accepted": {
            **FLAG,
            "description": "whether the credential that was shown is a node's; absent: none was shown",
        },
        "revision": {"type": ["integer", "null"], "description": "of the map, where it is"},
        "proof_key": {**KEY, "description": "with which a node proves its own key; another after each start"},
    },
)
NEW_TOKEN = record(
    {},
    {
        "uses": number(0, MAX_USES, default=1),
        "ttl_s": number(0, MAX_TTL_S, default=86400),
        "ephemeral": FLAG,
        "roles": GRANTED,
        "lock": LOCK,
        "name": {**NAME, "description": "the name of the node that enrols with it; uses must be 1"},
        "replace": {**FLAG, "description": "that node takes the place of the one that has this name now"},
    },
)
MADE_TOKEN = enveloped(
    {
        "token": text(8192, shortest=1, format="password"),
        "id": text(64),
        "uses": number(0, MAX_USES),
        "expires": TIME_OR_NEVER,
        "port": number(1, 65535),
    },
    {"roles": GRANTED, **BOUND},
)
RESTORED: Schema = {
    **record(
        {
            "at": TIME,
            "serial": {"type": "integer", "description": "nodes were told moments up to this one"},
            "had": {"type": "integer", "description": "the last moment that the copy had"},
            "whole": {**FLAG, "description": "the map of that moment was put back"},
            "added": {"type": "array", "items": text(63), "description": "nodes that the copy did not have"},
            "removed": {"type": "array", "items": text(63), "description": "nodes that had been removed"},
        }
    ),
    "type": ["object", "null"],
    "description": "the last time that the database turned out to be an older copy; null: it never did",
}
MEMBER: Schema = {"allOf": [ref("Node"), record({"enrolled": TIME})]}
NAMED = {"name": OWN_NAME, "ip": ADDRESS}
#: Exactly one of the two.
NODE_CHANGE: Schema = {
    "type": "object",
    "properties": {"name": NAME, "drained": FLAG},
    "oneOf": [{"required": ["name"]}, {"required": ["drained"]}],
}
_NAMES: Schema = {"type": "array", "items": text(63)}
#: What a rotation of the secrets did.
ROTATION: Mapping[str, Schema] = {
    "epoch": {**EPOCH, "description": "the newest one now"},
    "started": {**FLAG, "description": "whether it is a new one"},
    "away": {**_NAMES, "description": "nodes that are not connected; they receive it when they are"},
    "static": {**_NAMES, "description": "static peers, which keep the epoch of their file"},
    "too_old": {**_NAMES, "description": "nodes whose meshray cannot take over a new one"},
}
PEER = enveloped(
    {
        "mesh": text(64),
        **NAMED,
        "private_key": SECRET_KEY,
        "public_key": KEY,
        "network": NETWORK,
        "hub": record(
            {**NAMED, "public_key": KEY, "endpoints": listed(ENDPOINT), "preshared_key": SECRET_KEY},
        ),
    }
)
ASKED = record(
    {"op": text(32)}, {"nodes": listed(text(MAX_ITEM_CHARACTERS)), "timeout_s": number(1, MAX_WAIT_S, default=10)}
)
GATHERED: Mapping[str, Schema] = {
    "answers": {"type": "object", "additionalProperties": {"type": "object"}, "description": "by the node's name"},
    "silent": {"type": "object", "additionalProperties": text(4096), "description": "who has none, and why"},
}
