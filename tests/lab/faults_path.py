"""Faults between a node and the coordinator, and between nodes, with their networks.

                    switch wan 203.0.113.0/24
         ┌───────────────────┬───────────────────┐
       isp (.9)          near-nat (.20)      far-nat (.30)     home routers: nothing new comes in
         │ .12/30            │ 192.168.7.0/24    │ 192.168.8.0/24
       head (.14)          near                far             both with --transport udp
       coordinator, hub                        HTTPS_PROXY: tinyproxy on far-nat

Nearly all faults are on the routers, like those of a provider or a company; none is in the nodes' own firewalls.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.lab.cluster import Cluster
from tests.lab.faults import Fault
from tests.lab.host import Host, HostProcess
from tests.lab.proxy import Proxy
from tests.lab.world import Router, World

#: Web servers with TLS only: the destinations that the proxy allows.
PORT = 443
_TRAP_PORT = 8443
_STATE = "/var/lib/meshray"

#: Every client gets TLS with a certificate of "Inspection Box".
_INTERCEPT = """
import datetime, pathlib, socket, ssl, sys
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
key = ec.generate_private_key(ec.SECP256R1())
name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Inspection Box")])
now, day = datetime.datetime.now(datetime.timezone.utc), datetime.timedelta(days=1)
certificate = (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    .serial_number(1).not_valid_before(now).not_valid_after(now + day).sign(key, hashes.SHA256()))
pathlib.Path("/tmp/box.pem").write_bytes(
    key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    + certificate.public_bytes(serialization.Encoding.PEM))
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/tmp/box.pem")
server = socket.create_server(("0.0.0.0", int(sys.argv[1])))
while True:
    caller, _ = server.accept()
    try:
        caller.settimeout(2)
        context.wrap_socket(caller, server_side=True).recv(100)
    except OSError:
        pass
    caller.close()
"""
#: Answers every request with one text.
_ANSWER = """
import socket, sys
server = socket.create_server(("0.0.0.0", int(sys.argv[1])))
while True:
    caller, _ = server.accept()
    try:
        caller.settimeout(2)
        caller.recv(1000)
        caller.sendall(sys.argv[2].encode())
    except OSError:
        pass
    caller.close()
"""
_LOGIN = "HTTP/1.1 302 Found\r\nLocation: http://login.example/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_SSH = "SSH-2.0-OpenSSH_9.2\r\n"


@dataclass
class Stage:
    """The networks and the mesh; see the module's docstring. ``running``: servers started by a fault, by name."""

    world: World
    cluster: Cluster
    isp: Host
    near: Router
    far: Router
    proxy: Proxy
    running: dict[str, HostProcess] = field(default_factory=dict)

    @classmethod
    def build(cls, world: World) -> Stage:
        """Create the networks and a mesh without Ray."""
        wan = world.switch("wan", "203.0.113.0/24")
        line = world.line("isp", wan, "203.0.113.9", inside="203.0.113.12/30", mtu=1500)
        head = world.host("head", line, "203.0.113.14")
        near_nat = world.router("near-nat", wan, "203.0.113.20", lan="192.168.7.0/24")
        far_nat = world.router("far-nat", wan, "203.0.113.30", lan="192.168.8.0/24")
        near = world.host("near", near_nat.lan, "192.168.7.10")
        far = world.host("far", far_nat.lan, "192.168.8.10")
        proxy = Proxy(far_nat.host, str(far_nat.lan.gateway))
        proxy.start()
        far.environment.update(proxy.environment)
        # One after the other, so that each has the same address in every run.
        cluster = Cluster.without_ray(head, [near], init=["--port", str(PORT)], join=["--transport", "udp"])
        join = [cluster.answers["head"]["token"], "--no-ray", "--transport", "udp"]
        cluster.answers["far"] = cluster.meshray(far, "join", *join)
        cluster.workers = (near, far)
        return cls(world, cluster, world.hosts["isp"], near_nat, far_nat, proxy)

    def doctor(self, host: str) -> dict[str, Any]:
        """Return the answer of `meshray doctor --json` there."""
        return self.cluster.meshray(self.world.hosts[host], "doctor", check=False)

    def first_fail(self, host: str) -> dict[str, Any]:
        """Return the first failed check there; empty if none failed."""
        return next((check for check in self.doctor(host)["checks"] if check["status"] == "fail"), {})

    def start(self, host: Host, name: str, code: str, *arguments: str) -> None:
        """Start a small server in Python; return when it listens on the port that is its first argument."""
        self.running[name] = host.popen([sys.executable, "-c", code, *arguments], name=name)
        host.wait_until(lambda: f":{arguments[0]} " in host.run(["ss", "-tln"]).stdout, 10, name)

    def stop(self, name: str) -> None:
        """Stop it, if it was started."""
        process = self.running.pop(name, None)
        if process is not None:
            process.stop()


Act = Callable[[Stage], None]


def _table(host: Host, chain: str, rule: str) -> None:
    rules = f"table ip fault {{ chain fault {{ type {chain}; policy accept; {rule}; }}; }}"
    host.run(["nft", "-f", "-"], stdin=rules)


