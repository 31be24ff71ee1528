"""What one member can make the coordinator send to all the others: little, however much it sends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest

from meshray.coordinator import message_writer
from meshray.linux.tasks import Tasks
from meshray.model.address import Endpoint, NodeName
from meshray.model.enrol import EnrolAnswer
from meshray.model.node import Node
from meshray.model.token import Token

from .coordinator_harness import PATIENCE_S, Agent, Running, enrol_request, new_key, running_mesh, with_proof
from .test_coordinator_abuse import admin_is_served, upgrade

AGENTS = 20
#: The duration of each attack, seconds, and its repetitions per second.
ATTACK_S, PER_S = 3.0, 50
#: The limit of what one agent is sent meanwhile: a burst of entries of the largest possible size.
MOST_BYTES = 450_000

Say = Callable[[dict[str, object]], Awaitable[None]]


class Readers:
    """Agents that follow the map and count what they receive."""

    def __init__(self, agents: list[Agent]) -> None:
        self.agents = agents
        self.changed = asyncio.Event()
        self.tasks = Tasks()

    def follow(self, *agents: Agent) -> None:
        """Read what these are sent, from now on."""
        for agent in agents:
            self.tasks.start(self._read(agent), "reader")

    async def _read(self, agent: Agent) -> None:
        while await agent.receive() != "closed":
            self.changed.set()

    def sent(self) -> int:
        """Return the characters sent to the agent that received most."""
        return max(sum(map(len, agent.texts)) for agent in self.agents)

    async def until(self, holds: Callable[[Agent], bool]) -> None:
        async def wait() -> None:
            while not all(map(holds, self.agents)):
                self.changed.clear()
                await self.changed.wait()

        await asyncio.wait_for(wait(), PATIENCE_S)


@contextlib.asynccontextmanager
async def mesh_with_readers(folder: Path, count: int = AGENTS) -> AsyncIterator[tuple[Running, Readers]]:
    async with running_mesh(folder) as mesh:
        answers = [await mesh.client.enrol(mesh.token, f"n{number}") for number in range(count)]
        readers = Readers([await mesh.client.agent(answer.credential) for answer in answers])
        readers.follow(*readers.agents)
        await readers.until(
            lambda agent: agent.map is not None and sum(n.online for n in agent.map.nodes.values()) == count
        )
        for agent in readers.agents:
            agent.texts.clear()
        try:
            yield mesh, readers
        finally:
            await readers.tasks.close()


async def attack(report: Callable[[int], Awaitable[None]]) -> None:
    ends = time.monotonic() + ATTACK_S
    number = 0
    with contextlib.suppress(ConnectionError):
        while time.monotonic() < ends:
            await report(number)
            number += 1
            await asyncio.sleep(1 / PER_S)


def node_is(node_id: str, holds: Callable[[Node], bool]) -> Callable[[Agent], bool]:
    """Return whether an agent's map has this node, and whether the condition on it holds."""

    def is_so(agent: Agent) -> bool:
        node = agent.map.nodes.get(node_id) if agent.map is not None else None
        return node is not None and holds(node)

    return is_so


def is_named(name: str) -> Callable[[Agent], bool]:
    return lambda agent: agent.map is not None and agent.map.find(name) is not None


async def member(mesh: Running, name: str = "member", **changes: object) -> tuple[EnrolAnswer, Agent]:
    token = mesh.token
    if "roles" in changes:
        made = await mesh.admin("POST", "/v1/tokens", {"roles": changes["roles"]})
        token = Token.parse(str(made.body["token"]))
    answer = await mesh.client.enrol(token, name, **changes)
    return answer, await mesh.client.agent(answer.credential)


LONG_NAMES = [f"{number:0512}" for number in range(64)]


def hello_with_names(number: int) -> dict[str, object]:
    return {"type": "hello", "versions": {}, "endpoints": [], "hubs": [*LONG_NAMES[:63], f"{number:0512}"]}


def hello_with_endpoints(number: int) -> dict[str, object]:
    host = ".".join(["x" * 60] * 4)
    return {
        "type": "hello",
        "versions": {key: f"{number:064}" for key in ("meshray", "ray", "python")},
        "endpoints": [f"{host}:{port}" for port in range(number + 1, number + 17)],
        "reached": f"host-{number}.example.org:51888",
    }


