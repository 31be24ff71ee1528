"""The targets that Prometheus finds."""

from __future__ import annotations

import json
from dataclasses import replace

from meshray.agent.metrics.discovery import discovery
from meshray.model.address import Endpoint
from meshray.model.node import STATIC, Node, Versions
from tests.unit.agent.sample import HEAD_NODE, MAP, WORKER_A, WORKER_B


def targets(*nodes: Node) -> dict[str, list[str]]:
    mesh_map = replace(MAP, nodes={node.id: node for node in nodes})
    return {group["labels"]["node"]: group["targets"] for group in discovery(mesh_map)}  # type: ignore[index,misc]


def test_all_nodes_are_targets_with_their_labels() -> None:
    seen = replace(WORKER_A, seen=Endpoint("192.168.7.20", 51888), labels={})
    labelled = replace(WORKER_B, labels={"site": "attic"})
    groups = discovery(replace(MAP, nodes={node.id: node for node in (labelled, HEAD_NODE, seen)}))
    assert json.loads(json.dumps(groups)) == [
        {
            "targets": ["10.99.0.1:20190", "10.99.0.1:20106", "10.99.0.1:20107", "10.99.0.1:20108"],
            "labels": {"mesh": "lab", "node": "head", "role": "head", "site": "203.0.113.10"},
        },
        {
            "targets": ["10.99.0.2:20190", "10.99.0.2:20106"],
            "labels": {"mesh": "lab", "node": "gpu-a", "role": "worker", "site": "192.168.7.0-24"},
        },
        {
            "targets": ["10.99.0.3:20190", "10.99.0.3:20106"],
            "labels": {"mesh": "lab", "node": "gpu-b", "role": "worker", "site": "attic"},
        },
    ]


def test_a_node_without_ray_has_no_target_of_ray() -> None:
    without = replace(WORKER_A, versions=Versions("0.1.0"))
    assert targets(HEAD_NODE, without)["gpu-a"] == ["10.99.0.2:20190"]
    assert targets(replace(HEAD_NODE, versions=Versions("0.1.0")), WORKER_A)["gpu-a"] == ["10.99.0.2:20190"]
    assert targets(HEAD_NODE, replace(WORKER_A, drained=True))["gpu-a"] == ["10.99.0.2:20190"]


def test_chosen_ports_are_used() -> None:
    assert targets(HEAD_NODE, replace(WORKER_A, ray_ports={"metrics_export": 8500}))["gpu-a"] == [
        "10.99.0.2:20190",
        "10.99.0.2:8500",
    ]


def test_a_lost_node_stays_a_target_and_one_that_was_taken_down_does_not() -> None:
    lost = replace(WORKER_A, online=False, ended=True)
    down, phone = replace(WORKER_B, down=True), replace(WORKER_B, roles=frozenset({STATIC}))
    assert targets(HEAD_NODE, lost, down).keys() == {"head", "gpu-a"}
    assert targets(HEAD_NODE, phone).keys() == {"head"}
