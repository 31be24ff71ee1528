"""The doctor on the head, on a worker, on a machine outside the mesh; and its repairs and bundles.

             switch wan 203.0.113.0/24
      ┌─────────────┼─────────────┐
    head          worker       outsider
203.0.113.10  203.0.113.20   203.0.113.30
    ufw          iptables      not in a mesh
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator

import pytest

from tests.lab.cluster import Cluster
from tests.lab.doctoring import Answer, Doctor, ask
from tests.lab.host import Host
from tests.lab.waiting import wait_until
from tests.lab.world import World

#: The time until a started agent has a handshake with the hub, on two slow cores, seconds.
REPAIR_S = 60


@pytest.fixture(scope="module")
def place() -> Iterator[tuple[Cluster, Host]]:
    with World("doctor-ways") as world:
        wan = world.switch("wan", "203.0.113.0/24")
        head, worker, outsider = (
            world.host(name, wan, f"203.0.113.{number}0")
            for number, name in enumerate(("head", "worker", "outsider"), 1)
        )
        head.drop_inbound("ufw")
        for port in ("51888/udp", "51888/tcp"):
            head.run(["ufw", "allow", port])
        worker.drop_inbound("iptables")
        yield Cluster.without_ray(head, [worker]), outsider


def failed(answer: Answer) -> list[tuple[str, str | None]]:
    return [(check["code"], check["node"]) for check in answer.failing]


def test_a_healthy_mesh_is_looked_at_from_both_ends(place: tuple[Cluster, Host], doctor: Doctor) -> None:
    cluster, _ = place
    doctor.passes("ufw on the head, iptables on the worker drop by default", *cluster.hosts)
    answered = [check["node"] for check in ask(cluster.head).checks if check["code"] == "node_answers"]
    assert answered == ["worker"]


def test_a_killed_agent_is_one_failure_and_is_repaired(place: tuple[Cluster, Host]) -> None:
    cluster, _ = place
    worker = cluster.workers[0]
    pid = json.loads(worker.path("/run/meshray/agent.pid").read_text())["pid"]
    worker.run(["kill", "-9", str(pid)])
    wait_until(lambda: failed(ask(cluster.head)) == [("node_answers", "worker")], 30, "one failure at the head")
    (cause,) = ask(cluster.head).failing
    assert "its agent has stopped, but the machine and its tunnel work" in cause["evidence"]
    assert failed(ask(worker))[0] == ("agent_running", None)

    repaired = ask(worker, "--fix", "--yes", deadline_s=REPAIR_S)
    assert repaired.report["repaired"] == ["the agent was started"]
    assert failed(repaired) == []
    wait_until(lambda: failed(ask(cluster.head)) == [], 30, "the head sees it again")


def test_a_damaged_map_is_put_aside(place: tuple[Cluster, Host]) -> None:
    cluster, _ = place
    worker = cluster.workers[0]
    cluster.meshray(worker, "down")
    worker.run(["sh", "-c", "echo '{' > /var/lib/meshray/map.json"])
    broken = ask(worker)
    assert failed(broken)[0] == ("agent_running", None)
    repaired = ask(worker, "--fix", "--yes", deadline_s=REPAIR_S)
    assert "map.json.damaged" in repaired.report["repaired"][0]
    assert failed(repaired) == []


def test_a_machine_in_no_mesh_learns_what_a_mesh_would_need(place: tuple[Cluster, Host]) -> None:
    _, outsider = place
    answer = ask(outsider)
    assert failed(answer) == []
    assert "enrolled" in {check["code"] for check in answer.checks if check["status"] == "warn"}
    looked_at = {check["code"] for check in answer.checks if check["status"] == "ok"}
    assert {"tun_device", "wireguard_available", "privileges"} <= looked_at


def test_a_bundle_holds_no_secret_of_the_mesh(place: tuple[Cluster, Host]) -> None:
    cluster, _ = place
    head = cluster.head
    head.run(["meshray", "token", "create"])  # Its secret passes through the agent.
    assert ask(head, "--bundle", "/root/report.tar.gz").report["bundle"] == "/root/report.tar.gz"
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
