"""What an agent costs while nothing happens."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bench.figures import Figure, Measured, Target
from tests.lab.cluster import Cluster
from tests.lab.host import REPOSITORY, Host
from tests.lab.world import World

PEERS = 50
TITLE = f"An agent at rest, with {PEERS} peers"
HOW = f"""
The agents of a head and of a worker, both with Ray, in a mesh of {PEERS} more nodes, all enrolled and online (their
links to the coordinator are real and held by one process). First these nodes have no WireGuard device, so every probe
to them is lost; then each has a device of its own, a handshake with the hub, and answers. Processor time is that of the
process and of the programs that it called (/proc/PID/stat), in windows long enough to hold everything that the agent
does now and then. Memory is VmRSS; Pss counts pages that other processes share in part only.
"""
WINDOWS = 3
#: The firewall is looked at every 60 s, all else more often.
WINDOW_S = 61.0
#: From the last change until the first window: what came last must have been dealt with.
SETTLE_S = 15.0
MAX_RSS_MB = 60.0
MAX_CPU_PERCENT = 1.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Agent:
    """One agent's process, read from outside."""

    what: str
    folder: Path

    @classmethod
    def of(cls, host: Host) -> Agent:
        """The one that runs on this host."""
        pid = json.loads(host.path("/run/meshray/agent.pid").read_text())["pid"]
        return cls(host.name, host.path(f"/proc/{pid}"))

    def cpu_s(self) -> float:
        """Processor time so far: user and system, its own and of its ended children."""
        fields = (self.folder / "stat").read_text().rpartition(")")[2].split()
        return sum(int(ticks) for ticks in fields[11:15]) / _TICKS

    def megabytes(self, file: str, name: str) -> float:
        """A value that the kernel gives in kB."""
        found = re.search(rf"^{name}:\s+(\d+) kB", (self.folder / file).read_text(), re.MULTILINE)
        assert found, f"{self.folder / file} has no {name}"
        return int(found[1]) * 1024 / 1e6


def measure(say: Callable[[str], None]) -> Measured:
    """Silent peers, then peers that answer."""
    with World("bench-agent") as world:
        wan = world.switch("wan", "203.0.113.0/24")
        head, worker = world.host("head", wan, "203.0.113.10"), world.host("worker", wan, "203.0.113.20")
        crowd = world.host("crowd", wan, "203.0.113.100")
        say("starting a head and a worker with Ray")
        cluster = Cluster.start(head, [worker])
        say(f"{PEERS} more nodes")
        program = [sys.executable, "-m", "tests.bench.peers", "--count", str(PEERS)]
        peers = crowd.popen(program, env={"TOKEN": cluster.answers["head"]["token"]}, cwd=REPOSITORY)
        world.wait_until(lambda: online(cluster, head) == PEERS + 2, 60, "all nodes online")
        configured = len(head.run(["wg", "show", "meshray0", "peers"]).stdout.split())
        assert configured == PEERS + 1, f"the head's device has {configured} peers"
        agents = [Agent.of(head), Agent.of(worker)]
        figures = rest(agents, "silent", say)
        silent_loss = loss(cluster, head)
        peers.send_signal(signal.SIGUSR1)
        world.wait_until(lambda: "answering" in peers.output, 90, "peers that answer")
        figures += rest(agents, "answering", say)
        answering_loss = loss(cluster, head)
    return Measured(
        tuple(figures),
        (
            f"Probes lost, as the head's agent counts: {silent_loss:.0%} while the peers were silent, "
            f"{answering_loss:.0%} when they answered. A silent peer costs one timer of two seconds for each probe.",
        ),
    )


def rest(agents: list[Agent], peers: str, say: Callable[[str], None]) -> list[Figure]:
    """Figures of all agents at once, over some windows."""
    say(f"peers {peers}: {WINDOWS} windows of {WINDOW_S:.0f} s")
    time.sleep(SETTLE_S)
    cpu: dict[Agent, list[float]] = {agent: [] for agent in agents}
    rss: dict[Agent, list[float]] = {agent: [] for agent in agents}
    pss: dict[Agent, list[float]] = {agent: [] for agent in agents}
    for _ in range(WINDOWS):
        start, before = time.monotonic(), {agent: agent.cpu_s() for agent in agents}
        time.sleep(WINDOW_S)
        for agent in agents:
            cpu[agent].append(100 * (agent.cpu_s() - before[agent]) / (time.monotonic() - start))
            rss[agent].append(agent.megabytes("status", "VmRSS"))
            pss[agent].append(agent.megabytes("smaps_rollup", "Pss"))
    figures = []
    for agent in agents:
        name = f"{agent.what}, peers {peers}"
        figures += [
            Figure(f"{name}: processor", "% of a core", tuple(cpu[agent]), Target(MAX_CPU_PERCENT)),
            Figure(f"{name}: resident", "MB", tuple(rss[agent]), Target(MAX_RSS_MB, of="max")),
            Figure(f"{name}: Pss", "MB", tuple(pss[agent])),
        ]
    return figures


def online(cluster: Cluster, host: Host) -> int:
    """How many nodes are online, as this host's agent knows."""
    return sum(bool(node["online"]) for node in cluster.meshray(host, "status", check=False)["nodes"])


def loss(cluster: Cluster, host: Host) -> float:
    """The mean loss of probes to the peers."""
    nodes = cluster.meshray(host, "status", check=False)["nodes"]
    lost = [node["path"]["loss"] for node in nodes if node["name"].startswith("peer-")]
    assert all(value is not None for value in lost), "a peer was never probed"
    return float(sum(lost) / len(lost))