def _drops(where: Callable[[Stage], Host], rule: str) -> tuple[Act, Act]:
    """Make a router drop what it should forward."""
    return _ruled(where, "filter hook forward priority -10", f"{rule} drop")


def _ruled(where: Callable[[Stage], Host], chain: str, rule: str) -> tuple[Act, Act]:
    def inject(stage: Stage) -> None:
        _table(where(stage), chain, rule)

    def heal(stage: Stage) -> None:
        where(stage).run(["nft", "delete", "table", "ip", "fault"], check=False)

    return inject, heal


def _trapped(code: str, *arguments: str) -> tuple[Act, Act]:
    """Make the router near let another server answer for the coordinator."""
    inject_rule, heal_rule = _ruled(
        _near, "nat hook prerouting priority dstnat", f'iifname "lan" tcp dport {PORT} redirect to :{_TRAP_PORT}'
    )

    def inject(stage: Stage) -> None:
        stage.start(stage.near.host, "trap", code, str(_TRAP_PORT), *arguments)
        inject_rule(stage)

    def heal(stage: Stage) -> None:
        heal_rule(stage)
        stage.stop("trap")

    return inject, heal


def _near(stage: Stage) -> Host:
    return stage.near.host


def _far(stage: Stage) -> Host:
    return stage.far.host


def _isp(stage: Stage) -> Host:
    return stage.isp


def _signal_coordinator(number: int) -> Act:
    def act(stage: Stage) -> None:
        head = stage.cluster.head
        for pid in head.run(["pgrep", "-f", "meshray.coordinator"]).stdout.split():
            head.run(["kill", f"-{number}", pid])

    return act


def _other_certificate(stage: Stage) -> None:
    head = stage.cluster.head
    code = (
        "import pathlib, sys; from meshray.coordinator.certificate import make_certificate; "
        f"home = pathlib.Path('{_STATE}'); certificate, key = make_certificate(); "
        "(home / 'coordinator.crt').write_text(certificate); (home / 'coordinator.key').write_text(key)"
    )
    head.shell(f"cd {_STATE} && cp -p coordinator.crt kept.crt && cp -p coordinator.key kept.key")
    head.run([sys.executable, "-c", code])
    _restart_coordinator(stage)


def _first_certificate(stage: Stage) -> None:
    stage.cluster.head.shell(f"cd {_STATE} && mv kept.crt coordinator.crt && mv kept.key coordinator.key")
    _restart_coordinator(stage)
    # A node that first found it through the overlay continues through the internet: the next faults need that.
    near, own = stage.world.hosts["near"], f"{stage.cluster.head.address}:{PORT}"
    near.wait_until(lambda: own in near.run(["ss", "-tnH", "state", "established"]).stdout, 30, "the link outside")


def _restart_coordinator(stage: Stage) -> None:
    head = stage.cluster.head
    before = head.run(["pgrep", "-f", "meshray.coordinator"]).stdout
    _signal_coordinator(signal.SIGKILL)(stage)
    head.wait_until(
        lambda: (
            head.run(["pgrep", "-f", "meshray.coordinator"], check=False).stdout not in ("", before)
            and f":{PORT} " in head.run(["ss", "-tln"]).stdout
        ),
        20,
        "the coordinator",
    )


def _no_proxy(stage: Stage) -> None:
    stage.proxy.stop()


def _proxy_again(stage: Stage) -> None:
    stage.stop("no-proxy")
    stage.proxy.start()


def _other_password(stage: Stage) -> None:
    stage.proxy.stop()
    stage.proxy.start(password="babbage")


def _first_password(stage: Stage) -> None:
    stage.proxy.stop()
    stage.proxy.start()


def _garbage(stage: Stage) -> None:
    stage.proxy.stop()
    stage.start(_far(stage), "no-proxy", _ANSWER, "8888", _SSH)


def _remove_far(stage: Stage) -> None:
    far = stage.world.hosts["far"]
    stage.cluster.head.run(["meshray", "node", "rm", "far", "--yes"])
    far.wait_until(lambda: far.run(["meshray", "status"], check=False).returncode == 4, 10, "the agent's end")


def _join_far_again(stage: Stage) -> None:
    far = stage.world.hosts["far"]
    far.run(["meshray", "leave", "--yes"])
    token = stage.cluster.answers["head"]["token"]
    stage.cluster.meshray(far, "join", token, "--no-ray", "--transport", "udp")


def _inner_one_way() -> tuple[Act, Act]:
    """Lose the head's packets to near through the overlay, but not those in the other direction."""

    def inject(stage: Stage) -> None:
        status = stage.cluster.meshray(stage.cluster.head, "status", check=False)
        near = next(node["ip"] for node in status["nodes"] if node["name"] == "near")
        rule = f'oifname "meshray0" ip daddr {near} drop'
        _table(stage.cluster.head, "filter hook output priority raw", rule)

    def heal(stage: Stage) -> None:
        stage.cluster.head.run(["nft", "delete", "table", "ip", "fault"], check=False)

    return inject, heal


