"""The engine compared with other solutions: the distribution's wireguard-go, ssh -L, nebula, and no tunnel at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass

from meshray.wireguard.engines import BUNDLED
from tests.bench.figures import Figure, Measured, Target
from tests.bench.stream import BY_HAND, BY_HAND_HEAD_IP, Way, configure_by_hand, listen, stream
from tests.lab.host import Host
from tests.lab.world import World

TITLE = "The engine between two hosts"
HOW = """
Two hosts on one switch. iperf3, worker to head, one stream and four, over each kind of path in turn, every second
round in reverse order: plain veth; meshray's engine and the distribution's wireguard-go, both configured with `wg`;
nebula with its defaults; `ssh -L` with its default cipher. The ratios are those of each round. Sending, encrypting,
decrypting and receiving share the same cores.
"""
ROUNDS = 5
SECONDS = 3
STREAMS = (1, 4)
OURS, STOCK, NEBULA, SSH, PLAIN = "meshray-engine", "wireguard-go", "nebula", "ssh -L", "plain veth"
_NEBULA_IPS = ("10.88.0.1", "10.88.0.2")
_ANYTHING = "{port: any, proto: any, host: any}"
_SSH_PORT, _FORWARDED = 2222, 5555
_STOCK_DEVICE, _STOCK_IPS = "stock0", ("10.78.0.1", "10.78.0.2")


@dataclass(frozen=True)
class Path:
    """One path from the worker to the head's iperf3."""

    name: str
    way: Way


def measure(report: Callable[[str], None]) -> Measured:
    """Measure rounds over all paths."""
    missing = [name for name in ("iperf3", "wireguard-go", "sshd", "nebula") if not shutil.which(name)]
    if missing:
        raise RuntimeError(f"missing: apt-get install iperf3 wireguard-go openssh-server nebula ({', '.join(missing)})")
    if not BUNDLED.exists():
        raise RuntimeError("the engine is missing: make engine")
    with World("bench-engine") as world:
        wan = world.switch("wan", "203.0.113.0/24")
        head, worker = world.host("head", wan, "203.0.113.10"), world.host("worker", wan, "203.0.113.20")
        configure_by_hand(OURS, head, worker)
        configure_by_hand(STOCK, head, worker, device=_STOCK_DEVICE, ips=_STOCK_IPS, port=51998)
        start_nebula(head, worker)
        start_ssh(head, worker)
        paths = [
            Path(PLAIN, Way("eth0", str(head.address))),
            Path(OURS, Way(BY_HAND, BY_HAND_HEAD_IP)),
            Path(STOCK, Way(_STOCK_DEVICE, _STOCK_IPS[0])),
            Path(NEBULA, Way("nebula1", _NEBULA_IPS[0])),
        ]
        for path in paths:
            listen(head, path.way)
        # The forwarded port leads to the server on the head's own address.
        paths.append(Path(SSH, Way("lo", "127.0.0.1", _FORWARDED)))
        rates = {(path.name, count): list[float]() for path in paths for count in STREAMS}
        for number in range(ROUNDS):
            report(f"round {number + 1} of {ROUNDS}")
            for path in paths if number % 2 == 0 else reversed(paths):
                for count in STREAMS:
                    rates[path.name, count].append(stream(worker, path.way, SECONDS, streams=count))
    return Measured(tuple(_figures(rates)))


def _figures(rates: dict[tuple[str, int], list[float]]) -> list[Figure]:
    figures = []
    for count in STREAMS:
        plural = "stream" if count == 1 else "streams"
        for name in (PLAIN, OURS, STOCK, NEBULA, SSH):
            figures.append(Figure(f"{name}, {count} {plural}", "Gbit/s", tuple(rates[name, count])))
        ours = rates[OURS, count]
        for name in (STOCK, NEBULA, SSH, PLAIN):
            ratios = tuple(mine / theirs for mine, theirs in zip(ours, rates[name, count], strict=True))
            # The goal is to be faster than the usual combinations of other tools.
            target = Target(1.0, at_least=True) if name == SSH else None
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
