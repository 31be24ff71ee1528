"""The cost of an agent while nothing happens."""

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

from meshray.defaults import METRICS_PORT, PROBE_PORT
from tests.bench.figures import Figure, Measured, Target
from tests.lab.cluster import Cluster
from tests.lab.host import REPOSITORY, Host
from tests.lab.world import World

PEERS = 50
#: The time between two reads of an agent's metrics, seconds.
SCRAPE_S = 15.0
TITLE = f"An agent at rest, with {PEERS} peers"
HOW = f"""
The agents of a head and of a worker, both with Ray, in a mesh of {PEERS} more nodes. These nodes are enrolled and
online: one process has a real connection to the coordinator for each. First they have no WireGuard device, so every
probe to them is lost. Then each has a device, a handshake with the hub, and answers over it. They do not take part in
direct paths, so the worker's agent attempts these in vain, less and less often; its first minute is listed
separately. At last both agents' metrics are read every {SCRAPE_S:.0f} s, as by Prometheus. Processor time includes
the programs that the process ran (/proc/PID/stat), over windows that are long enough for all periodic work of the
agent. Memory is VmRSS; Pss counts shared pages only in part.
"""
WINDOWS = 2
#: The firewall is checked every 60 s, everything else more often.
WINDOW_S = 61.0
#: The time from the last change until the first window: everything must have been processed.
SETTLE_S = 15.0
#: The time for nodes that can be dialled: direct paths to them are tried, less and less often after failures.
SETTLE_PATHS_S = 120.0
MAX_RSS_MB = 60.0
MAX_CPU_PERCENT = 1.0
_COUNTER = f"""
table inet bench {{
    counter probes {{ }}
    chain out {{
        type filter hook output priority 0
        udp dport {PROBE_PORT} counter name probes
    }}
}}
"""
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Agent:
    """One agent's process, read from outside."""

    what: str
    folder: Path

    @classmethod
    def of(cls, host: Host) -> Agent:
        """Return the agent that runs on this host."""
        pid = json.loads(host.path("/run/meshray/agent.pid").read_text())["pid"]
        return cls(host.name, host.path(f"/proc/{pid}"))

    def cpu_s(self) -> float:
        """Return the processor time so far: user and system, its own and that of its ended children."""
        fields = (self.folder / "stat").read_text().rpartition(")")[2].split()
        return sum(int(ticks) for ticks in fields[11:15]) / _TICKS

    def megabytes(self, file: str, name: str) -> float:
        """Return a value that the kernel gives in kB."""
        found = re.search(rf"^{name}:\s+(\d+) kB", (self.folder / file).read_text(), re.MULTILINE)
        assert found, f"{self.folder / file} has no {name}"
        return int(found[1]) * 1024 / 1e6


def measure(report: Callable[[str], None]) -> Measured:
    """Measure with silent peers, then with peers that answer."""
    with World("bench-agent") as world:
        wan = world.switch("wan", "203.0.113.0/24")
        head, worker = world.host("head", wan, "203.0.113.10"), world.host("worker", wan, "203.0.113.20")
        crowd = world.host("crowd", wan, "203.0.113.100")
        count_probes(head)
        report("starting a head and a worker with Ray")
        cluster = Cluster.start(head, [worker])
        report(f"{PEERS} more nodes")
        program = [sys.executable, "-m", "tests.bench.peers", "--count", str(PEERS)]
        peers = crowd.popen(program, env={"TOKEN": cluster.answers["head"]["token"]}, cwd=REPOSITORY)
        world.wait_until(lambda: online(cluster, head) == PEERS + 2, 60, "all nodes online")
        configured = len(head.run(["wg", "show", "meshray0", "peers"]).stdout.split())
        assert configured == PEERS + 1, f"the head's device has {configured} peers"
        agents = [Agent.of(head), Agent.of(worker)]
        time.sleep(SETTLE_S)
        before = probes(head)
        figures = rest(agents, "silent", report)
        to_silent = per_minute(probes(head) - before)
        peers.send_signal(signal.SIGUSR1)
        world.wait_until(lambda: "answering" in peers.output, 90, "peers that answer")
        first_minute = processor(agents[1], 60)
        time.sleep(SETTLE_PATHS_S - 60)
        before = probes(head)
        figures += rest(agents, "answering", report)
        figures.append(Figure("worker, the minute after they came: processor", "% of a core", (first_minute,)))
        received, to_answering = answering(cluster, head), per_minute(probes(head) - before)
        scraper = head.popen(["/bin/sh", "-c", scraping([cluster.ip(head), cluster.ip(worker)])], name="scraper")
        head.wait_until(lambda: scraper.output.count("series") >= 2, 30, "the metrics of both agents")
        figures += rest(agents, "answering, metrics read", report)
        scraper.stop()
    return Measured(
        tuple(figures),
        (
            f"The head keeps probing silent peers: {to_silent:.0f} packets of probes leave it in a minute, one timer "
            f"each, and they end in the engine, which has no session for them. Then {received} of {PEERS} peers "
            f"answered: {to_answering:.0f} packets in a minute, answers to the worker's included.",
        ),
    )


def scraping(addresses: list[str]) -> str:
    """Return a shell script that reads the metrics of these agents at intervals, and prints the number of series."""
    count = "awk '/^meshray/ {n++} END {if (n) print n, \"series\"}'"
    reads = [f"curl -sf http://{ip}:{METRICS_PORT}/metrics | {count}" for ip in addresses]
    return f"while :; do {'; '.join(reads)}; sleep {SCRAPE_S}; done"


def per_minute(packets: int) -> float:
    """Return the rate per minute from all windows of one `rest`."""
    return packets / (WINDOWS * WINDOW_S) * 60


def processor(agent: Agent, seconds: float) -> float:
    """Return the agent's processor use over this time, percent of a core."""
    before = agent.cpu_s()
    time.sleep(seconds)
    return 100 * (agent.cpu_s() - before) / seconds


def rest(agents: list[Agent], peers: str, report: Callable[[str], None]) -> list[Figure]:
    """Return the figures of all agents at once, over several windows."""
    report(f"peers {peers}: {WINDOWS} windows of {WINDOW_S:.0f} s")
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
    """Return the number of online nodes, according to this host's agent."""
    return sum(bool(node["online"]) for node in cluster.meshray(host, "status", check=False)["nodes"])


def answering(cluster: Cluster, host: Host) -> int:
    """Return the number of peers that answer this host's probes."""
    nodes = cluster.meshray(host, "status", check=False)["nodes"]
    return sum(node["name"].startswith("peer-") and node["path"]["rtt_ms"] is not None for node in nodes)


def count_probes(host: Host) -> None:
    """Count the probes (and answers) that leave this host."""
    host.run(["nft", "-f", "-"], stdin=_COUNTER)


def probes(host: Host) -> int:
    """Return the number so far."""
    listed = host.run(["nft", "--json", "list", "counter", "inet", "bench", "probes"]).json()
    return next(int(item["counter"]["packets"]) for item in listed["nftables"] if "counter" in item)
