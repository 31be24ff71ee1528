"""The time in which pairs get a direct path and leave a dead one, and the traffic of an idle one."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime

from tests.bench.figures import Figure, Measured, Target
from tests.lab.cluster import Cluster
from tests.lab.conversation import Conversation
from tests.lab.host import Host
from tests.lab.trouble import silenced
from tests.lab.world import World

TITLE = "Direct paths"
HOW = """
A hub and two workers, each behind its own port-keeping NAT, with agents and wireguard-go. *To direct*: one worker
leaves and joins again; the time from the coordinator's log line about the enrolment to the later of the two agents'
log lines about the direct path. *To the hub*: a TCP connection uses the direct path, then each router drops all
packets from the other; the time until both agents report the hub path. *Idle*: a worker alone with its hub, then five
workers on one switch with all pairs direct; the bytes on one worker's underlay interface in both directions over 80
s, including its connections to hub and coordinator. The addition of 4 peers is extrapolated to 50.
"""
ROUNDS = 4
PATIENCE_S = 40
IDLE_WORKERS = 5
#: Four probes of each pair.
IDLE_S = 80
IDLE_SETTLE_S = 300
_STAMP = "%Y-%m-%d %H:%M:%S,%f"


def measure(report: Callable[[str], None]) -> Measured:
    """Measure all three."""
    with World("bench-paths") as world:
        wan = world.switch("wan", "192.88.99.0/24")
        hub = world.host("hub", wan, "192.88.99.10")
        nats = [world.router(f"nat{n}", wan, f"192.88.99.{n}", lan=f"192.168.{n}.0/24") for n in (31, 32)]
        here, there = (world.host(f"w{n}", nats[n].lan, f"192.168.{31 + n}.10") for n in (0, 1))
        cluster = Cluster.without_ray(hub, [here, there])
        to_direct = []
        for number in range(ROUNDS):
            report(f"join {number + 1} of {ROUNDS}")
            to_direct.append(joined_again(cluster, here, there))
        talk = Conversation(here, there, cluster.ip(here))
        to_hub = []
        for number in range(ROUNDS):
            report(f"outage {number + 1} of {ROUNDS}")
            to_hub.append(outage(cluster, here, there, nats[0].host, nats[1].host, talk))
        lost = float(talk.is_over)
        talk.end()
    report(f"idle: {IDLE_WORKERS} workers")
    return Measured(
        (
            Figure("from enrolled to direct", "s", tuple(to_direct), Target(1.5)),
            Figure("from dead to the hub", "s", tuple(to_hub), Target(4.0)),
            Figure("TCP connections lost over it", "", (lost,), Target(0.0, of="max")),
            Figure("idle, 50 direct peers", "kB/s", (idle_bytes_s() / 1000,), Target(2.0)),
        ),
        (f"idle: what {IDLE_WORKERS - 1} direct peers add, multiplied",),
    )


def joined_again(cluster: Cluster, here: Host, there: Host) -> float:
    """Return the seconds from the enrolment of ``there`` to the direct path."""
    cluster.meshray(there, "leave", "--yes")
    token = cluster.answers[cluster.head.name]["token"]
    cluster.answers[there.name] = cluster.meshray(there, "join", token, "--no-ray")
    enrolled = stamp(cluster.head, "coordinator", f"{there.name} enrolled")
    direct = [until_logged(host, f"{other.name}: direct", enrolled) for host, other in ((here, there), (there, here))]
    return max(direct) - enrolled


def outage(cluster: Cluster, here: Host, there: Host, near: Host, far: Host, talk: Conversation) -> float:
    """Return the seconds from the failure of the direct path to the moment at which both sides have left it."""
    addresses = [str(near.address), str(far.address)]
    dead = time.time()
    with silenced(near, addresses[1]), silenced(far, addresses[0]):
        left = [until_logged(host, f"{other.name}: back", dead) for host, other in ((here, there), (there, here))]
        talk.wait_until_it_goes_on(PATIENCE_S)
    healed = time.time()
    # Attempts come at growing pauses; a change of the own address would cause the next one at once.
    for host, other in ((here, there), (there, here)):
        until_logged(host, f"{other.name}: direct", healed, 120)
    return max(left) - dead


def idle_bytes_s() -> float:
    """Return the bytes per second of one of many nodes that all have direct paths, for 50 peers."""
    with World("bench-idle") as world:
        wan = world.switch("wan", "192.88.99.0/24")
        hub = world.host("hub", wan, "192.88.99.10")
        first, *others = (world.host(f"w{n}", wan, f"192.88.99.{20 + n}") for n in range(IDLE_WORKERS))
        cluster = Cluster.without_ray(hub, [first])
        first.wait_until(lambda: is_settled(cluster, first), IDLE_SETTLE_S, "the path to the hub")
        alone = bytes_s(first)
        for worker in others:
            cluster.answers[worker.name] = cluster.meshray(worker, "join", cluster.answers["hub"]["token"], "--no-ray")

        def all_settled() -> bool:
            return all(is_settled(cluster, worker) for worker in (first, *others))

        first.wait_until(all_settled, IDLE_SETTLE_S, "all paths to be direct")
        return alone + (bytes_s(first) - alone) / len(others) * 50


def is_settled(cluster: Cluster, host: Host) -> bool:
    """Return whether all peers are direct."""
    paths = [node["path"] for node in cluster.meshray(host, "status", check=False)["nodes"]]
    return all(path["kind"] in ("self", "direct") for path in paths)


def bytes_s(host: Host) -> float:
    """Return the bytes per second on an idle host's underlay interface."""
    before = carried(host)
    time.sleep(IDLE_S)
    return (carried(host) - before) / IDLE_S


def carried(host: Host) -> int:
    """Return the bytes in and out of the underlay interface."""
    (link,) = host.run(["ip", "-json", "-s", "link", "show", "eth0"]).json()
    return int(link["stats64"]["rx"]["bytes"]) + int(link["stats64"]["tx"]["bytes"])


def stamp(host: Host, log: str, words: str) -> float:
    """Return when the last line with these words was written, unix seconds."""
    lines = host.path(f"/var/lib/meshray/log/{log}.log").read_text().splitlines()
    line = next((line for line in reversed(lines) if words in line), "")
    return datetime.strptime(line[:23], _STAMP).timestamp() if line else 0.0


def until_logged(host: Host, words: str, since: float, deadline_s: float = PATIENCE_S) -> float:
    """Return when the agent logged this after ``since``."""
    host.wait_until(lambda: stamp(host, "agent", words) >= since, deadline_s, f"{host.name} to say {words!r}")
    return stamp(host, "agent", words)
