from __future__ import annotations

import json
from ipaddress import IPv4Address

import pytest

from meshray.model.ray_state import Waiting
from meshray.raynode.dashboard_client import LiveNode, parse_nodes, parse_use


def answer(*rows: object) -> bytes:
    """Return an answer of Ray 2.44 to 2.60 to /api/v0/nodes."""
    return json.dumps({"result": True, "msg": "", "data": {"result": {"total": len(rows), "result": rows}}}).encode()


def row(ip: str, state: str = "ALIVE") -> dict[str, object]:
    return {
        "node_id": "ab",
        "node_ip": ip,
        "state": state,
        "start_time_ms": 1_700_000_000_500,
        "resources_total": {"CPU": 8.0, "memory": 2e9, "node:10.99.0.1": 1.0},
    }


def test_the_living_are_listed_with_what_they_offer() -> None:
    assert parse_nodes(answer(row("10.99.0.1"), row("10.99.0.2", "DEAD"))) == [
        LiveNode(IPv4Address("10.99.0.1"), 1_700_000_000.5, {"CPU": 8.0, "memory": 2e9, "node:10.99.0.1": 1.0}, id="ab")
    ]


def test_an_empty_table_is_an_answer() -> None:
    assert parse_nodes(answer()) == []


@pytest.mark.parametrize(
    "body", [b"", b"Service Unavailable", b"[]", b'{"data": null}', b'{"result": false, "data": {"result": null}}']
)
def test_output_without_a_table_is_not_an_answer(body: bytes) -> None:
    assert parse_nodes(body) is None


def test_rows_without_sense_are_left_out() -> None:
    odd = {**row("10.99.0.3"), "resources_total": None, "start_time_ms": None}
    assert parse_nodes(answer("text", row("no address"), odd)) == [LiveNode(IPv4Address("10.99.0.3"), 0.0, {}, id="ab")]


def test_usage_is_reported_by_node() -> None:
    used = {
        "ab": {"CPU": [1.5, 8.0], "memory": [2e9, 4e9], "objectStoreMemory": [1.0, 2.0], "node:10.99.0.1": [0.0, 1.0]},
        "cd": {"CPU": [0.0, 2.0], "GPU": "many"},
    }
    body = json.dumps({"data": {"clusterStatus": {"loadMetricsReport": {"usageByNode": used}}}}).encode()
    assert parse_use(body).by_node == {"ab": {"CPU": 1.5, "memory": 2e9}, "cd": {"CPU": 0.0}}


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"data": null}', b'{"data": {"clusterStatus": {}}}', b'{"data": {"clusterStatus": "no"}}']
)
def test_a_cluster_without_a_report_shows_no_usage(body: bytes) -> None:
    assert parse_use(body) == ({}, ())


def test_the_requests_that_wait_are_read() -> None:
    demand = [[{"CPU": 1.0}, 57], [{"GPU": 4.0, "CPU": 1.0}, 2], [{"CPU": 1.0}, 0], [{}, 1], "odd", [7, 7], [{}, "1"]]
    body = json.dumps({"data": {"clusterStatus": {"loadMetricsReport": {"resourceDemand": demand}}}}).encode()
    assert parse_use(body).waiting == (
        Waiting({"CPU": 1.0}, 57),
        Waiting({"GPU": 4.0, "CPU": 1.0}, 2),
        Waiting({}, 1),
    )
