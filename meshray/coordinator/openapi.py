"""The description of the coordinator's API (OpenAPI 3.1), built from the routes of the application. Pure.

    python -m meshray.coordinator.openapi > docs/openapi.json

It is served to every client at /v1/openapi.json: it contains nothing about a mesh.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Struct

from meshray import __version__
from meshray.coordinator.api_routes import ROUTES, Caller, Route
from meshray.protocol import api

_DESCRIPTION = (
    "Enrolment and management of nodes, and the map through which they find each other. Clients pin the certificate by "
    "the SHA-256 fingerprint in the token. A body has at most 64 KiB, a header at most 32 KiB."
)
_REFUSALS = {
    400: "the request is malformed",
    413: "the body is larger than 64 KiB",
    429: "the coordinator is overloaded",
}
_CALLER_REFUSALS = {
    Caller.ANYONE: {},
    Caller.TOKEN: {},
    Caller.NODE: {401: "the credential is missing or unknown"},
    Caller.ADMIN: {401: "the credential is missing or unknown", 403: "the node does not run the coordinator"},
}


Schema = dict[str, Any]


def describe(routes: Iterable[Route] = ROUTES) -> dict[str, Any]:
    """Return the whole description as JSON."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "meshray coordinator",
            "version": __version__,
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": _components(routes),
            "securitySchemes": {
                "credential": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "the node's credential, sent once, in the answer to its enrolment",
                }
            },
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "description": f"Who may call: {route.caller.value}.",
        "security": [] if route.caller in (Caller.ANYONE, Caller.TOKEN) else [{"credential": []}],
        "responses": _responses(route),
    }
    names = re.findall(r"\{(\w+)\}", route.path)
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            for name in names
        ]
    if route.request is not None:
        operation["requestBody"] = {"required": route.body_required, "content": _json(_ref(route.request))}
    return operation


def _responses(route: Route) -> dict[str, Any]:
    if route.is_socket:
        success: dict[str, Any] = {"101": {"description": "the WebSocket is open"}}
    else:
        success = {"200": {"description": "done", "content": _json(_enveloped(route.answer))}}
    refusals = {**_REFUSALS, **_CALLER_REFUSALS[route.caller], **route.refusals}
    error = _json(_ref(api.Error))
    return success | {str(status): {"description": why, "content": error} for status, why in sorted(refusals.items())}


def _json(schema: Schema) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _enveloped(answer: type[Struct]) -> Schema:
    """Return the schema of an answer: every answer but this description contains the version of its form."""
    if answer is api.Description:
        return _ref(answer)
    return {"allOf": [{"properties": {"schema": {"const": 1}}, "required": ["schema"]}, _ref(answer)]}


def _ref(form: type[Struct]) -> Schema:
    return {"$ref": f"#/components/schemas/{form.__name__.removesuffix('Form')}"}


def _components(routes: Iterable[Route]) -> dict[str, Schema]:
    """Return the schemas of all Structs, by their names."""
    requests = [route.request for route in routes if route.request is not None]
    answers = [route.answer for route in routes if not route.is_socket]
    request_schemas, known = _schemas(requests), _schemas([*requests, *answers, api.Error])
    for name in known.keys() - request_schemas.keys():
        # An answer has every field except those that are omitted, which have no default.
        fields = known[name]["properties"].items()
        known[name]["required"] = [key for key, value in fields if key in known[name]["required"] or "default" in value]
        for _, value in fields:
            value.pop("default", None)
    known["ChangeNode"]["oneOf"] = [{"required": ["name"]}, {"required": ["drained"]}]
    return known


def _schemas(forms: Iterable[type[Struct]]) -> dict[str, Schema]:
    _, found = msgspec.json.schema_components(list(forms), ref_template="#/components/schemas/{name}")
    schemas: dict[str, Schema] = json.loads(re.sub(r"(?<=[a-z])Form\"", '"', json.dumps(found)))
    for schema in schemas.values():
        del schema["title"]  # The schema's own name.
        schema["description"] = schema["description"].partition("\n\n")[0]
    return schemas


if __name__ == "__main__":
    sys.stdout.write(json.dumps(describe(), indent=1) + "\n")
