"""The doctor on ten nodes: it soon reports a healthy mesh, also a busy one, a new one, and one that was repaired.

The picture is that of `topologies.ten`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.lab.cluster import Cluster
from tests.lab.doctoring import Doctor, until_well
from tests.lab.host import Host
from tests.lab.topologies import ten
from tests.lab.trouble import silenced
from tests.lab.world import World

#: 5 s are promised on ten machines; here ten nodes and other tests share two cores. The closing table has the number,
#: and `python -m tests.bench doctor` measures it without other load.
WITHIN_S = 10.0
#: The age of the join, and of the repair, about which the doctor must not complain, seconds.
JOINED_S, REPAIRED_S = 5.0, 120.0
#: The busy programs end by themselves, whatever happens to the test.
BUSY_S = 120


@dataclass
class Mesh:
    """Ten nodes, and the time (monotonic) at which a fault of one was repaired."""

    cluster: Cluster
    repaired: float = 0.0

    @property
    def head(self) -> Host:
        return self.cluster.head

    def worker(self, number: int) -> Host:
        """Return the host n1, n2, …"""
        return self.cluster.workers[number - 1]


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with World("doctor-ten") as world:
        head, *workers = ten(world)
        mesh = Mesh(Cluster.without_ray(head, workers))
        until_well([head])
        # Nothing passes to n1 until the other nodes have noticed.
        with silenced(mesh.worker(1)):
            head.wait_until(lambda: reports_problem_of(mesh, "n1"), 60, "a silent node")
        mesh.repaired = time.monotonic()
        until_well([head])
        yield mesh


def reports_problem_of(mesh: Mesh, node: str) -> bool:
    """Return whether the head's status reports a problem of this node."""
    problems = mesh.cluster.meshray(mesh.head, "status", check=False)["problems"]
    return any(problem.startswith(f"{node} (") for problem in problems)


@contextmanager
def busy_cores(host: Host) -> Iterator[None]:
    """Keep all cores of the machine busy during the block, with two programs for each."""
    programs = [
        host.popen(["timeout", str(BUSY_S), "sh", "-c", "while :; do :; done"], name=f"busy-{number}")
        for number in range(2 * (os.cpu_count() or 1))
    ]
    try:
        yield
    finally:
        for program in programs:
            program.stop()


def test_ten_nodes(mesh: Mesh, doctor: Doctor) -> None:
    doctor.passes("ten nodes: open, easy and symmetric routers, no UDP", mesh.head, mesh.worker(8), mesh.worker(9))
    doctor.answers("ten nodes", mesh.head, WITHIN_S)


def test_ten_nodes_on_busy_cores(mesh: Mesh, doctor: Doctor) -> None:
    with busy_cores(mesh.head):
        doctor.passes("ten nodes on cores that are busy", mesh.head, mesh.worker(6))


def test_ten_nodes_five_seconds_after_a_join(mesh: Mesh, doctor: Doctor) -> None:
    worker = mesh.worker(5)
    mesh.cluster.meshray(worker, "leave")
    token = mesh.cluster.answers[mesh.head.name]["token"]
    mesh.cluster.answers[worker.name] = mesh.cluster.meshray(worker, "join", token, "--no-ray")
    time.sleep(JOINED_S)
    doctor.passes("ten nodes, one of which joined 5 s ago", mesh.head, worker)


def test_ten_nodes_two_minutes_after_a_repair(mesh: Mesh, doctor: Doctor) -> None:
    time.sleep(max(0.0, mesh.repaired + REPAIRED_S - time.monotonic()))
    doctor.passes("ten nodes, one of which was unreachable until two minutes ago", mesh.head, mesh.worker(1))
