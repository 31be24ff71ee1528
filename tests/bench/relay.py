"""One TCP stream through the relay, compared with the same WireGuard devices over UDP."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from meshray.wireguard.engines import BUNDLED, OWN
from tests.bench.figures import Figure, Measured, Target
from tests.bench.stream import BY_HAND, BY_HAND_HEAD_IP, Way, configure_by_hand, listen, require_iperf3, stream
from tests.lab.host import REPOSITORY, Host
from tests.lab.world import World

TITLE = "One TCP stream through the relay"
HOW = """
Two hosts on one switch, each with one device of meshray's engine, configured with `wg`. The worker's endpoint for the
head is in turn the head's UDP port, and the port of the relay's client on its own loopback. In the latter case every
datagram passes through that client, one TLS WebSocket, and the coordinator's relay on the head. iperf3, one stream,
worker to head, every second pair in reverse order; the ratio is that of each pair. Both hosts and iperf3 share the
cores, so the ratio also depends on the engine's speed. Therefore the table also has the processor time (user and
system) of both engines and both ends of the relay per gigabyte that leaves the tunnel. Round trips: the median of
`ping` with an interval of 10 ms, alternating in the same way, on an otherwise idle tunnel.
"""
PAIRS = 5
SECONDS = 4
LOWEST_RATIO = 0.6
MOST_ADDED_MS = 0.6
_HEAD_IP, _PORT = BY_HAND_HEAD_IP, 51999
_TICKS = os.sysconf("SC_CLK_TCK")
_PINGS = 200


def measure(report: Callable[[str], None]) -> Measured:
    """Measure pairs of streams, and pairs of round trips."""
    require_iperf3()
    if not BUNDLED.exists():
        raise RuntimeError("the engine is missing: make engine")
    with World("bench-relay") as world:
        wan = world.switch("wan", "203.0.113.0/24")
        head, worker = world.host("head", wan, "203.0.113.10"), world.host("worker", wan, "203.0.113.20")
        configure_by_hand(OWN, head, worker)
        ways = {"UDP": f"{head.address}:{_PORT}", "relay": start_relay(head, worker)}
        way = Way(BY_HAND, _HEAD_IP)
        listen(head, way)
        rates: dict[str, list[float]] = {name: [] for name in ways}
        costs: dict[str, list[float]] = {name: [] for name in ways}
        round_trips: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(PAIRS):
            report(f"pair {number + 1} of {PAIRS}")
            for name, endpoint in ways.items() if number % 2 == 0 else reversed(ways.items()):
                use(worker, endpoint)
                round_trips[name].append(round_trip(worker))
                before = Spent.so_far(head, worker)
                rates[name].append(stream(worker, way, SECONDS))
                costs[name].append(before.per_gigabyte(Spent.so_far(head, worker)))
    ratios = tuple(relay / udp for relay, udp in zip(rates["relay"], rates["UDP"], strict=True))
    expense = tuple(relay - udp for relay, udp in zip(costs["relay"], costs["UDP"], strict=True))
    added = tuple(relay - udp for relay, udp in zip(round_trips["relay"], round_trips["UDP"], strict=True))
    return Measured(
        (
            Figure("relay", "Gbit/s", tuple(rates["relay"])),
            Figure("UDP", "Gbit/s", tuple(rates["UDP"])),
            Figure("relay / UDP", "", ratios, Target(LOWEST_RATIO, at_least=True)),
            Figure("processor time, UDP", "core-s/GB", tuple(costs["UDP"])),
            Figure("processor time, added by the relay", "core-s/GB", expense),
            Figure("round trip, UDP", "ms", tuple(round_trips["UDP"])),
            Figure("round trip, added by the relay", "ms", added, Target(MOST_ADDED_MS)),
        ),
        (),
    )


@dataclass(frozen=True)
class Spent:
    """What the tunnel has spent and carried so far.

    Attributes:
        cpu_s: the user and system time of all processes of both hosts but iperf3, seconds.
        gigabytes: what left the tunnel at the head.
    """

    cpu_s: float
    gigabytes: float

    @classmethod
    def so_far(cls, head: Host, worker: Host) -> Spent:
        """Read the counters of both hosts."""
        received = int(head.path(f"/sys/class/net/{BY_HAND}/statistics/rx_bytes").read_text())
        return cls(sum(cpu_s(host) for host in (head, worker)), received / 1e9)

    def per_gigabyte(self, later: Spent) -> float:
        """Return the processor time per gigabyte from this moment to a later one."""
        return (later.cpu_s - self.cpu_s) / (later.gigabytes - self.gigabytes)


def cpu_s(host: Host) -> float:
    """Return the processor time of a host's processes but iperf3 so far, seconds."""
    total = 0
    for stat in host.path("/proc").glob("[0-9]*/stat"):
        name, _, fields = stat.read_text().rpartition(")")
        if not name.endswith("(iperf3"):
            total += sum(int(ticks) for ticks in fields.split()[11:13])
    return total / _TICKS


def start_relay(head: Host, worker: Host) -> str:
    """Start both ends; return the endpoint for the worker's WireGuard."""
    program = [sys.executable, "-m", "tests.bench.relay_ends"]
    where = f"{head.address}:{_PORT}"
    server = head.popen([*program, "server", "/tmp/relay", where], cwd=REPOSITORY)
    head.wait_until(lambda: "credential" in server.output, 20, "the coordinator")
    worker.path("/tmp/told.json").write_text(server.output.splitlines()[0])
    client = worker.popen([*program, "client", "/tmp/told.json"], cwd=REPOSITORY)
    worker.wait_until(lambda: client.output.endswith("\n"), 20, "the relay's client")
    return client.output.splitlines()[0]


def use(worker: Host, endpoint: str) -> None:
    """Use this endpoint for the tunnel; return when it is in use."""
    peer = worker.run(["wg", "show", BY_HAND, "peers"]).stdout.strip()
    worker.run(["wg", "set", BY_HAND, "peer", peer, "endpoint", endpoint])
    worker.wait_until(lambda: worker.can_reach(_HEAD_IP), 20, f"the tunnel over {endpoint}")


def round_trip(worker: Host) -> float:
    """Return the median, milliseconds."""
    shown = worker.run(["ping", "-c", str(_PINGS), "-i", "0.01", _HEAD_IP]).stdout
    return median(float(time) for time in re.findall(r"time=([0-9.]+)", shown))
