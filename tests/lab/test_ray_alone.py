"""Ray under supervision, without the rest of meshray: a switch replaces the overlay, a file the map.

    switch overlay 10.99.0.0/16
      ┌────────────┴───────────┐
     head                    worker      a foreign Ray of root's runs here too
  10.99.0.1                10.99.0.2

The supervisors run as root and Ray as an ordinary user, as with sudo. The tests build on each other, in this order.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address

import pytest

from tests.lab.host import USER, USER_UID, Host, HostProcess
from tests.lab.world import World

HEAD_IP, WORKER_IP = IPv4Address("10.99.0.1"), IPv4Address("10.99.0.2")
TOKEN = "f" * 32
#: A bare head took 6 to 12 s on two slow cores, a worker 4 to 8 s; both may wait for a backoff and for each other.
UP_S = 120

#: The common beginning of both scripts below. Arguments: role, own address, head's address, token, uid of the user.
PLAN = """
import asyncio, os, signal, sys
from ipaddress import IPv4Address
from pathlib import Path
from meshray.model.address import OverlayNetwork
from meshray.raynode.command import RayPlan
from meshray.raynode.supervisor import RayNode
from meshray.raynode.tokens import RayTokens
from meshray.raynode.versions import find_ray
from meshray.linux.user import User
from meshray.home import Home

head, ip, head_ip, token, user = sys.argv[1] == "head", *sys.argv[2:5], User.by_uid(int(sys.argv[5]))
home = Home(Path("/var/lib/meshray"), Path("/run/meshray"))
map_file = Path("/run/head_instance")
plan = RayPlan(head, IPv4Address(ip), IPv4Address(head_ip), f"node-{ip[-1]}", {"zone": "lab"}, ("--num-cpus=1",),
               "eth0", home.ray_token, OverlayNetwork.parse("10.99.0.0/16"))
"""

#: Supervises until SIGTERM (which leaves Ray running) or SIGUSR1 (which ends Ray). Prints changes.
SUPERVISOR = (
    PLAN
    + """
async def main():
    print_instance = lambda instance: print("instance", instance, flush=True)
    tokens = RayTokens({1: token})
    node = RayNode(find_ray(None, os.environ, user), plan, home, user, tokens=tokens, on_instance=print_instance)
    loop = asyncio.get_running_loop()
    ended, goes = asyncio.Event(), []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        loop.add_signal_handler(number, lambda number=number: (goes.append(number), ended.set()))
    supervision = loop.create_task(node.run())
    seen = ""
    while not ended.is_set() and not supervision.done():
        if not head and map_file.exists():
            node.head_instance(map_file.read_text())
        if (now := f"{node.state} | {node.last_error}") != seen:
            print("state", now, flush=True)
            seen = now
        await asyncio.sleep(0.05)
    supervision.cancel()
    await asyncio.gather(supervision, return_exceptions=True)
    if goes == [signal.SIGUSR1]:
        await node.stop()

asyncio.run(main())
"""
)

#: meshray's result for Ray's node table, as JSON: address → resources.
TABLE = """
import asyncio, json, sys
from meshray.model.address import Endpoint
from meshray.raynode.dashboard_client import node_table
table = asyncio.run(node_table(Endpoint(sys.argv[1], 8265), sys.argv[2], 5))
print(json.dumps(table and {str(ip): dict(state.resources) for ip, state in table.items() if state.alive}))
"""

#: The oracle: Ray itself, as a user would use it with the variables of `meshray env`.
JOB = """
import json, os, ray
ray.init("auto", log_to_driver=False)

@ray.remote(num_cpus=1)
def where():
    return ray.util.get_node_ip_address(), os.getuid(), os.environ["GLOO_SOCKET_IFNAME"]

pin = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
nodes = [node for node in ray.nodes() if node["Alive"]]
places = [where.options(scheduling_strategy=pin(node["NodeID"], False)).remote() for node in nodes]
print(json.dumps([sorted(ray.get(places, timeout=60)), [node["Labels"].get("zone") for node in nodes]]))
"""

#: A machine that is busy, or whose Python comes from a slow file system: Ray's dashboard agent needs longer to start
#: than the 15 s for which a raylet waits.
SLOW_AGENT = """
import sys, time
if "--listen-port=20105" in getattr(sys, "orig_argv", ()):
    time.sleep(20)
