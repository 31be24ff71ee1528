"""Nodes that die, leave, are removed or come back: their work continues elsewhere, and Ray never counts a dead one.

               switch wan 203.0.113.0/24
        ┌─────────────┼──────────────┐
      head         walled           nat    port-keeping NAT: nothing new comes in
  203.0.113.10  203.0.113.20    203.0.113.30
                drops all            │ switch nat-lan 192.168.7.0/24
                inbound            nested
                                192.168.7.10

A program of the tests on the head reads Ray's own node table five times per second.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.lab.cluster import RAY_ARGS, Cluster
from tests.lab.host import Host, HostProcess
from tests.lab.test_reliability import BACK_DEADLINE_S, is_whole, kill
from tests.lab.topologies import OneOfEach, one_of_each
from tests.lab.trouble import silenced
from tests.lab.world import World

#: The limit from the moment of the cut, seconds.
NOTICED_S, JOB_DONE_S, FORGOTTEN_S = 5, 60, 5
#: The time for a command and a reading of the table on two busy cores.
SLACK_S = 2
#: The time through Ray's dashboard, which may hang for seconds there. Ray itself removes a node after its patience of
#: 120 s.
RAY_SLACK_S = 10

_WATCH = """
import json, os, time, urllib.request
token = open(os.environ["RAY_AUTH_TOKEN_PATH"]).read().strip()
query = "limit=10000&detail=1&filter_keys=state&filter_predicates=%3D&filter_values=ALIVE"
url = os.environ["RAY_API_SERVER_ADDRESS"] + "/api/v0/nodes?" + query
request = urllib.request.Request(url, headers={"Authorization": "Bearer " + token})
open_url = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
while True:
    try:
        rows = json.load(open_url(request, timeout=2))["data"]["result"]["result"]
        print(json.dumps([time.time(), [[row["node_ip"], row["node_id"]] for row in rows]]), flush=True)
    except Exception as error:
        print(json.dumps([time.time(), str(error)]), flush=True)
    time.sleep(0.2)
"""
_JOB = """
import time, ray
ray.init("auto", log_to_driver=False)
@ray.remote(num_cpus=0.5, scheduling_strategy="SPREAD")
def work(number):
    time.sleep(1.0)
    return number, ray.util.get_node_ip_address()
