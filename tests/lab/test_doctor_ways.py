"""The doctor from the head, from a worker, from a machine in no mesh; and what it mends and bundles.

             switch wan 203.0.113.0/24
      ┌─────────────┼─────────────┐
    head          worker       stranger
203.0.113.10  203.0.113.20   203.0.113.30
                               in no mesh
"""

from __future__ import annotations

import json
import tarfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.lab.cluster import Cluster
from tests.lab.host import Host
from tests.lab.waiting import wait_until
from tests.lab.world import World


@pytest.fixture(scope="module")
def place() -> Iterator[tuple[Cluster, Host]]:
    with World("doctor-ways") as world:
        wan = world.switch("wan", "203.0.113.0/24")
        head, worker, stranger = (
            world.host(name, wan, f"203.0.113.{number}0")
            for number, name in enumerate(("head", "worker", "stranger"), 1)
        )
        yield Cluster.without_ray(head, [worker]), stranger


def doctor(cluster: Cluster, host: Host, *arguments: str) -> dict[str, Any]:
    return cluster.meshray(host, "doctor", *arguments, check=False)


def failed(answer: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    return [(check["code"], check["node"]) for check in answer["checks"] if check["status"] == "fail"]


def test_a_healthy_mesh_is_looked_at_from_both_ends(place: tuple[Cluster, Host]) -> None:
    cluster, _ = place
    began = time.monotonic()
    answer = doctor(cluster, cluster.head)
    print(f"doctor on the head: {time.monotonic() - began:.1f} s")
    assert failed(answer) == []
    answered = [check["node"] for check in answer["checks"] if check["code"] == "node_answers"]
    assert answered == ["worker"]
    assert failed(doctor(cluster, cluster.workers[0])) == []


def test_a_killed_agent_is_one_failure_and_is_mended(place: tuple[Cluster, Host]) -> None:
    cluster, _ = place
    worker = cluster.workers[0]
    pid = json.loads(worker.path("/run/meshray/agent.pid").read_text())["pid"]
    worker.run(["kill", "-9", str(pid)])
    wait_until(
        lambda: failed(doctor(cluster, cluster.head)) == [("node_answers", "worker")], 30, "one failure at the head"
    )
    seen = doctor(cluster, cluster.head)
    (cause,) = [check for check in seen["checks"] if check["status"] == "fail"]
    assert "its agent is gone, the machine and its tunnel live" in cause["evidence"]
    assert failed(doctor(cluster, worker))[0] == ("agent_running", None)

    mended = doctor(cluster, worker, "--fix", "--yes")
    assert mended["repaired"] == ["the agent was started"]
    assert failed(mended) == []
    wait_until(lambda: failed(doctor(cluster, cluster.head)) == [], 30, "the head sees it again")


def test_a_damaged_map_is_put_aside(place: tuple[Cluster, Host]) -> None:
    cluster, _ = place
    worker = cluster.workers[0]
    cluster.meshray(worker, "down")
    worker.run(["sh", "-c", "echo '{' > /var/lib/meshray/map.json"])
    broken = doctor(cluster, worker)
    assert failed(broken)[0] == ("agent_running", None)
    mended = doctor(cluster, worker, "--fix", "--yes")
    assert "map.json.damaged" in mended["repaired"][0]
    assert failed(mended) == []


def test_a_machine_in_no_mesh_learns_what_a_mesh_would_need(place: tuple[Cluster, Host]) -> None:
    cluster, stranger = place
    answer = doctor(cluster, stranger)
    assert failed(answer) == [("enrolled", None)]
    looked_at = {check["code"] for check in answer["checks"] if check["status"] == "ok"}
    assert {"tun_device", "wireguard_available", "privileges"} <= looked_at


def test_a_bundle_holds_no_secret_of_the_mesh(place: tuple[Cluster, Host]) -> None:
    cluster, _ = place
    head = cluster.head
    head.run(["meshray", "token", "create"])  # its secret passes through the agent
    assert doctor(cluster, head, "--bundle", "/root/report.tar.gz")["bundle"] == "/root/report.tar.gz"
    with tarfile.open(head.path("/root/report.tar.gz")) as archive:
        members = archive.getmembers()
        texts = {member.name: archive.extractfile(member) for member in members}
        content = b"".join(file.read() for file in texts.values() if file is not None)
    assert {name.partition("/")[2] for name in texts} >= {
        "report.json",
        "map.json",
        "log/agent.log",
        "commands/nft.txt",
    }
    enrolment = json.loads(head.path("/var/lib/meshray/node.json").read_text())
    lines = head.path("/var/lib/meshray/coordinator.key").read_text().splitlines()
    secrets = [enrolment["credential"], enrolment["mesh_secret"], enrolment["ray_token"], lines[1]]
    secrets.append(head.path("/var/lib/meshray/private.key").read_text().strip())
    assert not [secret for secret in secrets if secret.encode() in content]
    assert b"meshray1_" not in content
