"""Direct paths in a mesh too large to keep them all: real agents, devices in memory, real probes on loopback."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from meshray.agent.control.operations import Operations
from meshray.agent.dependencies import Dependencies
from meshray.agent.paths import demand
from meshray.agent.paths.decision import IDLE_REASON
from meshray.agent.paths.prober import Prober
from meshray.agent.status.snapshot import current_path, snapshot_of
from meshray.agent.status.status_builder import build_status
from meshray.agent.status.used_paths import UsedPaths
from meshray.linux.clock import unix_s
from meshray.model.address import Endpoint, OverlayNetwork
from meshray.model.node import HUB
from meshray.model.path import PathKind
from meshray.protocol.connection import PunchWanted
from meshray.protocol.control import Ping, PingDone
from tests.mesh.mesh import Member, Mesh, running_mesh, until

#: All addresses below 127 can be bound without further preparation.
LOOPBACK = OverlayNetwork.parse("127.99.0.0/16")
NODES = 30


@dataclass
class Packets:
    """A source of packets, which a test sends."""

    is_denied: bool = False
    report: Callable[[IPv4Address], None] | None = None
    denied: Callable[[], None] = field(default=lambda: None)

    async def run(
        self,
        own: IPv4Address,
        network: OverlayNetwork,
        on_traffic: Callable[[IPv4Address], None],
        on_denied: Callable[[], None],
    ) -> None:
        self.report, self.denied = on_traffic, on_denied
        await asyncio.Event().wait()


class Crowd:
    """A mesh with a hub and many nodes, whose direct paths all work."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.punches: Counter[str] = Counter()
        self.probes: Counter[str] = Counter()

    async def join(self, count: int) -> None:
        shaking = asyncio.get_running_loop().create_task(self.keep_shaking_hands())
        self.mesh.background.append(shaking)
        for number in range(0, count, 5):
            await asyncio.gather(
                *(self.mesh.join(f"n{each}", transport="udp") for each in range(number, min(count, number + 5)))
            )
        await until(self.online, "all see all")

    async def keep_shaking_hands(self) -> None:
        while True:
            self.shake_hands()
            await asyncio.sleep(0.05)

    def online(self) -> bool:
        for member in self.mesh.members.values():
            nodes = member.agent.state.map.nodes
            seen = [node for node in nodes.values() if node.seen is not None or HUB in node.roles]
            if len(seen) != len(self.mesh.members) or not member.agent.progress.up:
                return False
        return all(packets(member).report for member in self.workers)

    def shake_hands(self) -> None:
        """Simulate the handshakes with the hub, and the endpoints at which it observes the nodes."""
        hub = self.mesh.head
        for number, member in enumerate(self.workers):
            key = member.agent.state.me.public_key
            for device, peer in ((hub.device, key), (member.device, hub.agent.state.me.public_key)):
                if device.state is not None and peer in device.state.peers:
                    endpoint = Endpoint(f"192.0.2.{number + 10}", 51888) if device is hub.device else None
                    device.hear(peer, now=unix_s(), endpoint=endpoint)

    @property
    def workers(self) -> list[Member]:
        return [member for name, member in self.mesh.members.items() if name != "head"]

    def direct(self) -> set[frozenset[str]]:
        """Return the pairs that have a direct path on both sides."""
        ends: Counter[frozenset[str]] = Counter()
        for name, member in self.mesh.members.items():
            pairs = member.agent.paths.pairs
            assert pairs is not None
            for node in pairs.contacted():
                if pairs.path(node).carries:
                    ends[frozenset((name, str(node.name)))] += 1
        return {pair for pair, count in ends.items() if count == 2}

    def contacting(self) -> set[str]:
        """Return the nodes that keep, try or want a direct path to any other."""
        pairs = {name: member.agent.paths.pairs for name, member in self.mesh.members.items()}
        return {name for name, of in pairs.items() if of is not None and of.contacted()}

    def send(self, source: str, target: str) -> None:
        """Exchange a packet: both sides see it."""
        for one, other in ((source, target), (target, source)):
            report = packets(self.mesh.members[one]).report
            assert report is not None
            report(self.mesh.members[other].agent.state.me.ip)


def packets(member: Member) -> Packets:
    found = member.agent.parts.traffic
    assert isinstance(found, Packets)
    return found


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Give every agent a prober on loopback and a source of packets; count what they send for direct paths."""
    counts: Counter[str] = Counter()
    # Thirty nodes write their files with each change of the map; no test here loses power.
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    # On a busy machine the agents of one process take turns for long; the tests compare counts, not times.
    monkeypatch.setattr("tests.mesh.mesh.DEADLINE_S", 60.0)

    class CountingProber(Prober):
        def __init__(self) -> None:
            super().__init__()
            ping = self.direct.ping

            async def counting(*arguments: object, **options: object) -> object:
                counts["probes"] += 1
                return await ping(*arguments, **options)  # type: ignore[arg-type]

            self.direct.ping = counting  # type: ignore[method-assign, assignment]

    def made(device: object) -> Dependencies:
        return Dependencies(device, CountingProber(), traffic=Packets())  # type: ignore[arg-type]

    monkeypatch.setattr("tests.mesh.mesh.Dependencies", made)
    return counts


def count_punches(crowd: Crowd, counts: Counter[str]) -> None:
    for member in crowd.workers:
        pairs = member.agent.paths.pairs
        assert pairs is not None
        send = pairs._send

        def counting(message: object, send: Callable[[object], None] = send) -> None:  # type: ignore[assignment]
            counts["punches"] += len(message.nodes) if isinstance(message, PunchWanted) else 0
            send(message)

        pairs._send = counting


def large_from(monkeypatch: pytest.MonkeyPatch, nodes: int) -> None:
    """Let a mesh of this many nodes count as large."""
    monkeypatch.setattr("meshray.agent.paths.paths.WARM_NODES", nodes - 1)


async def let_all_go(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the idle time pass for every pair."""
    with monkeypatch.context() as patch:
        patch.setattr(demand, "IDLE_S", -1.0)
        for member in crowd.workers:
            pairs = member.agent.paths.pairs
            assert pairs is not None
            for node in pairs.contacted():
                pairs._schedule(node)
        await until(lambda: not crowd.direct() and not crowd.contacting(), "idle pairs are let go")
        for member in crowd.workers:
            assert member.agent.paths.pairs is not None
            member.agent.paths.pairs._demand.keep(())
            await until(partial(has_only_the_hub, member), "only the hub is a peer")


