"""The cost of one node in a large mesh, of which it talks to few others."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from meshray.agent.paths.demand import IDLE_S
from tests.bench.agent import Agent
from tests.bench.figures import Figure, Measured, Target
from tests.lab.cluster import Cluster
from tests.lab.doctoring import ask
from tests.lab.host import REPOSITORY, Host
from tests.lab.test_main_job import wireguard_peers
from tests.lab.world import World

SIZES = (300, 1000)
TALKED_TO = 5
WINDOW_S = 60.0
SETTLE_S = 60.0
STATUS_ROUNDS, DOCTOR_ROUNDS = 9, 3
MAX_STATUS_S, MAX_DOCTOR_S = 0.3, 30.0
TITLE = f"A head and a worker in meshes of {SIZES[0]} and {SIZES[1]:,} nodes"
HOW = f"""
The head and {TALKED_TO + 1} workers are real, without Ray. All other members are simulated: enrolled and online, with
endpoints at which nothing answers, like machines behind strict firewalls. One worker sends each of the {TALKED_TO}
others a packet every 20 s, so it has {TALKED_TO} direct paths; it contacts no other node. After a minute the processor
time, memory and traffic are measured over {WINDOW_S:.0f} s. Bytes are those of the worker's network interface, in both
directions: tunnel, probes, and its connection to the coordinator. `status` and `doctor` are whole processes on the
head. The simulated members do not answer the doctor's questions, so it waits for them as long as for any node.
"""
MAX_WORKER_PERCENT, MAX_HEAD_PERCENT = 1.0, 3.0
MAX_RSS_MB, MAX_ENGINE_MB = 60.0, 150.0
MAX_KB_S = 2.0
#: The time for the members of a size to enrol, seconds: the coordinator takes about 60 ms of a core for each.
ENROL_S = 600


@dataclass
class Window:
    """What was measured of one mesh, over one window."""

    figures: list[Figure] = field(default_factory=list)

    def add(self, what: str, unit: str, value: float, target: Target | None = None) -> None:
        self.figures.append(Figure(what, unit, (value,), target))


def measure(report: Callable[[str], None]) -> Measured:
    """Measure meshes of each size."""
    with World("bench-bigmesh") as world:
        wan = world.switch("wan", "203.0.113.0/24")
        head, crowd = world.host("head", wan, "203.0.113.10"), world.host("crowd", wan, "203.0.113.100")
        workers = [world.host(f"w{number}", wan, f"203.0.113.{20 + number}") for number in range(TALKED_TO + 1)]
        cluster = Cluster.without_ray(head, workers)
        worker, others = workers[0], workers[1:]
        figures: list[Figure] = []
        members = 1 + len(workers)
        for size in SIZES:
            report(f"{size} nodes")
            program = [sys.executable, "-m", "tests.bench.silent_links"]
            program += ["--first", str(members), "--count", str(size - members)]
            links = crowd.popen(program, env={"TOKEN": cluster.answers["head"]["token"]}, cwd=REPOSITORY, name="links")
            world.wait_until(lambda links=links: "online" in links.output, ENROL_S, "all members online")  # type: ignore[misc]
            members = size
            pings = [worker.popen(["ping", "-i", "20", "-q", cluster.ip(other)], name="ping") for other in others]
            world.wait_until(
                lambda: all(sends_directly(worker, cluster.ip(other)) for other in others), 120, "the direct paths"
            )
            # The first members joined a small mesh, which contacts all pairs; those are let go when they are idle.
            world.wait_until(lambda: len(wireguard_peers(worker)) == 1 + TALKED_TO, IDLE_S + 60, "only used paths")
            time.sleep(SETTLE_S)
            figures += window(size, head, worker)
            figures += commands(size, cluster, report)
            for ping in pings:
                ping.stop()
    return Measured(tuple(figures))


def commands(size: int, cluster: Cluster, report: Callable[[str], None]) -> list[Figure]:
    """Return the figures of `status` and `doctor` on the head."""
    head, timed = cluster.head, {"status": list[float](), "doctor": list[float]()}
    for _ in range(STATUS_ROUNDS):
        began = time.monotonic()
        cluster.meshray(head, "status", check=False)
        timed["status"].append(time.monotonic() - began)
    for _ in range(DOCTOR_ROUNDS):
        began = time.monotonic()
        answer = ask(head, deadline_s=120)
        timed["doctor"].append(time.monotonic() - began)
        report(f"doctor: {len(answer.checks)} checks in {timed['doctor'][-1]:.1f} s")
    limits = {"status": MAX_STATUS_S, "doctor": MAX_DOCTOR_S}
    return [
        Figure(f"{size} nodes, meshray {name}", "s", tuple(taken), Target(limits[name]))
        for name, taken in timed.items()
    ]


def window(size: int, head: Host, worker: Host) -> list[Figure]:
    """Return the figures of one mesh."""
    found = Window()
    agents = {"head": Agent.of(head), "worker": Agent.of(worker)}
    began, bytes_before = time.monotonic(), interface_bytes(worker)
    before = {name: agent.cpu_s() for name, agent in agents.items()}
    time.sleep(WINDOW_S)
    took_s = time.monotonic() - began
    bytes_after = interface_bytes(worker)
    limits = {"head": MAX_HEAD_PERCENT, "worker": MAX_WORKER_PERCENT}
    for name, agent in agents.items():
        percent = 100 * (agent.cpu_s() - before[name]) / took_s
        found.add(f"{size} nodes, {name}'s agent: processor", "% of a core", percent, Target(limits[name]))
        resident = agent.megabytes("status", "VmRSS")
        found.add(f"{size} nodes, {name}'s agent: resident", "MB", resident, Target(MAX_RSS_MB))
    kilobytes_s = (bytes_after - bytes_before) / took_s / 1000
    found.add(f"{size} nodes, worker: traffic", "kB/s", kilobytes_s, Target(MAX_KB_S))
    for name, host in (("head", head), ("worker", worker)):
        engine = engine_of(name, host)
        if engine is not None:
            target = Target(MAX_ENGINE_MB) if name == "head" else None
            found.add(f"{size} nodes, {name}'s engine: resident", "MB", engine.megabytes("status", "VmRSS"), target)
    return found.figures


def engine_of(name: str, host: Host) -> Agent | None:
    """Return the process of WireGuard's engine; None if the kernel has WireGuard."""
    file = host.path("/run/meshray/engine.pid")
    return Agent(name, host.path(f"/proc/{json.loads(file.read_text())['pid']}")) if file.exists() else None


def sends_directly(host: Host, ip: str) -> bool:
    """Return whether the host has a WireGuard peer that carries packets to this overlay address only."""
    return any(f"{ip}/32" in peer["allowed_ips"].split(",") for peer in wireguard_peers(host))


def interface_bytes(host: Host) -> int:
    """Return the bytes that passed the host's network interfaces, without loopback and the overlay."""
    total = 0
    for row in host.run(["cat", "/proc/net/dev"]).stdout.splitlines()[2:]:
        name, _, numbers = row.partition(":")
        if name.strip() not in ("lo", "meshray0"):
            fields = numbers.split()
            total += int(fields[0]) + int(fields[8])
    return total
