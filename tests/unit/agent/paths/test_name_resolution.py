"""Names in endpoints: nothing waits for them, and those of one node do not delay others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from meshray.agent.paths.name_resolution import (
    FIRST_PAUSE_S,
    FRESH_S,
    LONGEST_PAUSE_S,
    MOST_AT_ONCE,
    NAMES_PER_NODE,
    UNUSED_S,
    Names,
)
from meshray.linux.tasks import Tasks
from meshray.model.address import Endpoint, OverlayNetwork
from meshray.model.endpoints import reachable_ip

NETWORK = OverlayNetwork.parse("10.99.0.0/16")
VM = Endpoint("vm.example.org", 51888)
THERE = ip_address("192.0.2.7")


@dataclass
class World:
    """A name server and a clock."""

    tasks: Tasks = field(default_factory=Tasks)
    answers: dict[str, Sequence[IPv4Address | IPv6Address]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    found: list[str] = field(default_factory=list)
    now: float = 1000.0
    answering: asyncio.Event = field(default_factory=asyncio.Event)

    async def look_up(self, host: str) -> Sequence[IPv4Address | IPv6Address]:
        self.asked.append(host)
        await self.answering.wait()
        if host not in self.answers:
            raise OSError("no such name")
        return self.answers[host]

    def names(self, at_once: int = 1) -> Names:
        return Names(
            self.tasks,
            lambda ip: reachable_ip(ip, NETWORK),
            self.found.append,
            at_once=at_once,
            look_up=self.look_up,
            clock=lambda: self.now,
        )

    async def settle(self) -> None:
        self.answering.set()
        for _ in range(50):
            await asyncio.sleep(0)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    await world.tasks.close()


async def test_a_name_is_known_once_it_was_looked_up(world: World) -> None:
    world.answers["vm.example.org"] = [ip_address("169.254.169.254"), THERE]
    names = world.names()
    assert names.address("n1", VM) is None
    await world.settle()
    assert names.address("n1", VM) == Endpoint("192.0.2.7", 51888)
    assert world.found == ["n1"]
    assert world.asked == ["vm.example.org"]


async def test_an_address_needs_no_lookup_and_is_plain(world: World) -> None:
    names = world.names()
    assert names.address("n1", Endpoint("2001:DB8::7", 1)) == Endpoint("2001:db8::7", 1)
    assert names.address("n1", Endpoint("::ffff:192.0.2.7", 1)) == Endpoint("192.0.2.7", 1)
    for host in ("127.0.0.1", "10.99.0.1", "fe80::1%eth0", "224.0.0.1", "0.0.0.0"):
        assert names.address("n1", Endpoint(host, 1)) is None
    assert world.asked == []


async def test_a_moved_name_is_followed_and_the_old_address_counts_meanwhile(world: World) -> None:
    world.answers["vm.example.org"] = [THERE]
    names = world.names()
    names.address("n1", VM)
    await world.settle()
    world.now += FRESH_S
    del world.answers["vm.example.org"]
    assert names.address("n1", VM) == Endpoint("192.0.2.7", 51888)
    await world.settle()
    assert names.address("n1", VM) == Endpoint("192.0.2.7", 51888)
    world.answers["vm.example.org"] = [ip_address("192.0.2.8")]
    names.network_changed()
    names.address("n1", VM)
    await world.settle()
    assert names.address("n1", VM) == Endpoint("192.0.2.8", 51888)
    assert world.found == ["n1", "n1"]


async def test_failing_names_are_resolved_less_and_less_often(world: World) -> None:
    names = world.names()
    world.answering.set()
    for _ in range(600):
        names.address("n1", VM)
        await world.settle()
        world.now += 1.0
    assert 600 / LONGEST_PAUSE_S <= len(world.asked) <= 600 / LONGEST_PAUSE_S + 60 / FIRST_PAUSE_S


async def test_one_node_has_few_names_and_one_lookup(world: World) -> None:
    names = world.names()
    for number in range(100):
        names.address("liar", Endpoint(f"n{number}.example", 1))
    names.address("honest", VM)
    await asyncio.sleep(0)
    assert world.asked == ["n0.example", "vm.example.org"]
    await world.settle()
    assert len(world.asked) == NAMES_PER_NODE + 1
    world.now += UNUSED_S
    names.address("liar", Endpoint("n50.example", 1))
    await world.settle()
    assert "n50.example" in world.asked


async def test_many_nodes_wait_in_turn(world: World) -> None:
    names = world.names()
    for number in range(3 * MOST_AT_ONCE):
        names.address(f"node{number}", VM)
    await asyncio.sleep(0)
    assert len(world.asked) == MOST_AT_ONCE
    await world.settle()
    assert len(world.asked) == 3 * MOST_AT_ONCE


async def test_a_node_that_left_is_forgotten(world: World) -> None:
    world.answers["vm.example.org"] = [THERE]
    names = world.names()
    names.address("n1", VM)
    names.keep([])
    await world.settle()
    assert world.found == []
    assert names.address("n1", VM) is None
