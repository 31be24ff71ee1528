"""The engine compared with other engines, nebula, ssh -L, and no tunnel at all."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from meshray.wireguard.engines import BUNDLED
from tests.bench import tailscale
from tests.bench.figures import Figure, Measured, Target
from tests.bench.other_engines import BORINGTUN, COMMANDS, CURRENT, TAILSCALE, build_missing, versions
from tests.bench.relay import cpu_s
from tests.bench.stream import BY_HAND, BY_HAND_HEAD_IP, Way, configure_by_hand, listen, stream
from tests.go_programs import CACHE
from tests.lab.host import CommandError, Host
from tests.lab.waiting import DeadlineError
from tests.lab.world import World

TITLE = "The engine between two hosts"
HOW = """
Two hosts on one switch. iperf3, worker to head, one stream and four, over each kind of path in turn, every second round
in reverse order: plain veth; meshray's engine with the data path of its choice and with the parallel one, the
distribution's wireguard-go, the current one without patches, and boringtun, all configured with `wg` (MTU 1420);
tailscaled and nebula with their defaults (tailscaled: MTU 1280); `ssh -L` with its default cipher, which is
WireGuard's. tailscaled is coordinated by Tailscale's own test server; its path is direct UDP. The ratios are those of
each round. Sending, encrypting, decrypting and receiving share the same cores. Processor time is that of all processes
of both hosts but iperf3, for what the tunnel carried. Memory is resident: of the engine that has more of the two,
before and after all streams. Round trips are the averages of pings beside streams.
"""
ROUNDS = 5
SECONDS = 3
STREAMS = (1, 4)
OURS, STOCK, NEBULA, SSH, PLAIN = "meshray-engine", "wireguard-go", "nebula", "ssh -L", "plain veth"
_NEBULA_IPS = ("10.88.0.1", "10.88.0.2")
_ANYTHING = "{port: any, proto: any, host: any}"
_SSH_PORT, _FORWARDED = 2222, 5555
_STOCK_DEVICE, _STOCK_IPS = "stock0", ("10.78.0.1", "10.78.0.2")
PARALLEL = f"{OURS}, parallel"
_PARALLEL_DEVICE, _PARALLEL_IPS = "parallel0", ("10.79.0.1", "10.79.0.2")
_CURRENT_DEVICE, _CURRENT_IPS = "current0", ("10.80.0.1", "10.80.0.2")
_BORINGTUN_DEVICE, _BORINGTUN_IPS = "boring0", ("10.81.0.1", "10.81.0.2")
#: The engines by the text that tells their command line from others.
_ENGINES = {
    OURS: f"/{BY_HAND}.sock",
    PARALLEL: f"/{_PARALLEL_DEVICE}.sock",
    STOCK: _STOCK_DEVICE,
    CURRENT: _CURRENT_DEVICE,
    BORINGTUN: _BORINGTUN_DEVICE,
    TAILSCALE: tailscale.COMMAND_LINE,
}
#: In the order of the tables.
_NAMES = (PLAIN, OURS, PARALLEL, STOCK, CURRENT, BORINGTUN, TAILSCALE, NEBULA, SSH)
#: The lowest ratio to `ssh -L` by the number of streams.
LOWEST_TO_SSH = {1: 0.95, 4: 1.1}
#: The lowest ratios to other engines, whatever the number of streams.
LOWEST_TO = {TAILSCALE: 1.6, CURRENT: 1.4}
_REASON_CHARACTERS = 200
MOST_IDLE_MB, MOST_LOADED_MB, MOST_RTT_MS = 24, 64, 3


@dataclass(frozen=True)
class Path:
    """One path from the worker to the head's iperf3.

    Attributes:
        counter: the interface of the head that counts what arrives.
    """

    name: str
    way: Way
    counter: str


def measure(report: Callable[[str], None]) -> Measured:
    """Measure rounds over all paths."""
    missing = [name for name in ("iperf3", "wireguard-go", "sshd") if not shutil.which(name)]
    if missing:
        raise RuntimeError(f"missing: apt-get install iperf3 wireguard-go openssh-server ({', '.join(missing)})")
    if not BUNDLED.exists():
        raise RuntimeError("the engine is missing: make engine")
    not_measured = build_missing(report)
    with World("bench-engine", keep=[CACHE]) as world:
        wan = world.switch("wan", "203.0.113.0/24")
        head, worker = world.host("head", wan, "203.0.113.10"), world.host("worker", wan, "203.0.113.20")
        configure_by_hand(OURS, head, worker)
        configure_by_hand(STOCK, head, worker, device=_STOCK_DEVICE, ips=_STOCK_IPS, port=51998)
        parallel = ("-data-path", "parallel")
        configure_by_hand(OURS, head, worker, device=_PARALLEL_DEVICE, ips=_PARALLEL_IPS, port=51997, options=parallel)
        start_ssh(head, worker)
        paths = [
            Path(PLAIN, Way("eth0", str(head.address)), "eth0"),
            Path(OURS, Way(BY_HAND, BY_HAND_HEAD_IP), BY_HAND),
            Path(PARALLEL, Way(_PARALLEL_DEVICE, _PARALLEL_IPS[0]), _PARALLEL_DEVICE),
            Path(STOCK, Way(_STOCK_DEVICE, _STOCK_IPS[0]), _STOCK_DEVICE),
            *start_others(head, worker, not_measured),
        ]
        for path in paths:
            listen(head, path.way)
        # The forwarded port leads to the server on the head's own address.
        paths.append(Path(SSH, Way("lo", "127.0.0.1", _FORWARDED), "eth0"))
        rates = {(path.name, count): list[float]() for path in paths for count in STREAMS}
        costs = {(path.name, count): list[float]() for path in paths for count in STREAMS}
        round_trips = list[float]()
        engines = {name: text for name, text in _ENGINES.items() if name not in not_measured}
        idle = {name: resident_mb((head, worker), text) for name, text in engines.items()}
        for number in range(ROUNDS):
            report(f"round {number + 1} of {ROUNDS}")
            for path in paths if number % 2 == 0 else reversed(paths):
                for count in STREAMS:
                    before = Spent.so_far(path, head, worker)
                    ping = worker.popen(["ping", "-q", "-i", "0.1", "-w", str(SECONDS), path.way.head_ip])
                    rates[path.name, count].append(stream(worker, path.way, SECONDS, streams=count))
                    costs[path.name, count].append(before.per_gigabyte(Spent.so_far(path, head, worker)))
                    found = re.search(r"= [\d.]+/([\d.]+)/", ping.output)
                    if path.name == OURS and found:
                        round_trips.append(float(found[1]))
        loaded = {name: resident_mb((head, worker), text) for name, text in engines.items()}
        if TAILSCALE not in not_measured:
            tailscale.require_direct(head, worker)
    figures = [*_figures(rates), *_cost_figures(costs), *_memory_figures(idle, loaded)]
    figures.append(Figure(f"{OURS}, round trip beside a stream", "ms", tuple(round_trips), Target(MOST_RTT_MS)))
    notes = [
        f"Built for comparison: {versions()}.",
        *(f"Not measured: {name}: {why}." for name, why in not_measured.items()),
    ]
    return Measured(tuple(figures), tuple(notes))


def start_others(head: Host, worker: Host, not_measured: dict[str, str]) -> Iterator[Path]:
    """Start the engines that are not always there, and yield the path over each; add why one cannot be measured."""
    for name, start in ((CURRENT, _start_current), (BORINGTUN, _start_boringtun), (TAILSCALE, _start_tailscale)):
        if name in not_measured:
            continue
        try:
            path = start(head, worker)
        except (CommandError, DeadlineError, RuntimeError) as error:
            not_measured[name] = f"it did not start: {str(error).partition(chr(10))[0][:_REASON_CHARACTERS]}"
        else:
            yield path
    if shutil.which("nebula"):
        start_nebula(head, worker)
        yield Path(NEBULA, Way("nebula1", _NEBULA_IPS[0]), "nebula1")
    else:
        not_measured[NEBULA] = "it is not installed"


def _start_current(head: Host, worker: Host) -> Path:
    device, ips = _CURRENT_DEVICE, _CURRENT_IPS
    configure_by_hand(CURRENT, head, worker, device=device, ips=ips, port=51996, command=COMMANDS[CURRENT])
    return Path(CURRENT, Way(device, ips[0]), device)


def _start_boringtun(head: Host, worker: Host) -> Path:
    device, ips = _BORINGTUN_DEVICE, _BORINGTUN_IPS
    configure_by_hand(BORINGTUN, head, worker, device=device, ips=ips, port=51995, command=COMMANDS[BORINGTUN])
    return Path(BORINGTUN, Way(device, ips[0]), device)


def _start_tailscale(head: Host, worker: Host) -> Path:
    return Path(TAILSCALE, Way(tailscale.DEVICE, tailscale.start(head, worker)), tailscale.DEVICE)


@dataclass(frozen=True)
class Spent:
    """What a path has spent and carried so far: seconds of processor time of both hosts, and gigabytes."""

    seconds: float
    gigabytes: float

    @classmethod
    def so_far(cls, path: Path, head: Host, worker: Host) -> Spent:
        """Read the counters of both hosts."""
        received = int(head.path(f"/sys/class/net/{path.counter}/statistics/rx_bytes").read_text())
        return cls(cpu_s(head) + cpu_s(worker), received / 1e9)

    def per_gigabyte(self, later: Spent) -> float:
        """Return the processor time per gigabyte from this moment to a later one."""
        return (later.seconds - self.seconds) / (later.gigabytes - self.gigabytes)


def resident_mb(hosts: tuple[Host, ...], text: str) -> float:
    """Return the resident memory of the largest engine whose command line contains this text, MB."""
    found = []
    for host in hosts:
        for process in host.path("/proc").glob("[0-9]*"):
            if text.encode() in (process / "cmdline").read_bytes():
                resident = re.search(r"^VmRSS:\s+(\d+) kB", (process / "status").read_text(), re.MULTILINE)
                found.append(int(resident[1]) * 1024 / 1e6 if resident else 0.0)
    return max(found)


def _cost_figures(costs: dict[tuple[str, int], list[float]]) -> Iterator[Figure]:
    for count in STREAMS:
        for name in (name for name in _NAMES if name not in (PLAIN, NEBULA) and (name, count) in costs):
            what = f"processor time, {name}, {count} stream{'s' if count > 1 else ''}"
            yield Figure(what, "core-s/GB", tuple(costs[name, count]))


def _memory_figures(idle: dict[str, float], loaded: dict[str, float]) -> Iterator[Figure]:
    for name, before in idle.items():
        limits = (Target(MOST_IDLE_MB), Target(MOST_LOADED_MB)) if name == OURS else (None, None)
        yield Figure(f"memory, {name}, before", "MB", (before,), limits[0])
        yield Figure(f"memory, {name}, after", "MB", (loaded[name],), limits[1])


def _figures(rates: dict[tuple[str, int], list[float]]) -> list[Figure]:
    figures = []
    for count in STREAMS:
        plural = "stream" if count == 1 else "streams"
        for name in (name for name in _NAMES if (name, count) in rates):
            figures.append(Figure(f"{name}, {count} {plural}", "Gbit/s", tuple(rates[name, count])))
        ours = rates[OURS, count]
        for name in (name for name in (*_NAMES[2:], PLAIN) if (name, count) in rates):
            ratios = tuple(mine / theirs for mine, theirs in zip(ours, rates[name, count], strict=True))
            lowest = LOWEST_TO_SSH[count] if name == SSH else LOWEST_TO.get(name)
            target = Target(lowest, at_least=True) if lowest else None
            figures.append(Figure(f"{OURS} / {name}, {count} {plural}", "", ratios, target))
    return figures


def start_nebula(head: Host, worker: Host) -> None:
    """Start nebula: the head is the lighthouse, and the worker knows its address."""
    head.run(["nebula-cert", "ca", "-name", "bench"], cwd="/tmp")
    for host, ip in zip((head, worker), _NEBULA_IPS, strict=True):
        head.run(["nebula-cert", "sign", "-name", host.name, "-ip", f"{ip}/24"], cwd="/tmp")
        host.path("/tmp/nebula").mkdir()
        for file, kept in (("ca.crt", "ca.crt"), (f"{host.name}.crt", "host.crt"), (f"{host.name}.key", "host.key")):
            host.path(f"/tmp/nebula/{kept}").write_bytes(head.path(f"/tmp/{file}").read_bytes())
        is_head = host is head
        host.path("/tmp/nebula/config.yml").write_text(
            "pki: {ca: /tmp/nebula/ca.crt, cert: /tmp/nebula/host.crt, key: /tmp/nebula/host.key}\n"
            f"static_host_map: {{'{_NEBULA_IPS[0]}': ['{head.address}:4242']}}\n"
            f"lighthouse: {{am_lighthouse: {str(is_head).lower()}, hosts: [{'' if is_head else _NEBULA_IPS[0]}]}}\n"
            "listen: {host: 0.0.0.0, port: 4242}\ntun: {dev: nebula1}\n"
            f"firewall: {{outbound: [{_ANYTHING}], inbound: [{_ANYTHING}]}}\n"
        )
        host.popen(["nebula", "-config", "/tmp/nebula/config.yml"])
    worker.wait_until(lambda: worker.can_reach(_NEBULA_IPS[0]), 20, "nebula's tunnel")


def start_ssh(head: Host, worker: Host) -> None:
    """Start `ssh -L` from the worker to the head's iperf3."""
    worker.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/root/id"])
    head.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/root/host"])
    head.path("/root/authorized_keys").write_bytes(worker.path("/root/id.pub").read_bytes())
    head.run(["mkdir", "-p", "/run/sshd"])
    sshd = ["/usr/sbin/sshd", "-D", "-f", "/dev/null", "-p", str(_SSH_PORT), "-h", "/root/host"]
    head.popen([*sshd, "-o", "AuthorizedKeysFile=/root/authorized_keys", "-o", "StrictModes=no"])
    head.wait_until(lambda: head.run(["ss", "-Htln", "sport", "=", str(_SSH_PORT)]).stdout, 10, "sshd")
    options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-i", "/root/id"]
    target = f"{_FORWARDED}:{head.address}:5201"
    worker.popen(["ssh", "-N", "-L", target, "-p", str(_SSH_PORT), *options, f"root@{head.address}"])
    worker.wait_until(lambda: worker.run(["ss", "-Htln", "sport", "=", str(_FORWARDED)]).stdout, 20, "ssh -L")