"""


@dataclass
class Node:
    """A host with a supervised Ray."""

    host: Host
    role: str
    ip: IPv4Address
    supervisor: HostProcess | None = None

    def supervise(self, env: Mapping[str, str] | None = None) -> None:
        argv = ["python", "-c", SUPERVISOR, self.role, str(self.ip), str(HEAD_IP), TOKEN, str(USER_UID)]
        self.supervisor = self.host.popen(argv, name=f"{self.role}-supervisor", env=env)

    def leave(self, number: int = signal.SIGTERM) -> None:
        """End the supervisor with this signal."""
        assert self.supervisor
        self.supervisor.send_signal(number)
        assert self.supervisor.wait(30) == 0, self.supervisor.output

    def said(self, word: str) -> list[str]:
        """Return what the current supervisor printed under this word."""
        assert self.supervisor
        lines = self.supervisor.output.splitlines()
        return [line.removeprefix(f"{word} ") for line in lines if line.startswith(f"{word} ")]

    def wait_running(self) -> None:
        self.host.wait_until(lambda: self.said("state")[-1:] == ["running | "], UP_S, "state running")

    @property
    def ray_pid(self) -> int:
        """Return the pid of `ray start` in the host's own pid namespace; 0 while there is none."""
        try:
            return int(json.loads(self.host.path("/run/meshray/ray.pid").read_text())["pid"])
        except FileNotFoundError:
            return 0

    def kill_ray(self) -> None:
        self.host.run(["kill", "-9", str(self.ray_pid)])

    def processes_of(self, user: str) -> str:
        return self.host.run(["ps", "-u", user, "-o", "pid,args"], check=False).stdout


@dataclass
class Cluster:
    head: Node
    worker: Node

    def table(self) -> dict[str, dict[str, float]]:
        return self.worker.host.run(["python", "-c", TABLE, str(HEAD_IP), TOKEN]).json() or {}

    def publish_instance(self) -> str:
        """Act like the coordinator: pass the head's last report to the worker."""
        instance = (self.head.said("instance") or [""])[-1]
        self.worker.host.path("/run/head_instance").write_text(instance)
        return instance


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with World("ray-alone") as world:
        overlay = world.switch("overlay", "10.99.0.0/16")
        yield Cluster(
            Node(world.host("head", overlay, str(HEAD_IP)), "head", HEAD_IP),
            Node(world.host("worker", overlay, str(WORKER_IP)), "worker", WORKER_IP),
        )


def test_a_worker_waits_for_its_head_and_both_become_alive(cluster: Cluster) -> None:
    cluster.worker.supervise()
    waiting = ["waiting | the head's Ray is down"]
    cluster.worker.host.wait_until(lambda: cluster.worker.said("state")[-1:] == waiting, 20, "a waiting worker")
    cluster.head.supervise()
    cluster.head.host.wait_until(cluster.publish_instance, UP_S, "the head's instance")
    cluster.worker.wait_running()
    cluster.head.wait_running()
    table = cluster.table()
    assert set(table) == {str(HEAD_IP), str(WORKER_IP)}
    for resources in table.values():
        assert resources["CPU"] == 1
        assert resources["memory"] > 0
        assert resources["object_store_memory"] > 0


def test_ray_runs_as_the_user_and_takes_jobs_from_there(cluster: Cluster) -> None:
    host = cluster.worker.host
    environment = host.run(
        [
            "python",
            "-c",
            PLAN + "import json\n"
            "from meshray.raynode.command import client_environment\nprint(json.dumps(client_environment(plan)))",
            *("worker", str(WORKER_IP), str(HEAD_IP), "", str(USER_UID)),
        ]
    ).json()
    places, zones = host.run(["python", "-c", JOB], user=USER, env=environment, deadline_s=90).json()
    assert places == [[str(HEAD_IP), USER_UID, "eth0"], [str(WORKER_IP), USER_UID, "eth0"]]
    assert zones == ["lab", "lab"]
    assert "raylet" not in cluster.worker.processes_of("root")
    assert TOKEN not in cluster.worker.processes_of(USER)


def test_a_dashboard_rejects_another_token(cluster: Cluster) -> None:
    asked = cluster.worker.host.run(["python", "-c", TABLE, str(HEAD_IP), "wrong"], check=False)
    assert asked.returncode != 0
    assert "does not accept this mesh's Ray token" in asked.stderr


