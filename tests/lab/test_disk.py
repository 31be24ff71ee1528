"""Full or read-only disks of the coordinator and of an agent: small tmpfs mounts as state folders.

        switch lan 192.168.1.0/24
 ┌──────────┬──────────┬──────────┐
head      worker      late      later
.10         .11        .12        .13
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.lab.cluster import UP_DEADLINE_S, Cluster
from tests.lab.host import Host
from tests.lab.world import World

STATE = "/var/lib/meshray"
BACK_S = 60


@dataclass
class Place:
    cluster: Cluster
    worker: Host
    late: Host
    later: Host

    @property
    def head(self) -> Host:
        return self.cluster.head

    @property
    def token(self) -> str:
        return str(self.cluster.answers[self.head.name]["token"])


def meshray(host: Host, *words: str) -> tuple[int, dict[str, Any]]:
    done = host.run(["meshray", *words, "--json"], check=False, deadline_s=UP_DEADLINE_S)
    assert "Traceback" not in done.stderr
    answer = json.loads(done.stdout)
    assert isinstance(answer, dict)
    return done.returncode, answer


def status(host: Host) -> dict[str, Any]:
    return meshray(host, "status")[1]


def online(host: Host) -> set[str]:
    return {node["name"] for node in status(host)["nodes"] if node["online"]}


def problems(host: Host) -> str:
    return "; ".join(status(host)["problems"])


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with World("disk") as world:
        lan = world.switch("lan", "192.168.1.0/24")
        head, worker, late, later = (
            world.host(name, lan, f"192.168.1.{number}")
            for number, name in enumerate(("head", "worker", "late", "later"), start=10)
        )
        for host in (head, worker):
            host.shell(f"mkdir -p {STATE} && mount -t tmpfs -o size=32m,mode=700 tmpfs {STATE}")
        # A file system with files open for writing cannot be made read-only, so the logs are on another one.
        worker.shell(f"mkdir {STATE}/log && mount -t tmpfs -o mode=700 tmpfs {STATE}/log")
        yield Place(Cluster.without_ray(head, [worker]), worker, late, later)


def test_a_coordinator_without_room_refuses_newcomers_and_serves_the_others(place: Place) -> None:
    head, worker, late = place.head, place.worker, place.late
    head.shell(f"dd if=/dev/zero of={STATE}/filler bs=1k 2>/dev/null; true")
    try:
        code, answer = meshray(late, "join", "--no-ray", place.token)
        assert (code, answer["error"]["code"]) == (1, "store_failed"), answer
        assert "full" in answer["error"]["message"]
        assert late.shell(f"ls -A {STATE} 2>/dev/null", check=False).stdout in ("", "log.failed\n")
        # Presence needs no disk: the worker disconnects and reconnects, and every node is notified.
        worker.run(["meshray", "down"])
        head.wait_until(lambda: online(head) == {"head"}, BACK_S, "the head sees that the worker is gone")
        worker.run(["meshray", "up"], deadline_s=UP_DEADLINE_S)
        head.wait_until(lambda: online(head) == {"head", "worker"}, BACK_S, "the head sees that the worker is back")
        assert "cannot be kept on disk" in problems(head)
    finally:
        head.shell(f"rm {STATE}/filler")
    code, answer = meshray(late, "join", "--no-ray", place.token)
    assert code == 0, answer
    head.wait_until(lambda: problems(head) == "", BACK_S, "the head's map is on disk again")
    assert online(head) == {"head", "worker", "late"}


def test_an_agent_on_a_read_only_disk_continues_and_reports_it(place: Place) -> None:
    worker, later = place.worker, place.later
    worker.run(["mount", "-o", "remount,ro", STATE])
    try:
        code, answer = meshray(later, "join", "--no-ray", place.token)
        assert code == 0, answer
        worker.wait_until(lambda: "later" in online(worker), BACK_S, "the worker has the new map")
        assert "the map cannot be kept on disk" in problems(worker) and "Read-only" in problems(worker)
        assert meshray(worker, "ping", "later")[0] == 0
    finally:
        worker.run(["mount", "-o", "remount,rw", STATE])
    later.run(["meshray", "leave", "--yes"], deadline_s=UP_DEADLINE_S)
    worker.wait_until(lambda: problems(worker) == "", BACK_S, "the worker's map is on disk again")


@pytest.mark.parametrize("size", ["16k", "48k", "80k"])
def test_init_on_a_full_disk_leaves_nothing(place: Place, size: str) -> None:
    outsider = place.later
    outsider.shell(f"mkdir -p /root/tiny && mount -t tmpfs -o size={size} tmpfs /root/tiny")
    try:
        done = outsider.run(
            ["meshray", "init", "--no-ray", "--json"], env={"MESHRAY_HOME": "/root/tiny/state"}, check=False
        )
        assert done.returncode == 1, done.stdout
        assert json.loads(done.stdout)["error"]["code"] in ("system", "store_unwritable", "store_failed"), done.stdout
        assert "Traceback" not in done.stderr
        assert outsider.shell("ls -A /root/tiny").stdout == ""
    finally:
        outsider.run(["umount", "/root/tiny"])