def _on(where: Callable[[Stage], Host], inject: str, heal: str) -> tuple[Act, Act]:
    """Break and repair something with shell commands on a host."""

    def act(text: str) -> Act:
        def run(stage: Stage) -> None:
            where(stage).shell(text)

        return run

    return act(inject), act(heal)


def _shells(where: str, inject: str, heal: str) -> tuple[Act, Act]:
    """Break and repair something with shell commands on a host of the mesh."""
    return _on(lambda stage: stage.world.hosts[where], inject, heal)


#: The outer addresses of the head and of the router near.
_HEAD, _NEAR_NAT = "203.0.113.14", "203.0.113.20"
_BAN = "nft 'add table ip bans; add chain ip bans c {{ type filter hook input priority -1; }}; {}'"


def _path(name: str, acts: tuple[Act, Act], code: str, node: str, asked: str = "") -> Fault[Stage]:
    return Fault(name, "path", *acts, code=code, node=node, asked=asked)


def _control(name: str, acts: tuple[Act, Act], code: str, node: str, asked: str = "") -> Fault[Stage]:
    return Fault(name, "control", *acts, code=code, node=node, asked=asked)


FAULTS: tuple[Fault[Stage], ...] = (
    _control("tcp-dropped-upstream", _drops(_isp, f'oifname "lan" tcp dport {PORT}'), "coordinator_tcp", "near"),
    _control(
        "coordinator-frozen",
        (_signal_coordinator(signal.SIGSTOP), _signal_coordinator(signal.SIGCONT)),
        "coordinator_tcp",
        "near",
    ),
    _control("tls-intercepted", _trapped(_INTERCEPT), "certificate_pin", "near"),
    _control("captive-portal", _trapped(_ANSWER, _LOGIN), "captive_portal", "near"),
    _control("no-tls", _trapped(_ANSWER, _SSH), "coordinator_tcp", "near"),
    _control("proxy-away", (_no_proxy, _proxy_again), "proxy_works", "far"),
    _control("proxy-407", (_other_password, _first_password), "proxy_works", "far"),
    _control("proxy-garbage", (_garbage, _proxy_again), "proxy_works", "far"),
    _control("certificate-replaced", (_other_certificate, _first_certificate), "certificate_pin", "near"),
    _control("credential-removed", (_remove_far, _join_far_again), "credential", "far"),
    _control(
        "router-rejects-tcp",
        _ruled(_near, "filter hook forward priority -10", f'iifname "lan" tcp dport {PORT} reject with tcp reset'),
        "coordinator_tcp",
        "near",
    ),
    _control(
        "route-into-the-tunnel",
        _shells("near", f"ip route add {_HEAD} dev meshray0", f"ip route del {_HEAD} dev meshray0"),
        "outer_addresses",
        "near",
    ),
    _control(
        "blackhole-for-the-head",
        _shells("near", f"ip route add blackhole {_HEAD}", f"ip route del blackhole {_HEAD}"),
        "outer_addresses",
        "near",
    ),
    _control(
        "own-rule-diverts",
        _shells(
            "near",
            "nft 'add table ip proxy; add chain ip proxy c { type nat hook output priority -100; }; "
            f"add rule ip proxy c ip daddr {_HEAD} tcp dport {PORT} redirect to :9'",
            "nft delete table ip proxy",
        ),
        "outer_addresses",
        "near",
    ),
    _control(
        "head-bans-one-address",
        _shells("head", _BAN.format(f"add rule ip bans c ip saddr {_NEAR_NAT} drop"), "nft delete table ip bans"),
        "outer_addresses",
        "near",
        "head",
    ),
    _control(
        "head-bans-by-a-set",
        _shells(
            "head",
            _BAN.format(
                f"add set ip bans bad {{ type ipv4_addr; elements = {{ 198.51.100.9, {_NEAR_NAT} }}; }}; "
                "add rule ip bans c ip saddr @bad reject"
            ),
            "nft delete table ip bans",
        ),
        "outer_addresses",
        "near",
        "head",
    ),
    _path("udp-out-blocked", _drops(_near, 'iifname "lan" meta l4proto udp'), "udp_out", "near"),
    _path("udp-answers-blocked", _drops(_near, 'iifname "wan" meta l4proto udp'), "udp_out", "near", "head"),
    _path("udp-in-blocked-upstream", _drops(_isp, f'oifname "lan" udp dport {PORT}'), "udp_in", "head"),
    _path("one-way-inside", _inner_one_way(), "one_way", "near", "head"),
    _path("a-third-lost", _drops(_near, "meta l4proto udp numgen inc mod 10 < 3"), "path_loss", "near", "head"),
    # The near node's outgoing direction: a line of 64 kbit/s with a long buffer.
    _path(
        "slow-line",
        _on(_near, "tc qdisc add dev wan root tbf rate 64kbit burst 1600 limit 65536", "tc qdisc del dev wan root"),
        "path_rate",
        "near",
    ),
    _path("large-packets-eaten", _drops(_near, "meta l4proto udp meta length > 1228"), "path_mtu", "near", "head"),
)
