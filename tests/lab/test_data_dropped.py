"""Handshakes pass and data does not, as with scrubbing and inspection: the tunnel switches to the relay, and back.

           switch wan 203.0.113.0/24
     ┌──────────────┴──────────────┬ …
   head                         scrub-1     a router which drops WireGuard's transport data (type 4)
203.0.113.10                 203.0.113.21
                                   │ 192.168.1.0/24
                                 node-1     …, a node for each rule
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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
#: The time during which it must not switch again.
STAYS_S = 25

#: The first byte of the payload is WireGuard's message type.
DATA = "meta l4proto udp @th,64,8 4"
OUT, IN = 'iifname "lan"', 'iifname "wan"'
#: What the routers drop: data in both directions, one of them, or all that is larger than a handshake.
FROM_THE_START = (DATA, f"{OUT} {DATA}", f"{IN} {DATA}")
LATER = (*FROM_THE_START, f"{OUT} meta l4proto udp meta length > 200")


@dataclass
class Place:
    """A node, and the router before it that drops what `eats` names."""

    world: World
    cluster: Cluster
    scrub: Host
    node: Host

    @property
    def head(self) -> Host:
        return self.cluster.head

    def join(self, *options: str) -> dict[str, Any]:
        self.node.run(["meshray", "leave", "--yes"], check=False)
        token = self.cluster.answers["head"]["token"]
        answer = self.cluster.meshray(self.node, "join", token, "--no-ray", *options)
        self.cluster.answers[self.node.name] = answer
        return answer

    def transport(self) -> str:
        nodes = self.cluster.meshray(self.node, "status", check=False)["nodes"]
        return str(next(node["path"]["transport"] for node in nodes if node["name"] == "head"))

    def passes(self) -> bool:
        """Return whether pings pass in both directions."""
        return self.node.can_reach(self.cluster.ip(self.head)) and self.head.can_reach(self.cluster.ip(self.node))

    def is_over(self, transport: str) -> bool:
        """Return whether pings pass, and over this transport. The quick question comes first."""
        return self.passes() and self.transport() == transport

    def switches(self) -> tuple[int, int]:
        """Return how often the node switched to the relay, and back, by its log."""
        log = self.node.path("/var/lib/meshray/log/agent.log").read_text()
        return log.count("goes through the relay"), log.count("over UDP again")


@pytest.fixture(scope="module")
def places() -> Iterator[list[Place]]:
    """Yield a node for each rule."""
    with World("test-data-eaten") as world:
        wan = world.switch("wan", "203.0.113.0/24")
        head = world.host("head", wan, "203.0.113.10")
        cluster, found = Cluster.without_ray(head, []), []
        for number in range(1, max(map(len, (FROM_THE_START, LATER))) + 1):
            scrub = world.router(f"scrub-{number}", wan, f"203.0.113.{20 + number}", lan=f"192.168.{number}.0/24")
            found.append(
                Place(world, cluster, scrub.host, world.host(f"node-{number}", scrub.lan, f"192.168.{number}.10"))
            )
        yield found


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


def at_once(trial: Callable[[Place, str], None], places: Sequence[Place], rules: Sequence[str]) -> None:
    """Run a trial of every rule, each with its own node, at the same time: nearly all of it is waiting."""
    with ThreadPoolExecutor(len(rules)) as pool:
        trials = [pool.submit(trial, place, rule) for place, rule in zip(places, rules, strict=False)]
    failed = [f"{rule}: {one.exception()}" for rule, one in zip(rules, trials, strict=True) if one.exception()]
    assert not failed, "\n\n".join(failed)


def test_data_that_is_dropped_from_the_start(places: list[Place]) -> None:
    at_once(_dropped_from_the_start, places, FROM_THE_START)


def _dropped_from_the_start(place: Place, rule: str) -> None:
    with eats(place.scrub, rule):
        place.join()
        joined = time.monotonic()
        place.world.wait_until(place.passes, RELAYED_S, "pings to pass")
        print(f"{rule}: passed {time.monotonic() - joined:.1f} s after join returned")
        assert place.transport() == "wss"
        # It uses the relay as long as data is dropped.
        before = place.switches()
        time.sleep(STAYS_S)
        assert place.transport() == "wss"
        assert place.switches() == before
        assert place.passes()
    place.world.wait_until(lambda: place.is_over("udp"), BACK_S, "UDP again")


def test_data_that_is_dropped_after_a_while(places: list[Place]) -> None:
    at_once(_dropped_after_a_while, places, LATER)


def _dropped_after_a_while(place: Place, rule: str) -> None:
    place.join()
    place.world.wait_until(lambda: place.is_over("udp"), 20, "UDP")
    large = ["ping", "-n", "-c", "1", "-W", "1", "-s", "1100", place.cluster.ip(place.head)]
    with eats(place.scrub, rule):
        began = time.monotonic()
        deadline_s = RELAYED_LARGE_S if "length" in rule else RELAYED_S
        place.world.wait_until(
            lambda: place.node.run(large, check=False).returncode == 0 and place.passes(), deadline_s, "pings to pass"
        )
        print(f"{rule}: passed after {time.monotonic() - began:.1f} s")
        place.world.wait_until(lambda: place.transport() == "wss", 2, "status to say so")
    place.world.wait_until(lambda: place.is_over("udp"), BACK_S, "UDP again")
    before = place.switches()
    time.sleep(STAYS_S)
    assert place.transport() == "udp"
    assert place.switches() == before


@pytest.mark.timeout(300)
def test_the_first_packets_of_each_connection_pass(places: list[Place]) -> None:
    place = places[0]
    # This precedes the connection: only then are its packets counted.
    place.scrub.shell("echo 1 > /proc/sys/net/netfilter/nf_conntrack_acct")
    place.join()
    place.world.wait_until(lambda: place.is_over("udp"), 20, "UDP")
    with eats(place.scrub, f"{DATA} ct original packets > 40"):
        place.world.wait_until(lambda: place.is_over("wss"), 60, "the relay")
        _, before = place.switches()
        time.sleep(90)
        _, back = place.switches()
        assert back - before <= 2
    place.world.wait_until(place.passes, RELAYED_S, "pings to pass")


def test_the_doctor_reports_it_if_only_udp_is_allowed(places: list[Place]) -> None:
    place = places[0]
    place.join("--transport", "udp")
    place.world.wait_until(place.passes, 20, "UDP")
    with eats(place.scrub, DATA):

        def named() -> bool:
            failing = ask(place.head).failing
            return bool(failing) and failing[0]["code"] == "udp_data" and failing[0]["node"] == place.node.name

        place.world.wait_until(named, 60, "the doctor to name it")
        first = ask(place.node).failing[0]
        assert first["code"] == "udp_data", json.dumps(first)
        assert "handshake" in first["evidence"]
        assert "--transport" in first["fix"]
    place.world.wait_until(lambda: not ask(place.head).failing, 60, "no failing check")


#: The rate to which a router limits UDP, kbit/s, and the time until the node uses the relay: two looks at the device, a
#: train, and the relay's rate.
LIMIT_KBIT_S, LIMITED_S = 4000, 60
#: Sends as fast as the path allows.
_SEND = """
import socket, sys
call = socket.create_connection((sys.argv[1], 7301), 10)
call.settimeout(None)
while True:
    call.sendall(bytes(65536))