def has_only_the_hub(member: Member) -> bool:
    return member.device.state is not None and len(member.device.state.peers) == 1


async def test_only_pairs_with_packets_are_direct(
    tmp_path: Path, counted: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    large_from(monkeypatch, 2)
    async with running_mesh(tmp_path, network=LOOPBACK) as mesh:
        crowd = Crowd(mesh)
        await crowd.join(NODES)
        count_punches(crowd, counted)
        assert not crowd.contacting(), "nobody contacts a node without a packet"
        assert all(has_only_the_hub(member) for member in crowd.workers)
        assert counted == Counter()

        talking = [("n1", "n2"), ("n3", "n4"), ("n3", "n5")]
        for _ in range(3):
            for one, other in talking:
                crowd.send(one, other)
        await until(lambda: crowd.direct() == {frozenset(pair) for pair in talking}, "pairs with packets are direct")
        assert crowd.contacting() == {"n1", "n2", "n3", "n4", "n5"}
        assert len(talking) <= counted["punches"] <= 2 * len(talking), "one request of each side at most"
        assert counted["probes"] <= 40 * len(talking)

        n3 = mesh.members["n3"].agent
        nodes = {str(node.name): node for node in n3.state.map.nodes.values()}
        idle = current_path(n3.sources, nodes["n9"])
        assert (idle.kind, idle.reason) == (PathKind.HUB, IDLE_REASON)
        assert current_path(n3.sources, nodes["n4"]).reason == ""
        assert {str(node.name) for node in n3.paths.in_use()} == {"head", "n4", "n5"}
        used = UsedPaths().current(n3.paths.in_use(), n3.state.device, lambda node: current_path(n3.sources, node))
        assert "n9" not in [str(node.name) for node, _ in used], "an idle pair is no lost path in the metrics"
        problems = build_status(snapshot_of(n3.sources, None)).problems
        in_use = ("head", "n4", "n5")
        assert not [problem for problem in problems if not problem.startswith(in_use)], "an idle path is healthy"

        await let_all_go(crowd, monkeypatch)
        assert n3.paths.pairs is not None
        assert n3.paths.pairs.is_idle(nodes["n4"])
        crowd.send("n3", "n4")
        await until(lambda: crowd.direct() == {frozenset(("n3", "n4"))}, "the next packet opens the path again")


async def test_a_ping_of_one_side_is_enough(
    tmp_path: Path, counted: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    large_from(monkeypatch, 2)
    async with running_mesh(tmp_path, network=LOOPBACK) as mesh:
        crowd = Crowd(mesh)
        await crowd.join(3)
        operation = Operations(mesh.members["n0"].agent, dict).for_all_users()[Ping]
        echoes: list[object] = []

        async def emit(echo: object) -> None:
            echoes.append(echo)

        done = await operation(Ping(node="n1", count=1), emit)
        assert isinstance(done, PingDone)
        assert len(echoes) == 1
        await until(lambda: crowd.direct() == {frozenset(("n0", "n1"))}, "the pair is direct")
        assert crowd.contacting() == {"n0", "n1"}


async def test_a_node_that_cannot_see_packets_keeps_all_paths(
    tmp_path: Path, counted: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    large_from(monkeypatch, 2)
    async with running_mesh(tmp_path, network=LOOPBACK) as mesh:
        crowd = Crowd(mesh)
        await crowd.join(4)
        blind = packets(mesh.members["n0"])
        blind.is_denied = True
        blind.denied()
        others = {frozenset(("n0", f"n{number}")) for number in (1, 2, 3)}
        await until(lambda: crowd.direct() == others, "it contacts all others, and they answer")


async def test_the_paths_of_a_mesh_that_grows_are_let_go_when_they_are_idle(
    tmp_path: Path, counted: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    large_from(monkeypatch, 6)
    async with running_mesh(tmp_path, network=LOOPBACK) as mesh:
        crowd = Crowd(mesh)
        await crowd.join(4)
        await until(lambda: len(crowd.direct()) == 6, "every pair of a small mesh is direct without a packet")
        await mesh.join("n4")
        await until(crowd.online, "all see all")
        await asyncio.sleep(1.0)
        assert len(crowd.direct()) == 6, "they have the time to become idle"
        await let_all_go(crowd, monkeypatch)
        assert not crowd.direct()