@pytest.mark.parametrize("message", [hello_with_names, hello_with_endpoints])
async def test_a_talkative_member_is_rate_limited(tmp_path: Path, message: Callable[[int], dict[str, object]]) -> None:
    async with mesh_with_readers(tmp_path) as (mesh, readers), admin_is_served(mesh.client, mesh.head):
        labels = {f"label-{number:030}": "x" * 63 for number in range(40)}
        _, hostile = await member(mesh, labels=labels)
        readers.follow(hostile)
        await attack(lambda number: hostile.socket.send_json(message(number)))
        await mesh.server.service.rename("n0", NodeName("renamed"))
        began = time.monotonic()
        await readers.until(is_named("renamed"))
        assert time.monotonic() - began < 5
        assert readers.sent() < MOST_BYTES
        assert not any(agent.socket.closed for agent in readers.agents)


async def test_the_last_report_counts(tmp_path: Path) -> None:
    async with mesh_with_readers(tmp_path, 2) as (mesh, readers):
        answer, noisy = await member(mesh)
        for number in range(1, 301):
            await noisy.socket.send_json(
                {"type": "hello", "versions": {}, "endpoints": [f"198.51.100.7:{number}"], "hubs": []}
            )
        last = (Endpoint("198.51.100.7", 300),)
        await readers.until(node_is(answer.node_id, lambda node: node.endpoints == last))
        assert not noisy.socket.closed


async def test_only_hubs_are_named_as_hubs(tmp_path: Path) -> None:
    async with mesh_with_readers(tmp_path, 2) as (mesh, readers):
        head, (answer, agent) = mesh.head.node_id, await member(mesh)
        output = [answer.node_id, "0" * 16, head, head, "\x1b[2J"]
        await agent.socket.send_json({"type": "hello", "versions": {}, "endpoints": [], "hubs": output})
        await readers.until(node_is(answer.node_id, lambda node: node.hubs == (head,)))


async def test_a_hub_with_many_reports_is_rate_limited(tmp_path: Path) -> None:
    async with mesh_with_readers(tmp_path) as (mesh, readers), admin_is_served(mesh.client, mesh.head):
        _, hub = await member(mesh, "hub", roles=["hub"], endpoints=["198.51.100.1:51888"])
        head = await mesh.client.agent(mesh.head.credential)
        readers.follow(hub, head)
        ids = list(mesh.server.service._ledger.registry.members)

        async def say(number: int) -> None:
            seen = {key: f"198.51.100.7:{number + 1}" for key in ids}
            await hub.socket.send_json({"type": "seen", "nodes": seen})
            await hub.socket.send_json({"type": "hello", "versions": {}, "faults": {"hub_forwards": f"{number:0200}"}})
            await head.socket.send_json(
                {"type": "silence", "nodes": dict.fromkeys(ids, ("silent", "gone")[number % 2])}
            )

        await attack(say)
        assert readers.sent() < MOST_BYTES
        assert not any(agent.socket.closed for agent in readers.agents)


async def test_frequent_reconnects_are_rate_limited(tmp_path: Path) -> None:
    async with mesh_with_readers(tmp_path) as (mesh, readers), admin_is_served(mesh.client, mesh.head):
        answer, _ = await member(mesh)

        async def say(_: int) -> None:
            with contextlib.suppress(OSError, aiohttp.ClientError):
                agent = await mesh.client.agent(answer.credential)
                await agent.socket.close()

        await attack(say)
        changes = [text for agent in readers.agents for text in agent.texts if answer.node_id in text]
        assert len(changes) <= AGENTS * 50