"""
#: Prints each second how many bytes arrived so far.
_COUNT = """
import socket, sys, time
server = socket.create_server((sys.argv[1], 7301))
print("ready", flush=True)
caller, _ = server.accept()
counted, due = 0, 0.0
while data := caller.recv(65536):
    counted += len(data)
    if time.monotonic() > due:
        due = time.monotonic() + 1
        print(counted, flush=True)
"""


@contextmanager
def limits_udp(router: Host) -> Iterator[None]:
    """Make the router drop UDP to the outside above a rate, without delay; TCP passes freely."""
    for command in (
        "qdisc add dev wan root handle 1: htb default 20",
        "class add dev wan parent 1: classid 1:10 htb rate 10gbit",
        "class add dev wan parent 1: classid 1:20 htb rate 10gbit",
        f"qdisc add dev wan parent 1:10 tbf rate {LIMIT_KBIT_S}kbit burst 32k limit 3000",
    ):
        router.run(["tc", *command.split()])
    rule = 'oifname "wan" meta l4proto udp meta priority set 1:10'
    # nft reads a semicolon after the class as a part of it.
    chain = f"chain limited {{ type filter hook forward priority -10; policy accept; {rule}\n}}"
    router.run(["nft", "-f", "-"], stdin=f"table ip limited {{\n{chain}\n}}")
    try:
        yield
    finally:
        router.run(["nft", "delete", "table", "ip", "limited"])
        router.run(["tc", "qdisc", "del", "dev", "wan", "root"])


@dataclass
class Filling:
    """A stream from a node to the head that fills the path; it ends with the `with` block."""

    place: Place

    def __enter__(self) -> Filling:
        ip = self.place.cluster.ip(self.place.head)
        self.receiver = self.place.head.popen([sys.executable, "-c", _COUNT, ip], name="count")
        self.place.head.wait_until(lambda: "ready" in self.receiver.output, 10, "the receiver")
        self.sender = self.place.node.popen([sys.executable, "-c", _SEND, ip], name="fill")
        return self

    def __exit__(self, *failure: object) -> None:
        self.sender.stop()
        self.receiver.stop()

    def rate_kbit_s(self, seconds: float) -> float:
        """Return the rate at which data arrives during so many seconds."""
        before = self._counted()
        time.sleep(seconds)
        return (self._counted() - before) / 125 / seconds

    def _counted(self) -> int:
        return int(self.receiver.output.split("\n")[-2])


@pytest.mark.xfail(reason="bursts of meshray's engine overflow this queue: under 1 Mbit/s is left, which is not busy")
def test_udp_that_is_limited_while_tcp_is_free(places: list[Place]) -> None:
    place = places[0]
    place.join()
    place.world.wait_until(lambda: place.is_over("udp"), 20, "UDP")
    with limits_udp(place.scrub), Filling(place) as stream:
        began = time.monotonic()
        time.sleep(2)
        before = stream.rate_kbit_s(2)
        place.world.wait_until(lambda: place.transport() == "wss", LIMITED_S, "the relay")
        time.sleep(4)
        after = stream.rate_kbit_s(4)
        print(f"{before:.0f} kbit/s, after {time.monotonic() - began:.1f} s {after:.0f} kbit/s")
        assert after >= 5 * before
        assert place.transport() == "wss"
        status = place.cluster.meshray(place.node, "status", check=False)
        assert any("limits UDP to about" in notice for notice in status["notices"]), status


def test_a_line_that_is_slow_for_tcp_as_well_keeps_udp(places: list[Place]) -> None:
    place = places[0]
    place.join()
    place.world.wait_until(lambda: place.is_over("udp"), 20, "UDP")
    before = place.switches()
    place.scrub.shell("tc qdisc add dev wan root tbf rate 10mbit burst 10k limit 60k")
    try:
        with Filling(place) as stream:
            time.sleep(2)
            assert 3000 <= stream.rate_kbit_s(16) <= 10_500
            assert place.transport() == "udp"
    finally:
        place.scrub.run(["tc", "qdisc", "del", "dev", "wan", "root"])
    assert place.switches() == before
