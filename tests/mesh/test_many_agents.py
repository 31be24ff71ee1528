"""What the coordinator sends to 500 agents, in counts: maps, changes and bytes, never times."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from meshray.coordinator import handlers
from meshray.coordinator.arrivals import Arrivals
from meshray.coordinator.store import open_store
from meshray.home import Home
from meshray.linux.tasks import Tasks
from meshray.model.enrol import EnrolAnswer
from tests.bench.links import Counts, SimulatedAgent, agents_of

from .coordinator_harness import Client, client_of, make_mesh, running_mesh
from .mesh import until
from .process_harness import add_members, coordinator_process

AGENTS = 500
#: The agents that lose their connections at once.
OUTAGE = 50
#: The limit of a change of one node, for each agent, bytes.
CHANGE_BYTES = 300
#: The limit of all messages to an agent while all connect, bytes per node: the node's entry in the compressed map, and
#: its changes.
BYTES_OF_NODE = 400
#: In a storm of newcomers, a message of the map contains at least this many changes.
COALESCED = 5
#: It asserts no times, so it may take long on a busy machine.
PATIENCE_S = 150.0


@dataclass
class Crowd:
    """The agents, what they received, and the administrator's client of their coordinator."""

    agents: list[SimulatedAgent]
    counts: Counts
    client: Client
    head: EnrolAnswer

    @property
    def maps(self) -> int:
        """The number of whole maps received."""
        return self.counts.kinds["map"] + self.counts.kinds["packed_map"]

    @property
    def changes(self) -> int:
        """The number of changes of the map received."""
        return self.counts.kinds["change"]

    async def settled(self, opened: int = 0) -> int:
        """Return the revision once every agent has it and is connected, and so many connections were opened."""
        ends = time.monotonic() + PATIENCE_S
        while time.monotonic() < ends:
            await asyncio.sleep(0.1)
            revision, counts = await self.revision(), self.counts
            is_complete = counts.opened >= opened and counts.connected == AGENTS
            if is_complete and {agent.revision for agent in self.agents} == {revision}:
                return revision
        raise TimeoutError(f"{self.counts.report()}")

    async def revision(self) -> int:
        """Return the coordinator's revision of the map."""
        reply = await self.client.call("GET", "/v1/hello", None, self.head.credential)
        assert reply.status == 200, reply.body
        return int(str(reply.body["revision"]))


def stored_revision(home: Home) -> int:
    """Return the revision with which the next coordinator of this home starts."""
    store = open_store(home)
    try:
        return store.load().revision
    finally:
        store.close()


@contextlib.asynccontextmanager
async def following(agents: list[SimulatedAgent]) -> AsyncIterator[None]:
    """Let these agents keep their connections."""
    tasks = Tasks()
    try:
        for number, agent in enumerate(agents):
            tasks.start(agent.run(), f"agent {number}")
        yield
    finally:
        await tasks.close()


async def test_agents_that_come_too_many_at_once_are_asked_to_come_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers, "Arrivals", lambda: Arrivals(1))
    async with running_mesh(tmp_path) as mesh:
        answers = await asyncio.gather(*(mesh.client.enrol(mesh.token, f"w{number}") for number in range(8)))
        counts = Counts()
        credentials = [answer.credential for answer in answers]
        hub = agents_of(mesh.client.port, mesh.token.fingerprint, [mesh.head.credential], Counts())
        async with following(agents_of(mesh.client.port, mesh.token.fingerprint, credentials, counts)):
            await until(lambda: counts.refused > 0, "some are refused")
            async with following(hub):
                await until(lambda: hub[0].revision > 0, "a hub is not refused")
            await until(lambda: counts.connected == len(answers), "all come again")
        assert counts.failed == 0 and counts.opened == len(answers)


# About 14 s of processor time, of the agents and two coordinators together.
@pytest.mark.timeout(400)
async def test_a_mesh_of_500_is_sent_each_map_once_and_small_changes(tmp_path: Path) -> None:
    home, head, token = make_mesh(tmp_path)
    credentials, counts = add_members(home, AGENTS), Counts()
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(coordinator_process(home, tmp_path / "first.log"))
        client = await stack.enter_async_context(client_of(first.port, token.fingerprint))
        crowd = Crowd(agents_of(first.port, token.fingerprint, credentials, counts), counts, client, head)
        revision = await crowd.revision()
        await stack.enter_async_context(following(crowd.agents))
        await whole_maps_once(crowd, since=revision)
        await small_changes(crowd)
        await differences_after_an_outage(crowd)
        await first.kill()
        stored = stored_revision(home)
        await stack.enter_async_context(coordinator_process(home, tmp_path / "again.log", first.port))
        await whole_maps_once(crowd, since=stored)


async def whole_maps_once(crowd: Crowd, since: int) -> None:
    """All agents connect: each is sent one whole map, and few changes although each connection is one for all."""
    maps, changes, sent = crowd.maps, crowd.changes, crowd.counts.sent
    revision = await crowd.settled()
    assert crowd.maps - maps == AGENTS
    assert revision - since >= AGENTS
    assert crowd.changes - changes <= AGENTS * (revision - since) / COALESCED
    assert (crowd.counts.sent - sent) / AGENTS <= AGENTS * BYTES_OF_NODE


async def small_changes(crowd: Crowd) -> None:
    """A change of one node is one message to each agent."""
    for number, change in enumerate(({"drained": True}, {"drained": False}, {"name": "renamed"})):
        changes, sent = crowd.changes, crowd.counts.sent
        reply = await crowd.client.call("PATCH", "/v1/nodes/w7", change, crowd.head.credential)
        assert reply.status == 200, reply.body
        await crowd.settled()
        assert crowd.changes - changes == AGENTS, number
        assert crowd.counts.sent - sent <= AGENTS * CHANGE_BYTES


async def differences_after_an_outage(crowd: Crowd) -> None:
    """Agents that come back show the map that they have, and are sent what changed since."""
    maps, sent, opened = crowd.maps, crowd.counts.sent, crowd.counts.opened
    revision = await crowd.revision()
    lost = [agent.connection for agent in crowd.agents[:OUTAGE] if agent.connection is not None]
    assert len(lost) == OUTAGE
    await asyncio.gather(*(connection.close_socket() for connection in lost))
    assert await crowd.settled(opened + OUTAGE) >= revision + 2 * OUTAGE
    assert crowd.maps == maps
    assert (crowd.counts.sent - sent) / AGENTS <= 2 * OUTAGE * CHANGE_BYTES
