"""Handshakes pass and data does not, as with scrubbing and inspection: the tunnel switches to the relay, and back.

           switch wan 203.0.113.0/24
     ┌──────────────┴──────────────┐
   head                          scrub      a router which drops WireGuard's transport data (type 4)
203.0.113.10                 203.0.113.20
                                   │ 192.168.7.0/24
                                  node
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.lab.cluster import Cluster
from tests.lab.doctoring import ask
from tests.lab.host import Host
from tests.lab.world import World

#: The time from the first dropped data to pings that pass through the relay.
RELAYED_S = 10
#: The time if only large data is dropped: a large probe is sent every 10 s.
RELAYED_LARGE_S = 25
#: UDP is tried again after pauses that grow up to a minute.
BACK_S = 75
#: The maximum number of switches while the first packets of each connection pass.
STAYS_S = 25

#: The first byte of the payload is WireGuard's message type.
DATA = "meta l4proto udp @th,64,8 4"
OUT, IN = 'iifname "lan"', 'iifname "wan"'


@dataclass
class Net:
    world: World
    cluster: Cluster
    scrub: Host

    @property
    def head(self) -> Host:
        return self.cluster.head

    @property
    def node(self) -> Host:
        return self.world.hosts["node"]

    def join(self, *options: str) -> dict[str, Any]:
        self.node.run(["meshray", "leave", "--yes"], check=False)
        token = self.cluster.answers["head"]["token"]
        self.cluster.answers["node"] = self.cluster.meshray(self.node, "join", token, "--no-ray", *options)
        return self.cluster.answers["node"]

    def transport(self) -> str:
        nodes = self.cluster.meshray(self.node, "status", check=False)["nodes"]
        return str(next(node["path"]["transport"] for node in nodes if node["name"] == "head"))

    def passes(self) -> bool:
        """Return whether pings pass in both directions."""
        return self.node.can_reach(self.cluster.ip(self.head)) and self.head.can_reach(self.cluster.ip(self.node))

    def switches(self) -> int:
        """Return how often the node switched to the relay."""
        log = self.node.path("/var/lib/meshray/log/agent.log").read_text()
        return log.count("goes through the relay") and log.count("over UDP again")


@pytest.fixture(scope="module")
def net() -> Iterator[Net]:
    with World("test-data-eaten") as world:
        wan = world.switch("wan", "203.0.113.0/24")
        head = world.host("head", wan, "203.0.113.10")
        scrub = world.router("scrub", wan, "203.0.113.20", lan="192.168.7.0/24")
        world.host("node", scrub.lan, "192.168.7.10")
        yield Net(world, Cluster.without_ray(head, []), scrub.host)


@contextmanager
def eats(router: Host, *rules: str) -> Iterator[None]:
    """Make the router drop what matches one of these rules."""
    drops = "".join(f"{rule} drop; " for rule in rules)
    chain = f"chain eaten {{ type filter hook forward priority -10; policy accept; {drops}}}"
    router.run(["nft", "-f", "-"], stdin=f"table ip eaten {{ {chain}; }}")
    try:
        yield
    finally:
        router.run(["nft", "delete", "table", "ip", "eaten"])


@pytest.mark.parametrize("rule", [DATA, f"{OUT} {DATA}", f"{IN} {DATA}"], ids=["both directions", "out", "in"])
def test_data_that_is_dropped_from_the_start(net: Net, rule: str) -> None:
    with eats(net.scrub, rule):
        net.join()
        joined = time.monotonic()
        net.world.wait_until(net.passes, RELAYED_S, "pings to pass")
        print(f"{rule}: passed {time.monotonic() - joined:.1f} s after join returned")
        assert net.transport() == "wss"
        # It uses the relay as long as data is dropped.
        end = time.monotonic() + STAYS_S
        while time.monotonic() < end:
            assert net.transport() == "wss"
            time.sleep(1)
        assert net.passes()
    net.world.wait_until(lambda: net.transport() == "udp" and net.passes(), BACK_S, "UDP again")


@pytest.mark.parametrize(
    "rule",
    [DATA, f"{OUT} {DATA}", f"{IN} {DATA}", f"{OUT} meta l4proto udp meta length > 200"],
    ids=["both directions", "out", "in", "all but handshakes is too large"],
)
def test_data_that_is_dropped_after_a_while(net: Net, rule: str) -> None:
    net.join()
    net.world.wait_until(lambda: net.transport() == "udp" and net.passes(), 20, "UDP")
    large = ["ping", "-n", "-c", "1", "-W", "1", "-s", "1100", net.cluster.ip(net.head)]
    with eats(net.scrub, rule):
        began = time.monotonic()
        deadline_s = RELAYED_LARGE_S if "length" in rule else RELAYED_S
        net.world.wait_until(
            lambda: net.node.run(large, check=False).returncode == 0 and net.passes(), deadline_s, "pings to pass"
        )
        print(f"{rule}: passed after {time.monotonic() - began:.1f} s")
        net.world.wait_until(lambda: net.transport() == "wss", 2, "status to say so")
    net.world.wait_until(lambda: net.transport() == "udp" and net.passes(), BACK_S, "UDP again")
    end = time.monotonic() + STAYS_S
    while time.monotonic() < end:
        assert net.transport() == "udp"
        time.sleep(1)


@pytest.mark.timeout(300)
def test_the_first_packets_of_each_connection_pass(net: Net) -> None:
    # This precedes the connection: only then are its packets counted.
    net.scrub.shell("echo 1 > /proc/sys/net/netfilter/nf_conntrack_acct")
    net.join()
    net.world.wait_until(lambda: net.transport() == "udp" and net.passes(), 20, "UDP")
    with eats(net.scrub, f"{DATA} ct original packets > 40"):
        net.world.wait_until(lambda: net.transport() == "wss" and net.passes(), 60, "the relay")
        before, end = net.switches(), time.monotonic() + 90
        while time.monotonic() < end:
            time.sleep(1)
        assert net.switches() - before <= 2
    net.world.wait_until(net.passes, RELAYED_S, "pings to pass")


def test_the_doctor_reports_it_if_only_udp_is_allowed(net: Net) -> None:
    net.join("--transport", "udp")
    net.world.wait_until(net.passes, 20, "UDP")
    with eats(net.scrub, DATA):

        def named() -> bool:
            failing = ask(net.head).failing
            return bool(failing) and failing[0]["code"] == "udp_data" and failing[0]["node"] == "node"

        net.world.wait_until(named, 60, "the doctor to name it")
        first = ask(net.node).failing[0]
        assert first["code"] == "udp_data", json.dumps(first)
        assert "handshake" in first["evidence"]
        assert "--transport" in first["fix"]
    net.world.wait_until(lambda: not ask(net.head).failing, 60, "no failing check")
