"""A path becomes narrower while TCP runs over it, without any report: the connection continues within seconds.

                  switch wan 192.88.99.0/24
  ┌──────────┬──────────┬──────────┬──────────┐
 hub      walled-nat  other-nat  near-nat   far-nat
(head)    symmetric   symmetric    easy       easy
             │           │          │          │
           walled      other       near       far      walled – other: by the hub; near – far: directly
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.lab.cluster import Cluster
from tests.lab.host import Host
from tests.lab.stream import Stream
from tests.lab.world import Router, World

#: The time from the narrowing to data that passes again: detected, measured, and retransmitted by TCP, which doubles
#: its pauses.
GOES_ON_S = 25
SETTLED_S = 60
NARROW_MTU = 1280


@dataclass
class Net:
    world: World
    cluster: Cluster
    routers: dict[str, Router]

    def kind(self, me: str, other: str) -> str:
        """Return the kind of the path in `meshray status`."""
        nodes = self.cluster.meshray(self.world.hosts[me], "status", check=False)["nodes"]
        return str(next(node["path"]["kind"] for node in nodes if node["name"] == other))

    def ip(self, name: str) -> str:
        return self.cluster.ip(self.world.hosts[name])


@pytest.fixture(scope="module")
def net() -> Iterator[Net]:
    with World("test-narrowing") as world:
        wan = world.switch("wan", "192.88.99.0/24")
        hub, routers, nodes = world.host("hub", wan, "192.88.99.10"), {}, []
        for number, name in enumerate(("walled", "other", "near", "far"), start=1):
            kind = "symmetric" if number < 3 else "easy"
            lan = f"192.168.{number}.0/24"
            routers[name] = world.router(f"{name}-nat", wan, f"192.88.99.{30 + number}", lan=lan, kind=kind)  # type: ignore[arg-type]
            nodes.append(world.host(name, routers[name].lan, f"192.168.{number}.10"))
        net = Net(world, Cluster.without_ray(hub, nodes), routers)
        world.wait_until(lambda: net.kind("near", "far") == net.kind("far", "near") == "direct", SETTLED_S, "direct")
        yield net


@contextmanager
def narrow(router: Host) -> Iterator[None]:
    """Make the router's link carry less from now on: larger packets are lost without any report."""
    rules = (
        f"table ip narrow {{ chain f {{ type filter hook forward priority -10; meta length > {NARROW_MTU} drop; }}; }}"
    )
    router.run(["nft", "-f", "-"], stdin=rules)
    try:
        yield
    finally:
        router.run(["nft", "delete", "table", "ip", "narrow"])


@pytest.mark.parametrize(
    ("kind", "sender", "receiver", "at"),
    [
        ("direct", "near", "far", "near"),
        ("direct", "far", "near", "near"),
        ("hub", "walled", "other", "walled"),
        ("hub", "other", "walled", "walled"),
        ("direct", "hub", "near", "near"),
    ],
    ids=["direct, near the sender", "direct, near the receiver", "hub, sender", "hub, receiver", "from the hub"],
)
def test_a_stream_goes_on_when_the_path_becomes_narrower(
    net: Net, kind: str, sender: str, receiver: str, at: str
) -> None:
    net.world.wait_until(lambda: net.kind(sender, receiver) == kind, SETTLED_S, f"a path of kind {kind}")
    hosts = net.world.hosts
    stream = Stream(hosts[sender], hosts[receiver], net.ip(receiver))
    try:
        mark = time.monotonic()
        with narrow(net.routers[at].host):
            time.sleep(1)  # The data in flight has arrived.
            stream.wait_until_it_goes_on(GOES_ON_S)
            # From here on everything is measured: nothing stops any more.
            stream.wait_until_it_goes_on(2)
            silent_s = stream.longest_silence_s(since=mark)
            print(f"{sender} → {receiver} ({kind}): data went on after {silent_s:.1f} s")
            assert silent_s < GOES_ON_S
            assert net.kind(sender, receiver) == kind
            (route,) = hosts[sender].run(["ip", "-json", "route", "get", net.ip(receiver)]).json()
            # A receiver that had found its own direction narrow before requested small segments from the start.
            if silent_s > 1:
                assert 1000 < int(route["metrics"][0]["mtu"]) <= NARROW_MTU - 60
    finally:
        stream.end()