async def test_notices_are_limited_to_the_rate_of_honest_agents(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        victim, received = await member(mesh, "victim")
        _, hostile = await member(mesh, "hostile")
        await hostile.until_online("victim", True)
        await hostile.until_online("hostile", True)
        counted = 0

        async def count() -> None:
            nonlocal counted
            async for message in received.socket:
                counted += json.loads(message.data)["type"] in ("punch", "left")

        tasks = Tasks()
        tasks.start(count(), "count")

        async def say(number: int) -> None:
            kind = {"type": "punch", "nodes": [victim.node_id] * 64} if number % 2 else {"type": "left"}
            await hostile.socket.send_json({**kind, "node": victim.node_id})

        await asyncio.gather(*(attack(say) for _ in range(4)))
        assert 20 <= counted <= 64 + 4 * 3 + 10 * 2 * ATTACK_S
        await tasks.close()


async def test_labels_are_bounded(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        wide = enrol_request(mesh.token, labels={f"key-{number:0400}": "x" * 500 for number in range(64)})
        reply = await mesh.client.call("POST", "/v1/enroll", wide)
        assert (reply.status, reply.code) == (400, "labels_too_long")


async def test_a_member_that_keeps_changing_its_key_is_refused(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        head = await mesh.client.agent(mesh.head.credential)
        await head.until({"head"})
        answer = await mesh.client.enrol(mesh.token)
        statuses = []
        for _ in range(30):
            body = with_proof(await mesh.client.hello(), "/v1/rotate", {"public_key": new_key()})
            statuses.append((await mesh.client.call("POST", "/v1/rotate", body, answer.credential)).status)
        assert statuses == [200] * 10 + [429] * 20


@contextlib.asynccontextmanager
async def slow_agent(mesh: Running, readers: Readers) -> AsyncIterator[tuple[str, asyncio.StreamReader]]:
    """Return an agent that is connected and has read nothing yet: its node's id and its messages."""
    answer = await mesh.client.enrol(mesh.token, "slow")
    reader, writer = await mesh.client.raw(receive_buffer=8192)
    writer.write(upgrade(answer.credential))
    assert b"101" in await reader.readline()
    await readers.until(node_is(answer.node_id, lambda node: node.online))
    yield answer.node_id, reader
    writer.transport.abort()


async def enrol_wide(mesh: Running, count: int) -> None:
    """Enrol w0, w1, …, each with an entry of 4 KB."""
    labels = {f"label-{number:0100}": "x" * 500 for number in range(6)}
    await asyncio.gather(*(mesh.client.enrol(mesh.token, f"w{number}", labels=labels) for number in range(count)))


async def until_revision(reader: asyncio.StreamReader, revision: int, pause_s: float = 0) -> None:
    received = b""
    while f'"revision":{revision},'.encode() not in received:
        received = received[-100:] + await asyncio.wait_for(reader.read(4096), PATIENCE_S)
        await asyncio.sleep(pause_s)


async def test_an_agent_that_did_not_read_for_a_while_catches_up(tmp_path: Path) -> None:
    async with mesh_with_readers(tmp_path, 2) as (mesh, readers), slow_agent(mesh, readers) as (node_id, reader):
        await enrol_wide(mesh, 60)
        for number in range(500):
            await mesh.server.service.drain(f"w{number % 60}", number // 60 % 2 == 0)
        revision = mesh.server.service.revision
        await readers.until(lambda agent: agent.map is not None and agent.map.revision == revision)
        await until_revision(reader, revision)
        assert mesh.server.service._ledger.registry.members[node_id].node.online


async def test_an_agent_that_reads_slowly_keeps_its_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message_writer, "SEND_S", 0.4)
    async with mesh_with_readers(tmp_path, 2) as (mesh, readers):
        await enrol_wide(mesh, 50)
        async with slow_agent(mesh, readers) as (node_id, reader):
            reading = Tasks()
            changing = asyncio.Event()

            async def change() -> None:
                for number in range(50):
                    await mesh.server.service.drain(f"w{number}", True)
                    await asyncio.sleep(0.03)
                changing.set()

            reading.start(change(), "changes")
            began = time.monotonic()
            # All nodes are drained at the end: the head's first map, then the changes, at some 100 KB/s.
            await until_revision(reader, mesh.server.service.revision, 0.03)
            await reading.until(changing)
            await until_revision(reader, mesh.server.service.revision, 0.03)
            assert time.monotonic() - began > 2 * message_writer.SEND_S
            assert mesh.server.service._ledger.registry.members[node_id].node.online


async def test_a_change_reaches_all_at_once_where_nothing_else_happens(tmp_path: Path) -> None:
    async with mesh_with_readers(tmp_path) as (mesh, readers):
        took: list[float] = []
        for number in range(10):
            await asyncio.sleep(0.2)
            began = time.monotonic()
            await mesh.server.service.rename(f"n{number}", NodeName(f"renamed-{number}"))
            await readers.until(is_named(f"renamed-{number}"))
            took.append(time.monotonic() - began)
        assert sorted(took)[len(took) // 2] < 0.25, took


async def test_a_hubs_observations_of_many_nodes_are_applied_in_parts_and_completely(tmp_path: Path) -> None:
    async with mesh_with_readers(tmp_path, 1) as (mesh, readers):
        _, hub = await member(mesh, "hub", roles=["hub"], endpoints=["198.51.100.1:51888"])
        await asyncio.gather(*(mesh.client.enrol(mesh.token, f"w{number}") for number in range(100)))
        ids = list(mesh.server.service._ledger.registry.members)
        where = {key: f"198.51.100.7:{number + 1}" for number, key in enumerate(ids)}
        for start in range(0, len(ids), 50):
            part = {key: where[key] for key in ids[start : start + 50]}
            await hub.socket.send_json({"type": "seen", "nodes": part})
        await hub.socket.send_json({"type": "seen", "nodes": {"0" * 16: "198.51.100.7:1", "nobody": ""}})
        for key in ids:
            await readers.until(node_is(key, lambda node, key=key: str(node.seen) == where[key]))  # type: ignore[misc]
