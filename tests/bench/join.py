"""The time from the command to ALIVE: `meshray join` compared with a bare `ray start`."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.bench.figures import Figure, Measured, Target
from tests.lab.cluster import RAY_ARGS, UP_DEADLINE_S, Cluster
from tests.lab.host import REPOSITORY, Host, HostProcess
from tests.lab.waiting import wait_until
from tests.lab.world import World

TITLE = "From `meshray join` to ALIVE in Ray"
HOW = """
The time from the start of the command until the head's node table lists the new node as ALIVE; the same program reads
the table every 20 ms for both. `ray start --address …` joins a second head, which was started by hand on the same
network without meshray. Both run on the same worker host in turn, and each starts after all of the other has ended.
The difference is that of each pair. `meshray join` includes enrolment, key, tunnel, handshake and firewall.
"""
PAIRS = 5
LIMIT_S = 1.0
#: The time in which a Ray that has just ended finishes, outside of the next measurement, seconds.
PAUSE_S = 3.0
_GCS_PORT = 6379


@dataclass(frozen=True)
class Head:
    """A head, and the program that watches its node table."""

    host: Host
    ip: str
    watcher: HostProcess

    def alive_since(self, start: float) -> float | None:
        """Return when the first node that came after ``start`` was ALIVE; None: not yet."""
        rows = [json.loads(line) for line in self.watcher.output.splitlines() if line.startswith("{")]
        return next((float(row["at"]) for row in rows if row["at"] > start), None)

    def wait_for_newcomer(self, start: float) -> float:
        """Return the seconds from ``start`` until a new node was ALIVE."""
        at = wait_until(lambda: self.alive_since(start), UP_DEADLINE_S, "the new node", evidence=self.host.logs)
        assert at
        return at - start


def measure(report: Callable[[str], None]) -> Measured:
    """Measure pairs of starts; the first pair only warms the cache."""
    with World("bench-join") as world:
        wan = world.switch("wan", "203.0.113.0/24")
        worker = world.host("worker", wan, "203.0.113.20")
        report("starting a head with meshray and one without")
        cluster = Cluster.start(world.host("head", wan, "203.0.113.10"), [])
        head = watched(cluster.head, cluster.ip(cluster.head), ["meshray", "run", "--"])
        bare = bare_head(world.host("bare", wan, "203.0.113.11"))
        joined, returned, started = [], [], []
        for number in range(PAIRS + 1):
            report(f"pair {number} of {PAIRS}" if number else "a pair to make the cache warm")
            alive, done = meshray_join(worker, head, cluster.answers["head"]["token"])
            joined.append(alive)
            returned.append(done)
            started.append(ray_start(worker, bare))
            report(f"  meshray {joined[-1]:.2f} s (returned after {returned[-1]:.2f} s), ray {started[-1]:.2f} s")
    differences = tuple(ours - theirs for ours, theirs in zip(joined[1:], started[1:], strict=True))
    return Measured(
        (
            Figure("meshray join … until ALIVE", "s", tuple(joined[1:])),
            Figure("ray start --address … until ALIVE", "s", tuple(started[1:])),
            Figure("difference", "s", differences, Target(LIMIT_S)),
            Figure("meshray join … until it returns", "s", tuple(returned[1:])),
        ),
        ("Two heads and the worker share the cores.",),
    )


def watched(host: Host, ip: str, through: list[str]) -> Head:
    """Return the head, once its own Ray is ALIVE in its table."""
    program = [*through, sys.executable, "-m", "tests.bench.node_table", f"{ip}:{_GCS_PORT}"]
    head = Head(host, ip, host.popen(program, name="node_table", cwd=REPOSITORY))
    head.wait_for_newcomer(0)
    return head


def bare_head(host: Host) -> Head:
    """Start `ray start --head` by hand."""
    ip = str(host.address)
    host.run(["ray", "start", "--head", f"--node-ip-address={ip}", *RAY_ARGS], deadline_s=UP_DEADLINE_S)
    return watched(host, ip, [])


def meshray_join(worker: Host, head: Head, token: str) -> tuple[float, float]:
    """Return the seconds until ALIVE, and until the command returned; the node has left again."""
    start = time.monotonic()
    command = worker.popen(["meshray", "join", token, "--", *RAY_ARGS], name="join")
    status = command.wait(UP_DEADLINE_S)
    returned = time.monotonic() - start
    assert status == 0, command.output
    alive = head.wait_for_newcomer(start)
    worker.run(["meshray", "leave", "--yes"], deadline_s=UP_DEADLINE_S)
    wait_until_ray_is_gone(worker)
    return alive, returned


def ray_start(worker: Host, head: Head) -> float:
    """Return the seconds until ALIVE; the Ray has ended again."""
    start = time.monotonic()
    options = [f"--address={head.ip}:{_GCS_PORT}", f"--node-ip-address={worker.address}", "--block", *RAY_ARGS]
    ray = worker.popen(["ray", "start", *options], name="ray")
    alive = head.wait_for_newcomer(start)
    # It may miss a signal that comes while it still starts its last process.
    worker.wait_until(lambda: "Ray runtime started" in ray.output, UP_DEADLINE_S, "ray start")
    ray.stop(30)
    wait_until_ray_is_gone(worker)
    return alive


def wait_until_ray_is_gone(worker: Host) -> None:
    """Wait until no process of it is left, and a moment more."""
    worker.wait_until(lambda: not ray_runs(worker), 30, "the end of Ray")
    time.sleep(PAUSE_S)


def ray_runs(host: Host) -> bool:
    """Return whether a process of Ray exists."""
    for folder in host.path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # It has just ended.
            if b"/ray/" in (folder / "cmdline").read_bytes():
                return True
    return False
