"""One TCP stream through the tunnel, compared with the same engine configured by hand."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from meshray.wireguard.engines import STOCK, find_engine
from tests.bench.figures import Figure, Measured, Target
from tests.lab.cluster import Cluster
from tests.lab.host import REPOSITORY, USER, Host
from tests.lab.world import World

TITLE = "One TCP stream through the tunnel"
HOW = """
iperf3, one stream, worker to head, between two hosts on one switch: over meshray's overlay, and over a second device
of the same engine on the same hosts, configured with `wg` and `ip` as in WireGuard's quick start. The two take turns,
every second pair in reverse order; the ratio is that of each pair. Ray does not run.
"""
PAIRS = 5
SECONDS = 4
LOWEST_RATIO = 0.97
MESHRAY, BY_HAND = "meshray0", "byhand0"
_BY_HAND_IPS = ("10.77.0.1", "10.77.0.2")
BY_HAND_HEAD_IP = _BY_HAND_IPS[0]
_BY_HAND_PORT = 51999
_IPERF_PORT = 5201


@dataclass(frozen=True)
class Way:
    """One path to the head: its address there."""

    interface: str
    head_ip: str
    port: int = _IPERF_PORT


def measure(report: Callable[[str], None]) -> Measured:
    """Measure pairs of streams."""
    require_iperf3()
    with World("bench-stream") as world:
        wan = world.switch("wan", "203.0.113.0/24")
        head, worker = world.host("head", wan, "203.0.113.10"), world.host("worker", wan, "203.0.113.20")
        cluster = Cluster(head, (worker,))
        answer = cluster.meshray(head, "init", "--no-ray")
        cluster.meshray(worker, "join", answer["token"], "--no-ray")
        engine = engine_of(head)
        configure_by_hand(engine, head, worker)
        ways = [Way(MESHRAY, answer["node"]["ip"]), Way(BY_HAND, _BY_HAND_IPS[0])]
        for way in ways:
            listen(head, way)
            stream(worker, way, 1)
        rates: dict[str, list[float]] = {way.interface: [] for way in ways}
        for number in range(PAIRS):
            report(f"pair {number + 1} of {PAIRS}")
            for way in ways if number % 2 == 0 else reversed(ways):
                rates[way.interface].append(stream(worker, way, SECONDS))
        mtus = {way.interface: head.shell(f"cat /sys/class/net/{way.interface}/mtu").stdout.strip() for way in ways}
    ratios = tuple(ours / by_hand for ours, by_hand in zip(rates[MESHRAY], rates[BY_HAND], strict=True))
    return Measured(
        (
            Figure("meshray", "Gbit/s", tuple(rates[MESHRAY])),
            Figure("by hand", "Gbit/s", tuple(rates[BY_HAND])),
            Figure("meshray / by hand", "", ratios, Target(LOWEST_RATIO, at_least=True)),
        ),
        (f"Engine: {engine}. MTU: meshray {mtus[MESHRAY]}, by hand {mtus[BY_HAND]} (the engine's own default).",),
    )


def require_iperf3() -> None:
    """Raise RuntimeError if it is not installed."""
    if not shutil.which("iperf3"):
        raise RuntimeError("iperf3 is missing: apt-get install iperf3")


def engine_of(host: Host) -> str:
    """Return the engine that meshray chose here."""
    (link,) = host.run(["ip", "-json", "-details", "link", "show", MESHRAY]).json()
    return "kernel" if link.get("linkinfo", {}).get("info_kind") == "wireguard" else find_engine(os.environ).name


def configure_by_hand(
    engine: str,
    head: Host,
    worker: Host,
    *,
    device: str = BY_HAND,
    ips: tuple[str, str] = _BY_HAND_IPS,
    port: int = _BY_HAND_PORT,
    options: Sequence[str] = (),
    command: Sequence[str | Path] = (),
) -> None:
    """Configure the tunnel as a user would.

    Args:
        engine: the name for messages; "kernel" and wireguard-go are started by it, unless there is a `command`.
        options: those of meshray-engine.
        command: starts another engine; the interface's name is added to it.
    """
    hosts, keys, public = (head, worker), [], []
    for host in hosts:
        if engine == "kernel":
            host.run(["ip", "link", "add", device, "type", "wireguard"])
        else:
            by_hand = [sys.executable, "-m", "tests.bench.by_hand", device, *options]
            if command or engine == STOCK:
                host.popen([*(command or (engine, "-f")), device], cwd=REPOSITORY)
            else:
                host.popen(by_hand, cwd=REPOSITORY)
            shows = ["wg", "show", device]
            host.wait_until(lambda: host.run(shows, check=False).returncode == 0, 10, engine)  # noqa: B023
        keys.append(host.run(["wg", "genkey"]).stdout)
        public.append(host.run(["wg", "pubkey"], stdin=keys[-1]).stdout.strip())
    for place, host in enumerate(hosts):
        other = hosts[1 - place]
        settings = ["wg", "set", device, "listen-port", str(port), "private-key", "/dev/stdin"]
        settings += ["peer", public[1 - place], "allowed-ips", f"{ips[1 - place]}/32"]
        host.run([*settings, "endpoint", f"{other.address}:{port}"], stdin=keys[place])
        host.run(["ip", "address", "add", f"{ips[place]}/24", "dev", device])
        host.run(["ip", "link", "set", device, "mtu", "1420", "up"])


def listen(head: Host, way: Way) -> None:
    """Start an iperf3 server at the head's end of this tunnel."""
    head.popen(["iperf3", "--server", "--bind", way.head_ip, "--port", str(_IPERF_PORT)])
    listening = ["ss", "-Htln", "src", f"{way.head_ip}:{_IPERF_PORT}"]
    head.wait_until(lambda: head.run(listening).stdout, 10, "iperf3")


def stream(
    worker: Host, way: Way, seconds: int, *, streams: int = 1, from_head: bool = False, inside: Sequence[str] = ()
) -> float:
    """Return the received rate, Gbit/s. The first second (slow start) is not counted.

    Args:
        from_head: the head sends, and the worker receives.
        inside: the prefix that enters the namespaces of the worker's node without root.
    """
    command = ["iperf3", "--client", way.head_ip, "--port", str(way.port), "--time", str(seconds), "--omit", "1"]
    command += ["--parallel", str(streams), "--json", *(["--reverse"] if from_head else [])]
    user = USER if inside else "root"
    answer = worker.run([*inside, *command], user=user, deadline_s=seconds + 20).json()
    return float(answer["end"]["sum_received"]["bits_per_second"]) / 1e9
