"""Parts die one at a time, and the cluster continues or recovers without a user.

               switch wan 203.0.113.0/24
        ┌─────────────┼──────────────┐
      head         walled           nat    port-keeping NAT: nothing new comes in
  203.0.113.10  203.0.113.20    203.0.113.30
                drops all            │ switch nat-lan 192.168.7.0/24
                inbound            nested
                                192.168.7.10

The tests share one cluster; each begins and ends with it whole.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests.lab.cluster import Cluster
from tests.lab.host import Host
from tests.lab.test_main_job import INTERFACE, processes, wireguard_peers

#: Ray on two slow cores: a start takes up to half a minute, and a worker's follows its head's.
BACK_DEADLINE_S = 150
SQUARES = """
import ray
ray.init("auto", log_to_driver=False)
square = ray.remote(lambda n: n * n)
print(sum(ray.get([square.remote(n) for n in range(30)])))
"""


#: The time for which a drained node is watched: the supervisor's first attempts to start Ray again would come after 1,
#: 2, 4 and 8 s.
STAYS_OUT_S = 15
#: Runs on the other worker while the drained node is watched.
LONG_TASK = """
import ray, time
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
ray.init("auto", log_to_driver=False)
(node,) = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeManagerHostname"] == "nested"]
@ray.remote(max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
def work(seconds):
    time.sleep(seconds)
    return "done"
print("started", flush=True)
print(ray.get(work.remote(40)))
"""


def pid_of(host: Host, name: str) -> int:
    """Return the pid that meshray recorded for the process; 0 if it is between two."""
    try:
        return int(json.loads(host.path(f"/run/meshray/{name}.pid").read_text())["pid"])
    except FileNotFoundError:
        return 0


def kill(host: Host, name: str, number: signal.Signals = signal.SIGKILL) -> int:
    pid = pid_of(host, name)
    host.run(["kill", f"-{int(number)}", str(pid)])
    return pid


def is_whole(cluster: Cluster) -> bool:
    """Return whether the head counts three living nodes and no node reports a fault."""
    status = cluster.meshray(cluster.head, "status", check=False)
    nodes = status.get("nodes", [])
    return len(nodes) == 3 and all(node["online"] and node["ray"]["alive"] for node in nodes) and not status["problems"]


def keys_and_addresses(cluster: Cluster) -> list[tuple[str, str]]:
    return [
        (
            host.run(["wg", "show", INTERFACE, "public-key"]).stdout.strip(),
            host.run(["ip", "-br", "-4", "address", "show", INTERFACE]).stdout.split()[2],
        )
        for host in cluster.hosts
    ]


@pytest.fixture
def whole(cluster: Cluster) -> Iterator[Callable[[str], None]]:
    """Wait until the cluster is whole; no node's key or address may have changed during the test."""

    def wait(what: str) -> None:
        cluster.head.wait_until(lambda: is_whole(cluster), BACK_DEADLINE_S, what)

    wait("the cluster before the test")
    before = keys_and_addresses(cluster)
    yield wait
    wait("the cluster after the test")
    assert keys_and_addresses(cluster) == before


def test_the_coordinator_frozen_stops_neither_data_nor_ray(cluster: Cluster, whole: Callable[[str], None]) -> None:
    kill(cluster.head, "coordinator", signal.SIGSTOP)
    try:
        assert cluster.workers[0].can_reach(cluster.ip(cluster.workers[1]), deadline_s=3)
        assert cluster.python(SQUARES) == sum(n * n for n in range(30))
        nested = cluster.workers[1]
        nested.wait_until(
            lambda: cluster.meshray(nested, "status", check=False)["coordinator"]["reachable"] is False,
            60,
            "the worker notices that the coordinator is silent",
        )
        assert cluster.python(SQUARES, host=nested) == sum(n * n for n in range(30))
    finally:
        kill(cluster.head, "coordinator", signal.SIGCONT)


def test_a_killed_coordinator_is_started_again(cluster: Cluster, whole: Callable[[str], None]) -> None:
    old = kill(cluster.head, "coordinator")
    cluster.head.wait_until(lambda: pid_of(cluster.head, "coordinator") not in (0, old), 30, "another coordinator")
    whole("all agents are connected to the new one")


def test_a_killed_agent_leaves_tunnel_and_ray_and_the_next_adopts_them(
    cluster: Cluster, whole: Callable[[str], None]
) -> None:
    walled = cluster.workers[0]
    before = {name: pid_of(walled, name) for name in ("engine", "ray")}
    raylets = walled.run(["pgrep", "-x", "raylet"]).stdout
    kill(walled, "agent")
    assert cluster.head.can_reach(cluster.ip(walled), deadline_s=3)
    assert cluster.meshray(walled, "status", check=False)["error"]["code"] == "agent_down"
    cluster.meshray(walled, "up")
    assert {name: pid_of(walled, name) for name in ("engine", "ray")} == before
    assert walled.run(["pgrep", "-x", "raylet"]).stdout == raylets


def test_the_head_s_killed_agent_is_replaced_while_ray_runs_on(cluster: Cluster, whole: Callable[[str], None]) -> None:
    head = cluster.head
    before = {name: pid_of(head, name) for name in ("engine", "ray", "coordinator")}
    kill(head, "agent")
    assert cluster.python(SQUARES, host=cluster.workers[0]) == sum(n * n for n in range(30))
    cluster.meshray(head, "up")
    assert {name: pid_of(head, name) for name in ("engine", "ray", "coordinator")} == before


def test_a_killed_engine_is_replaced_with_the_same_key(cluster: Cluster, whole: Callable[[str], None]) -> None:
    nested = cluster.workers[1]
    old = kill(nested, "engine")
    nested.wait_until(
        lambda: pid_of(nested, "engine") not in (0, old) and bool(wireguard_peers(nested)), 30, "another engine"
    )


def test_a_killed_worker_ray_comes_back(cluster: Cluster, whole: Callable[[str], None]) -> None:
    walled = cluster.workers[0]
    old = pid_of(walled, "ray")
    for pid, _ in processes(walled, "raylet/raylet"):
        walled.run(["kill", "-9", str(pid)], check=False)
    walled.wait_until(partial(_another_ray, walled, old), BACK_DEADLINE_S, "another Ray on the worker")


def test_workers_follow_a_head_whose_ray_was_killed(cluster: Cluster, whole: Callable[[str], None]) -> None:
    old = [pid_of(host, "ray") for host in cluster.hosts]
    for pid, _ in processes(cluster.head, "gcs_server"):
        cluster.head.run(["kill", "-9", str(pid)], check=False)
    for host, pid in zip(cluster.hosts, old, strict=True):
        other = partial(_another_ray, host, pid)
        host.wait_until(other, BACK_DEADLINE_S, f"another Ray on {host.name}")
    whole("all three in the new cluster")
    assert cluster.python(SQUARES, host=cluster.workers[1]) == sum(n * n for n in range(30))


def test_down_and_up_of_the_head_restores_all_nodes(cluster: Cluster, whole: Callable[[str], None]) -> None:
    cluster.meshray(cluster.head, "down")
    assert not processes(cluster.head, "gcs_server")
    cluster.meshray(cluster.head, "up")
    whole("the workers found their head again")


def test_a_drained_worker_stays_out_of_ray_until_it_may_come_back(
    cluster: Cluster, whole: Callable[[str], None]
) -> None:
    head, (walled, _) = cluster.head, cluster.workers
    elsewhere = head.popen(["meshray", "run", "--", "python", "-c", LONG_TASK], name="long task")
    head.wait_until(lambda: "started" in elsewhere.output, 60, "a task on the other worker")
    head.run(["meshray", "node", "drain", "walled"], deadline_s=60)
    head.wait_until(lambda: not processes(walled, "raylet/raylet"), 60, "Ray ends on the drained worker")
    until = time.monotonic() + STAYS_OUT_S
    while time.monotonic() < until:
        assert not processes(walled, "raylet/raylet")
        time.sleep(0.5)
    head.wait_until(lambda: ray_alive(cluster, "walled") is False, 30, "the head counts it out")
    status = cluster.meshray(walled, "status")
    assert [node["name"] for node in status["nodes"] if node["drained"]] == ["walled"]
    assert status["problems"] == []
    assert cluster.meshray(head, "doctor")["healthy"]
    assert elsewhere.wait(90) == 0
    assert "done" in elsewhere.output
    head.run(["meshray", "node", "drain", "walled", "--undo"])
    whole("the drained worker is back")


def ray_alive(cluster: Cluster, name: str) -> bool | None:
    """Return the head's report on one node."""
    nodes = cluster.meshray(cluster.head, "status", check=False)["nodes"]
    return next(node["ray"]["alive"] for node in nodes if node["name"] == name)  # type: ignore[no-any-return]


def _another_ray(host: Host, old: int) -> bool:
    return pid_of(host, "ray") not in (0, old)
