"""A mesh with a lock, by its commands: real agents, real WireGuard.

wan ─┬─ .10 head (the lock file is there, outside of the state folder)
     ├─ .20 gpu
     └─ .21 eve
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from tests.lab.cluster import UP_DEADLINE_S, Cluster
from tests.lab.host import Host
from tests.lab.world import World

LOCK = "/root/mesh.lock"


def meshray_json(host: Host, *words: str, check: bool = True) -> dict[str, Any]:
    answer = json.loads(host.run(["meshray", *words, "--json"], check=check, deadline_s=UP_DEADLINE_S).stdout)
    assert isinstance(answer, dict)
    return answer


@pytest.fixture(scope="module")
def mesh() -> Iterator[Cluster]:
    with World("test-lock") as world:
        wan = world.switch("wan", "192.88.99.0/24")
        head, gpu, eve = (world.host(n, wan, f"192.88.99.{i}") for n, i in (("head", 10), ("gpu", 20), ("eve", 21)))
        cluster = Cluster(head, (gpu, eve))
        cluster.answers["head"] = cluster.meshray(head, "init", "--no-ray", "--lock", LOCK)
        for worker in (gpu, eve):
            cluster.answers[worker.name] = cluster.meshray(worker, "join", cluster.answers["head"]["token"], "--no-ray")
        yield cluster


def test_all_nodes_reach_each_other_and_report_no_problem(mesh: Cluster) -> None:
    gpu, eve = mesh.workers
    for one, other in ((gpu, mesh.head), (eve, mesh.head), (gpu, eve)):
        one.wait_until(partial(one.can_reach, mesh.ip(other), 2), 20, f"{one} → {other}")
    for host in (mesh.head, gpu, eve):
        status = mesh.meshray(host, "status")
        assert [problem for problem in status["health"] if problem["code"] == "node_identity"] == []
        assert status["notices"] == []
    assert mesh.head.run(["stat", "-c", "%a", LOCK]).stdout.strip() == "600"


def test_tokens_and_peers_without_the_lock_are_refused(mesh: Cluster) -> None:
    assert meshray_json(mesh.head, "token", "create", check=False)["error"]["code"] == "lock_needed"
    assert "token" in meshray_json(mesh.head, "token", "create", "--lock", LOCK)
    refused = meshray_json(mesh.head, "peer", "add", "phone", "--config", "/root/phone.conf", check=False)
    assert refused["error"]["code"] == "lock_needed"
    meshray_json(mesh.head, "peer", "add", "phone", "--config", "/root/phone.conf", "--lock", LOCK)
    assert len(mesh.head.run(["wg", "show", "meshray0", "peers"]).stdout.split()) >= 2


def test_keys_change_and_agents_start_again_as_before(mesh: Cluster) -> None:
    gpu, _ = mesh.workers
    meshray_json(gpu, "node", "rotate-key")
    mesh.meshray(gpu, "down")
    mesh.meshray(gpu, "up")
    gpu.wait_until(partial(gpu.can_reach, mesh.ip(mesh.head), 2), 20, "the head")
    assert [p for p in mesh.meshray(mesh.head, "status")["health"] if p["code"] == "node_identity"] == []


def test_a_removed_node_is_removed_for_good(mesh: Cluster) -> None:
    _, eve = mesh.workers
    meshray_json(mesh.head, "node", "rm", "eve", "--yes", "--lock", LOCK)
    eve.wait_until(lambda: not eve.can_reach(mesh.ip(mesh.head), 1), 20, "eve is out")
    listed = meshray_json(mesh.head, "node", "list")
    assert "eve" not in [node["name"] for node in listed["nodes"]]
    assert '"epoch": 1' in mesh.head.run(["cat", LOCK]).stdout