def test_ray_outlives_its_supervisor_and_is_adopted(cluster: Cluster) -> None:
    before = cluster.worker.ray_pid
    cluster.worker.leave()
    cluster.worker.supervise()
    cluster.worker.wait_running()
    assert cluster.worker.ray_pid == before
    assert "raylet" in cluster.worker.processes_of(USER)


def test_a_killed_ray_comes_back(cluster: Cluster) -> None:
    before = cluster.worker.ray_pid
    cluster.worker.kill_ray()
    cluster.worker.host.wait_until(lambda: cluster.worker.ray_pid not in (0, before), UP_S, "another `ray start`")
    cluster.worker.wait_running()
    assert any(state.startswith("backoff: ") for state in cluster.worker.said("state"))


def test_a_worker_follows_its_head_to_the_next_instance(cluster: Cluster) -> None:
    first, worker_before = cluster.head.said("instance")[-1], cluster.worker.ray_pid
    cluster.head.kill_ray()

    def reborn() -> bool:
        return cluster.publish_instance() not in ("", first)

    cluster.head.host.wait_until(reborn, UP_S, "another instance")
    cluster.worker.host.wait_until(
        lambda: cluster.worker.ray_pid not in (0, worker_before), UP_S, "another `ray start`"
    )
    cluster.worker.wait_running()
    assert set(cluster.table()) == {str(HEAD_IP), str(WORKER_IP)}


def test_ray_starts_although_its_dashboard_agent_takes_longer_than_ray_waits(cluster: Cluster) -> None:
    worker = cluster.worker
    slow = worker.host.path("/tmp/slow")
    slow.mkdir(parents=True)
    (slow / "sitecustomize.py").write_text(SLOW_AGENT)
    worker.leave()
    worker.supervise({"PYTHONPATH": "/tmp/slow"})
    worker.wait_running()
    before = worker.ray_pid
    worker.kill_ray()
    worker.host.wait_until(lambda: worker.ray_pid not in (0, before), UP_S, "another `ray start`")
    slow_one = worker.ray_pid
    worker.wait_running()
    agent = ["ss", "-Hltn", "sport = :20105"]
    assert not worker.host.run(agent).stdout, "Ray runs before its agent does"
    worker.host.wait_until(lambda: worker.host.run(agent).stdout, UP_S, "Ray's dashboard agent")
    assert worker.ray_pid == slow_one
    worker.wait_running()


def test_stop_ends_this_ray_and_no_other(cluster: Cluster) -> None:
    host = cluster.worker.host
    foreign = host.popen(
        [
            *("ray", "start", "--head", "--block", "--port=6400", "--node-ip-address=127.0.0.1", "--num-cpus=0"),
            *("--include-dashboard=false", "--temp-dir=/tmp/foreign", "--min-worker-port=0", "--max-worker-port=0"),
        ],
        name="foreign-ray",
    )
    host.wait_until(lambda: "Ray runtime started" in foreign.output, UP_S, "the foreign Ray")
    began = time.monotonic()
    cluster.worker.leave(signal.SIGUSR1)
    took = time.monotonic() - began
    assert cluster.worker.processes_of(USER).splitlines()[1:] == []
    assert foreign.returncode is None
    assert "raylet" in cluster.worker.processes_of("root")
    assert took < 15, f"stopping took {took:.1f} s"
    foreign.stop(30)


def test_a_port_in_use_is_named_with_its_owner(cluster: Cluster) -> None:
    cluster.head.leave(signal.SIGUSR1)
    taker = cluster.head.host.popen(["python", "-m", "http.server", "6379"], name="taker")
    cluster.head.host.wait_until(
        lambda: cluster.head.host.run(["ss", "-Hltn", "sport = :6379"]).stdout, 10, "the taken port"
    )
    cluster.head.supervise()
    taken = "backoff: Ray's GCS needs TCP port 6379, which python"
    cluster.head.host.wait_until(
        lambda: any(state.startswith(taken) for state in cluster.head.said("state")), 20, "a named port"
    )
    taker.stop()
    cluster.head.host.wait_until(lambda: cluster.head.said("instance")[-1:], UP_S, "the head's instance")
    cluster.head.leave(signal.SIGUSR1)
    assert [file.name for file in cluster.head.host.path("/run/meshray").iterdir()] == ["ray_token"]
