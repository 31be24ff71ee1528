"""The cost of a hub with many peers at rest."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable

from tests.bench.agent import Agent, online
from tests.bench.bigmesh import ENROL_S, MAX_ENGINE_MB, MAX_HEAD_PERCENT, engine_of
from tests.bench.figures import Figure, Measured, Target
from tests.lab.cluster import Cluster
from tests.lab.host import REPOSITORY
from tests.lab.world import World

PEERS = 1000
WINDOW_S, SETTLE_S = 60.0, 60.0
TITLE = f"A hub with {PEERS:,} peers at rest"
HOW = f"""
A head without Ray, and {PEERS:,} peers, each with its own WireGuard engine, a session with the hub, its keepalives and
its signs of life, at most 100 a second in all. One process has their connections to the coordinator. A minute after
all answer, processor time and memory are measured over {WINDOW_S:.0f} s. The peers share the cores with the hub.
"""
#: The time until all peers have their device and answer, seconds.
ANSWERING_S = 600


def measure(report: Callable[[str], None]) -> Measured:
    """Measure one hub."""
    with World("bench-hub") as world:
        wan = world.switch("wan", "203.0.113.0/24")
        head, crowd = world.host("head", wan, "203.0.113.10"), world.host("crowd", wan, "203.0.113.100")
        cluster = Cluster.without_ray(head, [])
        report(f"{PEERS} peers with a device each")
        program = [sys.executable, "-m", "tests.bench.peers", "--count", str(PEERS)]
        peers = crowd.popen(program, env={"TOKEN": cluster.answers["head"]["token"]}, cwd=REPOSITORY, name="peers")
        world.wait_until(lambda: "online" in peers.output, ENROL_S, "all peers online")
        peers.send_signal(signal.SIGUSR1)
        world.wait_until(lambda: "answering" in peers.output, ANSWERING_S, "peers that answer")
        time.sleep(SETTLE_S)
        assert online(cluster, head) == PEERS + 1
        processes = {"agent": Agent.of(head)}
        engine = engine_of("head", head)
        if engine is not None:
            processes["engine"] = engine
        began, before = time.monotonic(), {name: process.cpu_s() for name, process in processes.items()}
        time.sleep(WINDOW_S)
        took_s = time.monotonic() - began
        used = {name: 100 * (process.cpu_s() - before[name]) / took_s for name, process in processes.items()}
        target, unit = Target(MAX_HEAD_PERCENT), "% of a core"
        figures = [Figure("agent and engine: processor", unit, (sum(used.values()),), target)]
        for name, process in processes.items():
            limit = Target(MAX_ENGINE_MB) if name == "engine" else None
            figures += [
                Figure(f"{name}: processor", unit, (used[name],)),
                Figure(f"{name}: resident", "MB", (process.megabytes("status", "VmRSS"),), limit),
            ]
        return Measured(tuple(figures))