total = {count}
references = [work.remote(number) for number in range(total)]
first, _ = ray.wait(references, num_returns=total // 4)
open("/tmp/job-under-way", "w").close()
print("started", flush=True)
numbers = [number for number, _ in ray.get(references)]
assert numbers == list(range(total))
print("done", flush=True)
"""

_TASK = """
import os, time, ray
ray.init("auto", log_to_driver=False)
@ray.remote(num_cpus=1, resources={{"node:{ip}": 0.001}})
def work(signal):
    ray.get(signal.set.remote())
    while not os.path.exists("/tmp/task-may-end"):
        time.sleep(0.1)
@ray.remote(num_cpus=0)
class Signal:
    def __init__(self):
        self.is_set = False
    def set(self):
        self.is_set = True
    def get(self):
        return self.is_set
signal = Signal.remote()
running = work.remote(signal)
while not ray.get(signal.get.remote()):
    time.sleep(0.2)
print('"running"', flush=True)
ray.get(running)
"""
_QUEUE = """
import time, ray
ray.init("auto", log_to_driver=False)
@ray.remote(num_cpus=1)
def work():
    time.sleep(300)
@ray.remote(num_cpus=0, num_gpus=1)
def never():
    pass
ray.get([*(work.remote() for _ in range(40)), never.remote()])
"""


@dataclass
class Stage:
    """The cluster and the program that watches Ray's table."""

    world: World
    hosts: OneOfEach
    cluster: Cluster
    watcher: HostProcess

    def table(self) -> list[tuple[str, str]]:
        """Return address and id of each node that is ALIVE in Ray now."""
        return self.tables()[-1][1]

    def tables(self, since: float = 0.0) -> list[tuple[float, list[tuple[str, str]]]]:
        """Return everything observed since that time (unix), oldest first."""
        lines = [json.loads(line) for line in self.watcher.output.splitlines() if line.endswith("]")]
        return [(at, [(ip, key) for ip, key in rows]) for at, rows in lines if at >= since and isinstance(rows, list)]

    def gone_after_s(self, ip: str, since: float) -> float:
        """Return the seconds after that time until Ray's table had no entry of this address."""
        self.world.wait_until(lambda: ip not in dict(self.table()), 60, f"Ray forgets {ip}")
        return next(at for at, rows in self.tables(since) if ip not in dict(rows)) - since

    def doubles(self, since: float) -> list[str]:
        """Return addresses that Ray counted twice at some moment since then."""
        counts = [Counter(ip for ip, _ in rows) for _, rows in self.tables(since)]
        return sorted({ip for count in counts for ip, number in count.items() if number > 1})

    def whole(self, what: str) -> None:
        self.world.wait_until(lambda: is_whole(self.cluster), BACK_DEADLINE_S, what)

    def status(self, host: Host, name: str) -> dict[str, object]:
        """Return that node's entry in `meshray status --json` on this host, with exit code and problems."""
        done = host.run(["meshray", "status", "--json"], check=False)
        status = json.loads(done.stdout)
        (node,) = [node for node in status["nodes"] if node["name"] == name]
        return {**node, "code": done.returncode, "problems": status["problems"], "health": status["health"]}


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with World("dead-nodes") as world:
        hosts = one_of_each(world)
        cluster = Cluster.start(hosts.head, hosts.workers)
        watcher = hosts.head.popen(["meshray", "run", "--", sys.executable, "-c", _WATCH], name="node-table")
        found = Stage(world, hosts, cluster, watcher)
        world.wait_until(found.tables, 30, "Ray's node table")
        yield found


@pytest.fixture(autouse=True)
def _whole(stage: Stage) -> Iterator[None]:
    stage.whole("the cluster before the test")
    yield
    stage.whole("the cluster after the test")


def cut_power(host: Host) -> float:
    """Kill every process of the host at once, without a goodbye; return the unix time."""
    host.shell("kill -KILL -1", check=False)
    # Without power the kernel's memory is lost: interface, rules, /run.
    host.shell("ip link delete meshray0; nft flush ruleset; rm -rf /run/meshray /tmp/ray /dev/shm/*", check=False)
    return time.time()


def start_job(stage: Stage, count: int) -> HostProcess:
    head = stage.hosts.head
    head.shell("rm -f /tmp/job-under-way")
    job = head.popen(["meshray", "run", "--", sys.executable, "-c", _JOB.format(count=count)], name="job")
    stage.world.wait_until(head.path("/tmp/job-under-way").exists, 60, "the job under way")
    return job


def test_a_power_cut_is_detected_and_the_job_continues_elsewhere(stage: Stage) -> None:
    head, walled, nested = stage.hosts.nodes
    ip = stage.cluster.ip(nested)
    job = start_job(stage, 60)
    cut = cut_power(nested)
    for host in (head, walled):
        stage.world.wait_until(
            lambda host=host: stage.status(host, "nested")["silent"],  # type: ignore[misc]
            cut + NOTICED_S + SLACK_S - time.time(),
            f"{host.name} notices",
        )
    found = stage.status(head, "nested")
    assert found["code"] == 3
    assert any("nested" in str(problem) for problem in found["problems"])  # type: ignore[attr-defined]
    ray: Any = found["ray"]
    assert (ray["alive"], ray["resources"]) == (None, {})
    assert job.wait(cut + JOB_DONE_S - time.time()) == 0, job.output
    print(f"power cut: the job was done after {time.time() - cut:.1f} s")
    assert stage.gone_after_s(ip, cut) < JOB_DONE_S
    up = time.time()
    answer = stage.cluster.meshray(nested, "up")
    assert answer["ray"]["alive"] is True
    assert nested.run(["pgrep", "-f", "raylet/raylet"]).stdout
    assert stage.doubles(cut) == []
    assert stage.status(head, "nested")["ip"] == ip
    print(f"up again after {time.time() - up:.1f} s")


def test_a_node_that_returns_before_its_timeout_is_counted_once(stage: Stage) -> None:
    nested = stage.hosts.nested
    before = dict(stage.table())[stage.cluster.ip(nested)]
    cut = cut_power(nested)
    answer = stage.cluster.meshray(nested, "up")
    # ALIVE is reported for the new raylet, not read from the entry of the dead one.
    assert answer["ray"]["alive"] is True
    assert nested.run(["pgrep", "-f", "raylet/raylet"]).stdout
    stage.world.wait_until(
        lambda: dict(stage.table()).get(stage.cluster.ip(nested), before) != before, 5, "the new raylet in the table"
    )
    assert stage.doubles(cut) == []


def test_a_killed_raylet_leaves_no_ghost(stage: Stage) -> None:
    nested = stage.hosts.nested
    ip, since = stage.cluster.ip(nested), time.time()
    before = dict(stage.table())[ip]
    nested.run(["pkill", "-KILL", "-f", "raylet/raylet"])
    stage.world.wait_until(lambda: dict(stage.table()).get(ip, before) != before, BACK_DEADLINE_S, "another raylet")
    assert stage.doubles(since) == []


def test_a_killed_agent_is_not_a_dead_node(stage: Stage) -> None:
    nested = stage.hosts.nested
    before = dict(stage.table())[stage.cluster.ip(nested)]
    kill(nested, "agent")
    time.sleep(1)
    stage.cluster.meshray(nested, "up")
    stage.whole("the agent is back")
    assert dict(stage.table())[stage.cluster.ip(nested)] == before


@pytest.mark.parametrize("transport", ["udp", "wss"])
def test_a_node_that_goes_down_or_leaves_is_forgotten_at_once(stage: Stage, transport: str) -> None:
    walled, token = stage.hosts.walled, stage.cluster.answers["head"]["token"]
    stage.cluster.meshray(walled, "leave", "--yes")
    joined = stage.cluster.meshray(walled, "join", token, "--transport", transport, "--", *RAY_ARGS)
    stage.cluster.answers["walled"] = joined
    ip = stage.cluster.ip(walled)
    begun = time.time()
    stage.cluster.meshray(walled, "down")
    took = time.time() - begun
    assert took < FORGOTTEN_S + SLACK_S, f"down took {took:.1f} s"
    assert stage.gone_after_s(ip, begun) < took + FORGOTTEN_S + RAY_SLACK_S
    # It is down on purpose: no node reports it as missing.
    assert stage.status(stage.hosts.head, "walled")["problems"] == []
    begun = time.time()
    stage.cluster.meshray(walled, "up")
    assert stage.doubles(begun) == []
    begun = time.time()
    stage.cluster.meshray(walled, "leave", "--yes")
    left = time.time()
    again = stage.cluster.meshray(walled, "join", token, "--", *RAY_ARGS)
    stage.cluster.answers["walled"] = again
    assert left - begun < FORGOTTEN_S + SLACK_S, f"leave took {left - begun:.1f} s"
    assert stage.gone_after_s(ip, begun) < left - begun + FORGOTTEN_S + RAY_SLACK_S
    assert stage.doubles(begun) == []


def work_on(stage: Stage, host: Host) -> HostProcess:
    """Start a job whose one task runs on this host until /tmp/task-may-end exists there; return when the task runs."""
    head, ip = stage.hosts.head, stage.cluster.ip(host)
    code = _TASK.format(ip=ip)
    job = head.popen(["meshray", "run", "--", sys.executable, "-c", code], name="task")
    stage.world.wait_until(lambda: '"running"' in job.output, 60, "the task runs")
    return job


def test_a_drain_waits_until_the_node_is_idle(stage: Stage) -> None:
    head, nested = stage.hosts.head, stage.hosts.nested
    job = work_on(stage, nested)
    drain = ["meshray", "node", "drain", "nested", "--when", "idle", "--json"]
    interrupted = head.popen(drain, name="interrupted")
    stage.world.wait_until(lambda: "nested is in use" in interrupted.output, 60, "the wait")
    interrupted.send_signal(signal.SIGINT)
    assert interrupted.wait(10) == 130
    assert stage.status(head, "nested")["drained"] is False
    waiting = head.popen(drain, name="drain")
    stage.world.wait_until(lambda: "nested is in use" in waiting.output, 60, "the second wait")
    assert stage.status(head, "nested")["drained"] is False
    nested.path("/tmp/task-may-end").touch()
    assert waiting.wait(60) == 0, waiting.output
    assert job.wait(5) == 0, job.output
    answer = json.loads(waiting.output.splitlines()[-1])
    assert (answer["done"], answer["waited_s"] > 1) == ("drained", True)
    assert stage.status(head, "nested")["drained"] is True
    head.run(["meshray", "node", "drain", "nested", "--undo"])


def test_a_queue_longer_than_the_cluster_waits_and_status_says_why(stage: Stage) -> None:
    head = stage.hosts.head
    job = head.popen(["meshray", "run", "--", sys.executable, "-c", _QUEUE], name="queue")

    def notices() -> list[str]:
        status = json.loads(head.run(["meshray", "status", "--json"], check=False).stdout)
        return [text for text in status["notices"] if "tasks or actors wait" in text or "task or actor waits" in text]

    try:
        stage.world.wait_until(lambda: len(notices()) == 2, 60, "both reasons")
        many, never = notices()
        assert many.endswith("wait for 1 CPU each: 3 of 3 CPU are in use"), many
        assert never == "1 task or actor waits for 1 GPU, which no node has: add such a node, or ask for less"
    finally:
        job.stop()


def test_a_removed_node_is_forgotten_at_once(stage: Stage) -> None:
    head, nested = stage.hosts.head, stage.hosts.nested
    ip, begun = stage.cluster.ip(nested), time.time()
    head.run(["meshray", "node", "rm", "nested", "--yes"])
    assert stage.gone_after_s(ip, begun) < FORGOTTEN_S + RAY_SLACK_S
    nested.run(["meshray", "leave", "--yes"])
    token = stage.cluster.answers["head"]["token"]
    stage.cluster.answers["nested"] = stage.cluster.meshray(nested, "join", token, "--", *RAY_ARGS)


@pytest.mark.timeout(420)
def test_a_gap_longer_than_the_patience_ends_in_retries_and_no_hang(stage: Stage) -> None:
    """The patience is 120 s; the path does not come back before the job has ended."""
    head, nested = stage.hosts.head, stage.hosts.nested
    job = start_job(stage, 24)
    with silenced(stage.world.hosts["nat"]):
        begun = time.time()
        assert job.wait(120 + JOB_DONE_S) == 0, job.output
        took = time.time() - begun
    print(f"the job was done {took:.0f} s after the path broke")
    assert took > 60, "the node was given up before the patience ended"
    stage.whole("the node is back by itself")
    assert stage.doubles(begun) == []
    assert stage.status(head, "nested")["ip"] == stage.cluster.ip(nested)
