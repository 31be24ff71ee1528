"""Ray that another program starts (`--ray external`): published, found, closed to outsiders, and left alone.

         switch wan 203.0.113.0/24
  ┌──────────────┼─────────────────┐
head 203.0.113.10  worker 203.0.113.20  outsider 203.0.113.99
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.lab.host import USER, Host, HostProcess
from tests.lab.neighbours import link_local
from tests.lab.scan import open_ports
from tests.lab.world import World

MESH_PORT = 51888
UP_S = 240
ENV_FILE = "/run/meshray/env"
SMALL = f"--num-cpus=1 --object-store-memory={100 * 2**20}"
#: `ray start` stays in the foreground, as the first process of a container.
START = f". {ENV_FILE} && exec ray start $MESHRAY_RAY_START {SMALL} --block"
NODES = "import json, ray; ray.init('auto', log_to_driver=False); print(json.dumps(len(ray.nodes())))"
SPREAD = """
import json, ray
ray.init('auto', log_to_driver=False)
where = ray.remote(scheduling_strategy="SPREAD")(lambda: ray.util.get_node_ip_address())
print(json.dumps(sorted(set(ray.get([where.remote() for _ in range(20)])))))
"""


@dataclass
class Lab:
    """The hosts of the picture above, and the addresses of the nodes."""

    head: Host
    worker: Host
    outsider: Host
    ips: dict[str, str]

    def seen(self, node: Host, *ports: int) -> list[set[int]]:
        """Return the node's ports (all, or these) that answer the outsider, by IPv4 and IPv6."""
        return open_ports(self.outsider, str(node.address), link_local(node, "eth0", "eth0"), ports=ports)

    def start_ray(self, node: Host) -> HostProcess:
        return node.popen(["sh", "-c", START], user=USER, env={"HOME": f"/home/{USER}"})

    def status(self, node: Host) -> dict[str, Any]:
        answer = node.run(["meshray", "status", "--json"], check=False).json()
        assert isinstance(answer, dict)
        return answer

    def alive(self, node: Host) -> list[str]:
        """Return the nodes that are ALIVE, as this node knows."""
        return sorted(entry["name"] for entry in self.status(node)["nodes"] if entry["ray"]["alive"])


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with World("external") as world:
        wan = world.switch("wan", "203.0.113.0/24")
        head, worker = world.host("head", wan, "203.0.113.10"), world.host("worker", wan, "203.0.113.20")
        yield Lab(head, worker, world.host("outsider", wan, "203.0.113.99"), {})


def test_a_cluster_of_rays_that_another_program_starts(lab: Lab) -> None:
    as_user = ("--ray", "external", "--ray-user", USER)
    made = lab.head.run(["meshray", "init", "--json", *as_user], deadline_s=UP_S).json()
    assert (made["ray_address"], made["env_file"]) == (f"{made['node']['ip']}:6379", ENV_FILE)
    told = lab.status(lab.head)
    assert (told["health"], lab.alive(lab.head)) == ([], [])
    assert any(f". {ENV_FILE} && ray start" in notice for notice in told["notices"])
    assert open_ports(lab.outsider, str(lab.head.address)) == [{MESH_PORT}]

    lab.start_ray(lab.head)
    lab.head.wait_until(lambda: lab.alive(lab.head) == ["head"], UP_S, "the head's Ray being ALIVE")
    joined = lab.worker.run(["meshray", "join", "--json", *as_user, made["token"]], deadline_s=UP_S).json()
    assert (joined["ray"]["alive"], joined["env_file"]) == (False, ENV_FILE)
    lab.start_ray(lab.worker)
    lab.head.wait_until(lambda: lab.alive(lab.head) == ["head", "worker"], UP_S, "two nodes being ALIVE")
    lab.worker.run(["meshray", "ready", "--wait", "60s"], deadline_s=UP_S)
    lab.ips.update(head=made["node"]["ip"], worker=joined["node"]["ip"])
    found = lab.head.run(["meshray", "run", "--", "python", "-c", SPREAD], user=USER, deadline_s=UP_S).last_json()
    assert found == sorted(lab.ips.values())
    assert lab.status(lab.worker)["health"] == []
