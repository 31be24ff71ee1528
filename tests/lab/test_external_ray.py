"""Ray that another program starts (`--ray external`): published, found, closed to outsiders, and left alone.

         switch wan 203.0.113.0/24
  ┌──────────────┼─────────────────┐
head 203.0.113.10  worker 203.0.113.20  outsider 203.0.113.99
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.lab.host import USER, Host, HostProcess
from tests.lab.neighbours import link_local
from tests.lab.scan import open_ports
from tests.lab.test_guard import HEADS_PORTS, NODES_PORTS, TCP
from tests.lab.world import World

MESH_PORT = 51888
UP_S = 240
ENV_FILE = "/run/meshray/env"
SMALL = f"--num-cpus=1 --object-store-memory={100 * 2**20}"
#: `ray start` stays in the foreground, as the first process of a container.
START = f". {ENV_FILE} && exec ray start $MESHRAY_RAY_START {SMALL} --block"
ON_EACH_NODE = """
import json, ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
ray.init('auto', log_to_driver=False)
where = ray.remote(lambda: ray.util.get_node_ip_address())
nodes = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in ray.nodes() if node["Alive"]]
print(json.dumps(sorted(ray.get([where.options(scheduling_strategy=node).remote() for node in nodes]))))
"""


@dataclass
class Lab:
    """The hosts of the picture above, and the addresses of the nodes."""

    head: Host
    worker: Host
    outsider: Host
    ips: dict[str, str] = field(default_factory=dict)
    rays: dict[str, HostProcess] = field(default_factory=dict)

    def seen(self, node: Host, *ports: int) -> list[set[int]]:
        """Return the node's ports (all, or these) that answer the outsider, by IPv4 and IPv6."""
        return open_ports(self.outsider, str(node.address), link_local(node, "eth0", "eth0"), ports=ports)

    def start_ray(self, node: Host) -> HostProcess:
        return node.popen(["sh", "-c", START], user=USER, env={"HOME": f"/home/{USER}"})

    def status(self, node: Host) -> dict[str, Any]:
        answer = node.run(["meshray", "status", "--json"], check=False).json()
        assert isinstance(answer, dict)
        return answer

    def doctor(self, node: Host) -> dict[str, Any]:
        answer = node.run(["meshray", "doctor", "--json"], check=False, deadline_s=UP_S).json()
        assert isinstance(answer, dict)
        return answer

    @staticmethod
    def finding(doctor: dict[str, Any], code: str, node: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = doctor["checks"]
        return next(check for check in found if (check["code"], check["node"]) == (code, node))

    def alive(self, node: Host) -> list[str]:
        """Return the nodes that are ALIVE, as this node knows."""
        return sorted(entry["name"] for entry in self.status(node)["nodes"] if entry["ray"]["alive"])


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with World("external") as world:
        wan = world.switch("wan", "203.0.113.0/24")
        head, worker = world.host("head", wan, "203.0.113.10"), world.host("worker", wan, "203.0.113.20")
        yield Lab(head, worker, world.host("outsider", wan, "203.0.113.99"))


def test_a_cluster_of_rays_that_another_program_starts(lab: Lab) -> None:
    as_user = ("--ray", "external", "--ray-user", USER)
    made = lab.head.run(["meshray", "init", "--json", *as_user], deadline_s=UP_S).json()
    assert (made["ray_address"], made["env_file"]) == (f"{made['node']['ip']}:6379", ENV_FILE)
    told = lab.status(lab.head)
    assert (told["health"], lab.alive(lab.head)) == ([], [])
    assert any(f". {ENV_FILE} && ray start" in notice for notice in told["notices"])
    assert open_ports(lab.outsider, str(lab.head.address)) == [{MESH_PORT}]
    waiting = lab.head.run(["meshray", "ready"], check=False)
    assert (waiting.returncode, f". {ENV_FILE} && ray start" in waiting.stdout) == (3, True)
    doctor = lab.doctor(lab.head)
    assert doctor["healthy"], doctor
    assert f". {ENV_FILE} && ray start" in lab.finding(doctor, "ray_running", "head")["evidence"]

    lab.rays["head"] = lab.start_ray(lab.head)
    lab.head.wait_until(lambda: lab.alive(lab.head) == ["head"], UP_S, "the head's Ray being ALIVE")
    joined = lab.worker.run(["meshray", "join", "--json", *as_user, made["token"]], deadline_s=UP_S).json()
    assert (joined["ray"]["alive"], joined["env_file"]) == (False, ENV_FILE)
    lab.rays["worker"] = lab.start_ray(lab.worker)
    lab.head.wait_until(lambda: lab.alive(lab.head) == ["head", "worker"], UP_S, "two nodes being ALIVE")
    lab.worker.run(["meshray", "ready", "--wait", "60s"], deadline_s=UP_S)
    lab.ips.update(head=made["node"]["ip"], worker=joined["node"]["ip"])
    found = lab.head.run(["meshray", "run", "--", "python", "-c", ON_EACH_NODE], user=USER, deadline_s=UP_S).last_json()
    assert found == sorted(lab.ips.values())
    assert lab.status(lab.worker)["health"] == []
    assert lab.doctor(lab.head)["healthy"]


def test_only_the_overlay_reaches_these_rays(lab: Lab) -> None:
    lab.head.wait_until(lambda: lab.seen(lab.head) == [{MESH_PORT}] * 2, 60, "the head's ports being closed")
    assert lab.seen(lab.worker) == [set(), set()]
    for node, other, ports in ((lab.head, lab.worker, HEADS_PORTS), (lab.worker, lab.head, NODES_PORTS)):
        asked = [sys.executable, "-c", TCP, lab.ips[node.name], *map(str, ports)]
        assert other.run(asked).json() == []


def test_no_other_user_reads_the_token(lab: Lab) -> None:
    found = lab.worker.shell("stat -c '%U %a' /run/meshray/env /run/meshray/ray_token").stdout.split()
    assert found == ["root", "644", USER, "600"]
    token = lab.worker.path("/run/meshray/ray_token").read_text().strip()
    assert token not in lab.worker.path(ENV_FILE).read_text()


def test_a_second_head_is_refused(lab: Lab) -> None:
    token = lab.head.run(["meshray", "token", "create", "--head", "--json"]).json()["token"]
    words = ["meshray", "join", "--json", "--ray", "external", "--head", token]
    refused = lab.outsider.run(words, check=False, deadline_s=UP_S)
    assert json.loads(refused.stdout)["error"]["code"] == "head_exists"


def test_a_killed_agent_finds_the_rays_again(lab: Lab) -> None:
    for node in (lab.head, lab.worker):
        node.shell("kill -9 $(grep -o '[0-9]*' /run/meshray/agent.pid | head -1)")
        node.run(["meshray", "up", "--json"], deadline_s=UP_S)
        node.run(["meshray", "ready", "--wait", "60s"], deadline_s=UP_S)
    lab.head.wait_until(lambda: lab.alive(lab.head) == ["head", "worker"], 60, "both Rays being ALIVE")
    assert [process.returncode for process in lab.rays.values()] == [None, None]


def test_a_ray_that_ends_is_said_to_be_started_again_by_its_program(lab: Lab) -> None:
    lab.rays["worker"].stop()
    lab.worker.wait_until(lambda: lab.worker.run(["meshray", "ready"], check=False).returncode == 3, 60, "its end")
    lab.head.wait_until(lambda: lab.alive(lab.head) == ["head"], 60, "the head knowing of it")
    found = lab.finding(lab.doctor(lab.head), "ray_alive", "worker")
    assert (found["status"], f"on worker, start Ray again: . {ENV_FILE} && ray start" in found["fix"]) == ("fail", True)
    lab.rays["worker"] = lab.start_ray(lab.worker)
    lab.worker.run(["meshray", "ready", "--wait", "120s"], deadline_s=UP_S)
    spread = lab.head.run(["meshray", "run", "--", "python", "-c", ON_EACH_NODE], user=USER, deadline_s=UP_S)
    assert spread.last_json() == sorted(lab.ips.values())


def test_who_leaves_leaves_the_ray_alone(lab: Lab) -> None:
    done = lab.worker.run(["meshray", "leave", "--yes"], deadline_s=UP_S)
    assert "still runs" in done.stderr
    assert lab.rays["worker"].returncode is None
    assert not lab.worker.path(ENV_FILE).exists()
    lab.rays["worker"].stop()
    lab.head.wait_until(lambda: lab.alive(lab.head) == ["head"], 60, "no ghost of the worker")
