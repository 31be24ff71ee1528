"""Networks change while a cluster runs: connections over the overlay and Ray survive all changes.

                         switch wan 192.88.99.0/24
       ┌─────────────┬──────────┴───┬──────────────┐
      hub         home-nat      office-nat      cafe-nat      home routers: nothing new comes in
     (head)     192.168.1.0/24 192.168.2.0/24 192.168.3.0/24
                     │              │              │
                    home          office         laptop

Two TCP connections over the overlay, home → office and laptop → office, are opened once and must survive every test; so
must the Rays of the three. `wg` shows the paths. The tests share one cluster; the laptop's journey comes last.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest

from tests.lab.cluster import Cluster
from tests.lab.conversation import Conversation
from tests.lab.host import Host
from tests.lab.test_main_job import INTERFACE, processes, wireguard_peers
from tests.lab.trouble import away, readdress, rebind, reboot, silenced
from tests.lab.world import Router, World

#: A dead direct path is left within this time, seconds.
FALL_BACK_S = 5
#: The time until a direct path is found again: after failed attempts with growing pauses, and at once after a change of
#: the network.
TRIED_AGAIN_S, AT_ONCE_S = 60, 15
#: TCP doubles its pauses between attempts: after an outage it may be silent for as long again.
TCP_NOTICES = 1.2
AWAY_S = 45


@dataclass
class Net:
    world: World
    cluster: Cluster
    routers: dict[str, Router]
    conversations: list[Conversation] = field(default_factory=list)

    def host(self, name: str) -> Host:
        return self.world.hosts[name]

    def dialled(self, me: str, other: str) -> str:
        """Return the endpoint to which one node sends for the other, by `wg`; empty if through the hub."""
        route = f"{self.cluster.ip(self.host(other))}/32"
        peers = wireguard_peers(self.host(me))
        return next((peer["endpoint"] for peer in peers if route in peer["allowed_ips"].split(",")), "")

    def is_direct(self, one: str, other: str) -> bool:
        """Return whether both send directly."""
        return bool(self.dialled(one, other) and self.dialled(other, one))

    def left(self, one: str, other: str) -> bool:
        """Return whether both send through the hub."""
        return not self.dialled(one, other) and not self.dialled(other, one)

    def wait_until_direct(self, one: str, other: str, deadline_s: float) -> None:
        self.world.wait_until(lambda: self.is_direct(one, other), deadline_s, f"a direct way {one} - {other}")

    def raylets(self) -> dict[str, list[int]]:
        return {host.name: [pid for pid, _ in processes(host, "raylet/raylet")] for host in self.cluster.hosts}

    def is_whole(self) -> bool:
        """Return whether the head's Ray reports every node as alive."""
        nodes = self.cluster.meshray(self.cluster.head, "status", check=False)["nodes"]
        return all(node["online"] and node["ray"]["alive"] for node in nodes)


@pytest.fixture(scope="module")
def net() -> Iterator[Net]:
    with World("test-path-changes") as world:
        wan = world.switch("wan", "192.88.99.0/24")
        hub = world.host("hub", wan, "192.88.99.10")
        routers, nodes = {}, []
        for number, name in enumerate(("home", "office", "laptop"), start=1):
            lan = f"192.168.{number}.0/24"
            routers[name] = world.router(f"{name}-nat", wan, f"192.88.99.{30 + number}", lan=lan)
            nodes.append(world.host(name, routers[name].lan, f"192.168.{number}.10"))
        net = Net(world, Cluster.start(hub, nodes), routers)
        office = world.hosts["office"]
        net.conversations = [
            Conversation(office, world.hosts[name], net.cluster.ip(office), port)
            for name, port in (("home", 7101), ("laptop", 7102))
        ]
        yield net


@pytest.fixture(autouse=True)
def everything_outlasts_it(net: Net) -> Iterator[None]:
    """Check before and after each test that paths are direct and nodes alive; connections and Rays remain the same."""
    for other in ("home", "laptop"):
        net.wait_until_direct(other, "office", TRIED_AGAIN_S)
    net.world.wait_until(net.is_whole, 60, "every Ray to be alive before the test")
    raylets = net.raylets()
    yield
    for conversation in net.conversations:
        conversation.wait_until_it_goes_on(AWAY_S * TCP_NOTICES)
    net.world.wait_until(net.is_whole, 60, "every Ray to be alive after the test")
    assert net.raylets() == raylets


@pytest.mark.parametrize("both", [False, True], ids=["one direction", "both directions"])
def test_a_dead_direct_path_is_left_within_seconds_and_restored_later(net: Net, both: bool) -> None:
    """Only what comes straight from the other is lost; the way over the hub stays."""
    mark = time.monotonic()
    with ExitStack() as trouble:
        for here, there in (("office", "home"), ("home", "office"))[: 2 if both else 1]:
            trouble.enter_context(silenced(net.routers[here].host, str(net.routers[there].host.address)))
        net.world.wait_until(lambda: net.left("home", "office"), FALL_BACK_S, "both to send through the hub")
        net.conversations[0].wait_until_it_goes_on(FALL_BACK_S)
        assert net.conversations[0].longest_silence_s(since=mark) < 2 * FALL_BACK_S
        assert net.is_direct("laptop", "office"), "nothing happened to this way"
    net.wait_until_direct("home", "office", TRIED_AGAIN_S)
    # Back on the direct path nothing was lost: TCP would have waited.
    net.conversations[0].wait_until_it_goes_on(2)


def test_a_nat_maps_to_another_port(net: Net) -> None:
    mark = time.monotonic()
    port = int(net.host("home").run(["wg", "show", INTERFACE, "listen-port"]).stdout)
    rebind(net.routers["home"], net.host("home"), port, 40001)
    outside = f"{net.routers['home'].host.address}:40001"
    net.world.wait_until(
        lambda: net.dialled("office", "home") == outside and net.is_direct("home", "office"), TRIED_AGAIN_S, outside
    )
    assert net.conversations[0].longest_silence_s(since=mark) < 4 * FALL_BACK_S


@pytest.mark.parametrize(
    "trouble",
    [lambda net: reboot(net.routers["office"], 10), lambda net: away(net.routers["home"], AWAY_S)],
    ids=["a router reboots", "the network is away"],
)
@pytest.mark.timeout(300)
def test_a_disconnected_node_comes_back(net: Net, trouble: Callable[[Net], None]) -> None:
    trouble(net)
    for name in ("home", "laptop"):
        net.wait_until_direct(name, "office", TRIED_AGAIN_S)


def test_a_laptop_gets_another_address(net: Net) -> None:
    mark = time.monotonic()
    readdress(net.host("laptop"), net.routers["laptop"], "192.168.3.77")
    net.conversations[1].wait_until_it_goes_on(AT_ONCE_S)
    assert net.conversations[1].longest_silence_s(since=mark) < 2 * FALL_BACK_S
    net.wait_until_direct("laptop", "office", AT_ONCE_S)


def test_a_laptop_comes_to_the_office(net: Net) -> None:
    net.world.unplug(net.host("laptop"), "eth0")
    time.sleep(3)
    net.world.connect(net.host("laptop"), net.routers["office"].lan, "192.168.2.20", interface="eth0")
    net.world.wait_until(
        lambda: (
            net.dialled("laptop", "office").startswith("192.168.2.10:")
            and net.dialled("office", "laptop").startswith("192.168.2.20:")
        ),
        AT_ONCE_S,
        "the way within the LAN",
    )
    net.conversations[1].wait_until_it_goes_on(AT_ONCE_S)
