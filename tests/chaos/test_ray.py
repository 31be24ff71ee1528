"""Kills in a working Ray cluster, several at a time: the cluster recovers, and the job ends or reports why not.

               switch wan 203.0.113.0/24
        ┌─────────────┼──────────────┐
      head         walled           nat    port-keeping NAT: nothing new comes in
  203.0.113.10  203.0.113.20    203.0.113.30
                drops all            │ switch nat-lan 192.168.7.0/24
                inbound            nested
                                192.168.7.10

The oracles are Ray's own node table, `wg`, `ip`, `ping`, `nft` and /proc.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from tests.chaos.crowd import kill, listen_port, meshray
from tests.chaos.oracles import left_over, traces, unreachable, wrong_addresses, wrong_peers, wrong_processes
from tests.chaos.plan import SUMMARY, Plan, longest_s
from tests.lab.cluster import Cluster
from tests.lab.host import CommandError, Host
from tests.lab.test_main_job import NODE_TABLE, processes
from tests.lab.trouble import rebind, reboot
from tests.lab.waiting import wait_until
from tests.lab.world import Router, World

pytestmark = pytest.mark.timeout(longest_s(os.environ))

#: Ray on two slow cores: a start takes up to half a minute, and a worker's follows its head's.
WHOLE_S = 150
#: A driver gives up when its GCS is gone for this long; a minute unless configured.
GIVES_UP_S = 15
JOB_S = 120
#: Works for a few seconds on every node, with results of others.
JOB = """
import time, ray
ray.init("auto", log_to_driver=False)
@ray.remote(num_cpus=0.3)
def add(n, block):
    time.sleep(0.2)
    return n + len(block)
