"""The description of the API matches the API: the same routes. Its content is public."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshray.coordinator.api_requests import MAX_BODY_BYTES
from meshray.coordinator.api_routes import ROUTES, Caller
from meshray.coordinator.connection_limits import ConnectionLimits
from meshray.coordinator.handlers import make_app
from meshray.coordinator.openapi import describe
from meshray.coordinator.service import Service
from meshray.relay.server import Relay

PAGE = Path(__file__).resolve().parents[3] / "docs" / "openapi.json"


def test_the_committed_description_is_current() -> None:
    assert json.loads(PAGE.read_text()) == describe(), "run: make docs"


def test_a_route_that_is_not_described_does_not_exist() -> None:
    app = make_app(Service.__new__(Service), ConnectionLimits(), Relay(1), Path())
    # aiohttp answers HEAD wherever it answers GET.
    routes = [route for route in app.router.routes() if route.method != "HEAD"]
    served = {(route.method, route.resource.canonical) for route in routes if route.resource}
    described = {(method.upper(), path) for path, operations in describe()["paths"].items() for method in operations}
    assert served == described
    assert len(routes) == len(described)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_an_operation_documents_its_callers_and_answers(route: object) -> None:
    operation = next(
        operation
        for path, operations in describe()["paths"].items()
        for operation in operations.values()
        if operation["operationId"] == getattr(route, "name", "")
    )
    assert operation["summary"]
    answers = operation["responses"]
    assert {"400", "413", "429"} <= set(answers)
    assert "401" in answers or not operation["security"]


def test_only_the_coordinators_own_node_administers() -> None:
    open_to_others = {route.name for route in ROUTES if route.caller is not Caller.ADMIN}
    asking = {"environment", "show_environment"}
    joining = {"enrol", "withdraw"}
    # It records whose order it refuses.
    recording = {"order"}
    # The wheel has no secrets.
    upgrading = {"wheel"}
    assert (
        open_to_others
        == {
            *("hello", "openapi", "agent", "relay", "leave", "reach", "rotate", "open_session"),
        }
        | asking
        | joining
        | recording
        | upgrading
    )


def test_every_reference_leads_somewhere() -> None:
    description = describe()
    known = {f"#/components/schemas/{name}" for name in description["components"]["schemas"]}
    named = set(references(description))
    assert named == known


def references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "$ref":
                yield str(item)
            else:
                yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def test_the_limit_of_a_body_is_reported() -> None:
    assert f"{MAX_BODY_BYTES // 1024} KiB" in describe()["info"]["description"]
