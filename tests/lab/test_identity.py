"""Keys change and nodes are removed while connections run.

        switch wan 192.88.99.0/24
    ┌─────────┬──────┴──┬──────────┐
   head       a         b         walled     drops what comes in over UDP: its tunnel is a WebSocket (wss)
   (hub)      └─ direct ┘

A TCP connection a → b over the direct path and one walled → head over the hub path outlast every change of a key. Then
a is removed while its agent is dead, so that only what the others do cuts it off, then walled with all of it alive.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.lab.cluster import Cluster
from tests.lab.conversation import Conversation
from tests.lab.host import Host
from tests.lab.test_main_job import wireguard_peers
from tests.lab.world import World

#: A connection may be silent for so long while a key changes: TCP's own retransmission, twice.
SILENCE_S = 4.0
#: A node that was removed is cut off everywhere within this time of the command's return.
CUT_OFF_S = 2.0


@dataclass
class Net:
    world: World
    cluster: Cluster
    talks: list[Conversation] = field(default_factory=list)

    def host(self, name: str) -> Host:
        return self.world.hosts[name]

    def path(self, me: str, other: str) -> tuple[str, str]:
        """Kind and transport, as `status` on ``me`` says."""
        nodes = self.cluster.meshray(self.host(me), "status", check=False)["nodes"]
        path = next(node["path"] for node in nodes if node["name"] == other)
        return path["kind"], path["transport"]

    def rotate(self, on: str, *node: str) -> str:
        return str(self.host(on).run(["meshray", "node", "rotate-key", "--json", *node]).json()["public_key"])

    def peers(self, me: str) -> set[str]:
        return {peer["public_key"] for peer in wireguard_peers(self.host(me))}


@pytest.fixture(scope="module")
def net() -> Iterator[Net]:
    with World("test-identity") as world:
        wan = world.switch("wan", "192.88.99.0/24")
        head = world.host("head", wan, "192.88.99.10")
        nodes = [world.host(name, wan, f"192.88.99.{20 + n}") for n, name in enumerate(("a", "b"))]
        walled = world.host("walled", wan, "192.88.99.30")
        cluster = Cluster.without_ray(head, nodes)
        token = cluster.answers["head"]["token"]
        cluster.answers["walled"] = cluster.meshray(walled, "join", token, "--no-ray", "--transport", "wss")
        net = Net(world, cluster)
        world.wait_until(lambda: net.path("a", "b")[0] == "direct", 30, "a direct way a - b")
        assert net.path("walled", "head")[1] == "wss"
        yield net
        for talk in net.talks:
            talk.end()


def test_connections_outlast_the_change_of_every_key(net: Net) -> None:
    ip = net.cluster.ip
    net.talks = [
        Conversation(net.host("b"), net.host("a"), ip(net.host("b")), 7201),
        Conversation(net.host("head"), net.host("walled"), ip(net.host("head")), 7202),
        Conversation(net.host("b"), net.host("walled"), ip(net.host("b")), 7203),
    ]
    for on, node in (("a", ()), ("head", ("b",)), ("walled", ()), ("head", ())):
        begun, before = time.monotonic(), net.peers("head")
        key = net.rotate(on, *node)
        for talk in net.talks:
            talk.wait_until_it_goes_on(10)
            assert talk.longest_silence_s(begun) < SILENCE_S, f"{talk.name} while {node or on} changed its key"
        if (on, node) == ("head", ()):
            assert key in net.peers("a")
        else:
            assert key in net.peers("head")
            assert len(net.peers("head")) == len(before)
    net.world.wait_until(lambda: net.path("a", "b")[0] == "direct", 30, "the direct way a - b")