block = ray.put(b"x" * 2**20)
print("started", flush=True)
total = sum(ray.get([add.remote(n, block) for n in range(60)], timeout=90))
print("total", total - 60 * 2**20)
"""
#: Ray's own messages for why a job cannot continue.
RAY_S_ERROR = re.compile(
    r"ray\.exceptions\.\w+|gcs_client|gcs_rpc_client|Failed to connect to GCS|raylet|ConnectionError: .*Ray"
    r"|_worker\.cc|task_manager\.cc"
)


@dataclass
class Stage:
    world: World
    plan: Plan
    cluster: Cluster
    nat: Router
    before: dict[str, dict[str, Any]]

    @property
    def addresses(self) -> dict[Host, str]:
        """Return the address that each host was assigned at its enrolment."""
        return {host: self.cluster.ip(host) for host in self.cluster.hosts}

    def one(self) -> Host:
        """Return any of the hosts."""
        return self.plan.random.choice(self.cluster.hosts)

    def worker(self) -> Host:
        """Return any worker."""
        return self.plan.random.choice(self.cluster.workers)

    def wrong(self) -> list[str]:
        """Return everything that is wrong, the cheap checks first."""
        cluster = self.cluster
        return (
            wrong_addresses(self.addresses)
            or unreachable(self.addresses)
            or wrong_peers(cluster.head, cluster.workers)
            or self._wrong_processes()
            or self._wrong_status()
            or self._wrong_ray()
            or self._wrong_doctor()
        )

    def _wrong_processes(self) -> list[str]:
        expected = {host: {"-m meshray.agent": 1, "raylet/raylet": 1} for host in self.cluster.hosts}
        expected[self.cluster.head] |= {"-m meshray.coordinator": 1, "gcs/gcs_server": 1}
        guards = [
            host.name
            for host in self.cluster.hosts
            if "drop" not in host.run(["nft", "list", "table", "inet", "meshray"], check=False).stdout
        ]
        return [f"no guard on {name}" for name in guards] + [
            line for host, words in expected.items() for line in wrong_processes(host, words)
        ]

    def _wrong_status(self) -> list[str]:
        for host in self.cluster.hosts:
            status = self.cluster.meshray(host, "status", check=False)
            nodes = {node["name"]: node for node in status.get("nodes", [])}
            away = [name for name, node in nodes.items() if not (node["online"] and node["ray"]["alive"])]
            if status.get("problems", [status]) or away or len(nodes) != len(self.cluster.hosts):
                return [f"{host.name}: {status.get('problems')}, {len(nodes)} nodes, away: {away}"]
        return []

    def _wrong_ray(self) -> list[str]:
        try:
            table = self.cluster.python(NODE_TABLE, host=self.one())
        except CommandError as error:
            return [str(error)]
        alive = sorted(node["NodeManagerAddress"] for node in table if node["Alive"])
        return [] if alive == sorted(self.addresses.values()) else [f"Ray counts {alive}"]

    def _wrong_doctor(self) -> list[str]:
        answer = self.cluster.meshray(self.cluster.head, "doctor", check=False)
        if "error" in answer:
            return [f"doctor: {answer['error']}"]
        return [f"{c['code']} {c['node']}: {c['evidence']}" for c in answer["checks"] if c["status"] == "fail"]

    def whole(self, what: str) -> float:
        """Wait until everything is well; return the seconds that it took."""
        begun, seen = time.monotonic(), list[str]()

        def look() -> bool:
            try:
                seen[:] = self.wrong()
            except CommandError as error:  # An engine or an agent that was just killed.
                seen[:] = [str(error)]
            self.plan.note(seen)
            return not seen

        def evidence() -> str:
            return "\n".join([*seen, *self.plan.reported, self.world.logs()])

        wait_until(
            look,
            WHOLE_S,
            f"a whole cluster after {what} (seed {self.plan.seed})",
            evidence=evidence,
            longest_pause_s=2.0,
        )
        return time.monotonic() - begun


# ---- kinds of trouble


def agent_killed(stage: Stage) -> None:
    host = stage.one()
    kill(host, "agent")
    # systemd's part.
    meshray(host, "up")


def engine_killed(stage: Stage) -> None:
    kill(stage.one(), "engine")


def coordinator_killed(stage: Stage) -> None:
    kill(stage.cluster.head, "coordinator")


def raylet_killed(stage: Stage) -> None:
    host = stage.worker()
    for pid, _ in processes(host, "raylet/raylet"):
        host.run(["kill", "-9", str(pid)], check=False)


def gcs_killed(stage: Stage) -> None:
    head = stage.cluster.head
    for pid, _ in processes(head, "gcs/gcs_server"):
        head.run(["kill", "-9", str(pid)], check=False)


def router_rebooted(stage: Stage) -> None:
    reboot(stage.nat, stage.plan.random.uniform(1, 5))


def mapping_moved(stage: Stage) -> None:
    nested = stage.cluster.workers[1]
    port = nested.wait_until(partial(listen_port, nested), 30, "a WireGuard that answers")
    rebind(stage.nat, nested, port, stage.plan.random.randint(40000, 49999))


KINDS: dict[str, Callable[[Stage], None]] = {
    kind.__name__: kind
    for kind in (
        agent_killed, engine_killed, coordinator_killed, raylet_killed, gcs_killed, router_rebooted, mapping_moved,
    )
}  # fmt: skip


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with World("chaos-ray") as world:
        wan = world.switch("wan", "203.0.113.0/24")
        head, walled = world.host("head", wan, "203.0.113.10"), world.host("walled", wan, "203.0.113.20")
        walled.drop_inbound()
        nat = world.router("nat", wan, "203.0.113.30", lan="192.168.7.0/24")
        hosts = head, walled, world.host("nested", nat.lan, "192.168.7.10")
        before = {host.name: traces(host) for host in hosts}
        yield Stage(world, Plan.of(os.environ, "ray"), Cluster.start(head, hosts[1:]), nat, before)


def test_the_cluster_comes_back_and_jobs_end(stage: Stage, record_property: Callable[[str, object], None]) -> None:
    plan = stage.plan
    begin = time.monotonic()
    rounds = 0
    for group in plan.rounds(list(KINDS), at_once=3):
        rounds += 1
        begun, host = time.monotonic(), stage.one()
        driver = {"RAY_gcs_rpc_server_reconnect_timeout_s": str(GIVES_UP_S)}
        job = host.popen(["meshray", "run", "--", sys.executable, "-c", JOB], name="job", env=driver)
        wait_until(lambda job=job: "started" in job.output, 60, "the job", evidence=lambda job=job: job.output)  # type: ignore[misc]
        for name in group:
            KINDS[name](stage)
        ended = job.wait(JOB_S)
        if ended == 0:
            assert f"total {sum(range(60))}" in job.output, job.output
        else:
            assert RAY_S_ERROR.search(job.output), f"the job on {host.name} ended with {ended}:\n{job.output}"
        took = stage.whole(" + ".join(group))
        plan.report(
            f"{' + '.join(group)}: the job on {host.name} {'ended well' if ended == 0 else 'failed'},"
            f" {time.monotonic() - begun:.1f} s, whole after {took:.1f} s"
        )
    record_property(SUMMARY, f"Ray: {rounds} rounds in {time.monotonic() - begin:.0f} s")


def test_leave_leaves_nothing(stage: Stage) -> None:
    hosts = [*stage.cluster.workers, stage.cluster.head]
    for host in hosts:
        meshray(host, "leave", "--yes")
    left = {host.name: left_over(stage.before[host.name], traces(host)) for host in hosts}
    assert {name: lines for name, lines in left.items() if lines} == {}
