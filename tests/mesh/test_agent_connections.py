"""The agents' WebSockets: map, changes, presence, removal, ephemeral nodes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import aiohttp
import pytest
from msgspec import Struct

from meshray.coordinator import map_messages, message_writer
from meshray.model.address import Endpoint, NodeName
from meshray.model.enrol import MAP_HEADER, EnrolAnswer
from meshray.model.meshmap import MapChange, MeshMap
from meshray.protocol import connection
from meshray.protocol.connection import PackedMap, read_coordinator, unpacked

from .coordinator_harness import PATIENCE_S, VERSIONS, Agent, Running, make_mesh, running_mesh, running_server


async def joined(mesh: Running, name: str, **changes: object) -> tuple[EnrolAnswer, Agent]:
    answer = await mesh.client.enrol(mesh.token, name, **changes)
    return answer, await mesh.client.agent(answer.credential)


async def test_the_whole_map_first_then_changes(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        head = await mesh.client.agent(mesh.head.credential)
        assert await head.receive() == "map"
        _, worker = await joined(mesh, "worker")
        assert await worker.receive() == "map"
        # Its own presence may follow as a change.
        known = await worker.until_online("worker", True)
        assert {node.name: node.online for node in known.nodes.values()} == {"head": True, "worker": True}
        assert await head.receive() == "change"
        assert await head.until_online("worker", True) == known


async def test_all_agents_end_with_the_same_map_and_change_by_change(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        head = await mesh.client.agent(mesh.head.credential)
        names = [f"n{number}" for number in range(20)]
        agents = [agent for _, agent in await asyncio.gather(*(joined(mesh, name) for name in names))]
        await mesh.admin("PATCH", "/v1/nodes/n0", {"name": "renamed"})
        wanted = {"head", "renamed", *names[1:]}
        await asyncio.gather(*(agent.until(wanted) for agent in (head, *agents)))
        for agent in (head, *agents):
            while agent.map is not None and agent.map.revision < mesh.server.service.revision:
                await agent.receive()
        assert all(agent.map == head.map for agent in agents)
        kinds = [json.loads(text)["type"] for text in head.texts]
        assert kinds.count("map") == 1


async def test_a_message_is_serialised_once_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_mesh(tmp_path) as mesh:
        agents = [agent for _, agent in [await joined(mesh, f"n{number}") for number in range(10)]]
        for agent in agents:
            await agent.until_online("n9", True)
        counted: list[str] = []

        def counting(message: Struct) -> bytes:
            counted.append("")
            return original(message)

        original = map_messages._encoded
        monkeypatch.setattr(map_messages, "_encoded", counting)
        await mesh.server.service.rename("n0", NodeName("other"))
        for agent in agents:
            await agent.until({"head", "other", *(f"n{number}" for number in range(1, 10))})
        assert len(counted) == 1
        assert len({agent.texts[-1] for agent in agents}) == 1


async def test_a_change_does_not_grow_with_the_mesh(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        head = await mesh.client.agent(mesh.head.credential)
        await head.until({"head"})
        await asyncio.gather(*(mesh.client.enrol(mesh.token, f"n{number}") for number in range(60)))
        await head.until({"head", *(f"n{number}" for number in range(60))})
        await mesh.admin("PATCH", "/v1/nodes/n7", {"name": "other"})
        while '"other"' not in head.texts[-1]:
            await head.receive()
        assert len(head.texts[-1]) < 700


async def test_reports_reach_the_others(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        head = await mesh.client.agent(mesh.head.credential)
        _, worker = await joined(mesh, "worker")
        hello = {"versions": {"ray": "2.61.0"}, "endpoints": ["198.51.100.7:51888"], "listen_port": 51888}
        await head.socket.send_json({"type": "something newer", "x": 1})
        await head.socket.send_json({"type": "hello", **hello})
        await head.socket.send_json({"type": "ray", "instance": "i1"})
        while worker.map is None or worker.map.head is None or worker.map.head.ray_instance != "i1":
            await worker.receive()
        assert worker.map.head.versions.ray == "2.61.0"
        assert worker.map.head.endpoints == (Endpoint("127.0.0.1", 51888), Endpoint("198.51.100.7", 51888))


async def test_the_ports_that_a_node_chose_for_its_ray_reach_the_others(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        head = await mesh.client.agent(mesh.head.credential)
        _, worker = await joined(mesh, "worker")
        await head.until({"head", "worker"})
        for chosen in ({"metrics_export": 8500}, {}):
            await worker.socket.send_json({"type": "hello", "versions": {}, "ray_ports": {**chosen, "gcs": 6380}})
            while head.map is None or (found := head.map.find("worker")) is None or found.ray_ports != chosen:
                await head.receive()
        await worker.socket.send_json({"type": "hello", "versions": {}, "ray_ports": {"metrics_export": 22}})
        assert await worker.until_closed() == connection.CLOSE_BAD_MESSAGE


async def test_a_removed_node_is_notified(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        answer, worker = await joined(mesh, "worker")
        head = await mesh.client.agent(mesh.head.credential)
        await head.until({"head", "worker"})
        await mesh.admin("DELETE", "/v1/nodes/worker")
        assert await worker.until_closed() == connection.CLOSE_NOT_ACCEPTED
        await head.until({"head"})
        again = await mesh.client.agent(answer.credential)
        assert await again.until_closed() == connection.CLOSE_NOT_ACCEPTED
        with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
            await mesh.client.session.ws_connect(f"https://127.0.0.1:{mesh.client.port}/v1/agent", ssl=mesh.client.pin)
        assert (await mesh.client.call("GET", "/v1/agent", credential=answer.credential)).status == 400


async def test_the_newest_connection_wins_and_the_node_stays_online(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        head = await mesh.client.agent(mesh.head.credential)
        answer, first = await joined(mesh, "worker")
        await first.until({"head", "worker"})
        second = await mesh.client.agent(answer.credential)
        await second.until({"head", "worker"})
        assert await first.until_closed() == connection.CLOSE_REPLACED
        # A later change shows that no "offline" came before it.
        await mesh.admin("PATCH", "/v1/nodes/worker", {"name": "other"})
        seen = await head.until({"head", "other"})
        node = seen.find("other")
        assert node is not None
        assert node.online
        await second.socket.close()
        await head.until_online("other", False)


@pytest.mark.parametrize(
    "frame",
    [
        "",
        "not json",
        "[]",
        '{"type": 7}',
        '{"type":"hello","endpoints":["nonsense"]}',
        '{"type":"ray","instance":' + "1}",
    ],
)
async def test_a_bad_frame_ends_that_connection_alone(tmp_path: Path, frame: str) -> None:
    async with running_mesh(tmp_path) as mesh:
        head = await mesh.client.agent(mesh.head.credential)
        _, worker = await joined(mesh, "worker")
        await worker.until({"head", "worker"})
        # Before the frame: a busy coordinator publishes a connection that comes and goes as no change at all.
        await head.until_online("worker", True)
        await worker.socket.send_str(frame)
        assert await worker.until_closed() == connection.CLOSE_BAD_MESSAGE
        await head.until_online("worker", False)


async def test_a_frame_that_is_too_large_or_binary_ends_that_connection(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        answer, worker = await joined(mesh, "worker")
        await worker.until({"head", "worker"})
        await worker.socket.send_str(json.dumps({"type": "hello", "more": "x" * 100_000}))
        assert await worker.until_closed() == connection.CLOSE_TOO_LONG
        worker = await mesh.client.agent(answer.credential)
        await worker.until({"head", "worker"})
        await worker.socket.send_str("x" * 1_000_000)
        # The rest of the frame meets a closed connection, which may hide the code.
        assert await worker.until_closed() in (1006, 1009)
        worker = await mesh.client.agent(answer.credential)
        await worker.until({"head", "worker"})
        await worker.socket.send_bytes(b"{}")
        assert await worker.until_closed() == connection.CLOSE_BAD_MESSAGE


async def test_an_agent_that_does_not_read_is_closed_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(message_writer, "SEND_S", 0.5)
    async with running_mesh(tmp_path) as mesh:
        head = await mesh.client.agent(mesh.head.credential)
        monkeypatch.setattr(mesh.server.service.budgets, "changes_wait_s", lambda *_, **__: 0.0)
        # Every change of this node is a message of 4 KB.
        padding = {f"label-{number:0100}": "x" * 500 for number in range(6)}
        answer = await mesh.client.enrol(mesh.token, "deaf", labels=padding)
        reader, writer = await mesh.client.raw(receive_buffer=8192)
        writer.write(
            f"GET /v1/agent HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            f"Authorization: Bearer {answer.credential}\r\n\r\n".encode()
        )
        assert b"101" in await reader.readline()
        seen = await head.until_online("deaf", True)
        # From here on nothing is read; messages must first fill the buffers in between, some megabytes.
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        for number in range(1, 5000):
            endpoint = Endpoint("198.51.100.7", number)
            await mesh.server.service.reported(answer.node_id, VERSIONS, (endpoint,))
            while seen.nodes[answer.node_id].online and endpoint not in seen.nodes[answer.node_id].endpoints:
                assert await head.receive() == "change"
                assert head.map is not None
                seen = head.map
            if not seen.nodes[answer.node_id].online:
                break
        assert not seen.nodes[answer.node_id].online
        writer.transport.abort()


async def test_ephemeral_nodes_are_removed_automatically(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        head = await mesh.client.agent(mesh.head.credential)
        _, kept = await joined(mesh, "kept")
        _, brief = await joined(mesh, "brief", ephemeral=True)
        await mesh.client.enrol(mesh.token, "starting", ephemeral=True)
        for agent in (kept, brief):
            await agent.until({"head", "kept", "brief", "starting"})
            await agent.socket.close()
        for name in ("kept", "brief"):
            await head.until_online(name, False)
        mesh.clock.ahead = 59
        await mesh.server.service.collect()
        mesh.clock.ahead = 61
        await mesh.server.service.collect()
        await head.until({"head", "kept", "starting"})


async def test_ephemeral_nodes_may_come_back_after_a_restart_of_the_coordinator(tmp_path: Path) -> None:
    home, head, token = make_mesh(tmp_path)
    async with running_server(home, head, token) as mesh:
        back, agent = await joined(mesh, "back", ephemeral=True)
        await agent.until({"head", "back"})
        _, gone = await joined(mesh, "gone", ephemeral=True)
        await gone.until({"head", "back", "gone"})
        revision = mesh.server.service.revision
    async with running_server(home, head, token) as mesh:
        mesh.clock.ahead = 100
        await mesh.server.service.collect()
        agent = await mesh.client.agent(back.credential)
        seen = await agent.until({"head", "back", "gone"})
        assert seen.revision > revision
        mesh.clock.ahead = 125
        await mesh.server.service.collect()
        await agent.until({"head", "back"})


async def test_the_coordinator_ends_soon(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        agents = [agent for _, agent in [await joined(mesh, f"n{number}") for number in range(5)]]
        for agent in agents:
            await agent.receive()
        closing = asyncio.gather(*(agent.until_closed() for agent in agents))
        await asyncio.wait_for(mesh.server.stop(), PATIENCE_S)
        assert set(await closing) == {connection.CLOSE_ENDING}


async def resumed(mesh: Running, credential: str, held: str) -> Agent:
    """Connect an agent that shows this map."""
    url = f"https://127.0.0.1:{mesh.client.port}/v1/agent"
    headers = {"Authorization": f"Bearer {credential}", MAP_HEADER: f"packed fields resume={held}"}
    return Agent(await mesh.client.session.ws_connect(url, headers=headers, ssl=mesh.client.pin, max_msg_size=1 << 25))


async def test_an_agent_that_comes_back_gets_the_difference(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        answer, worker = await joined(mesh, "worker")
        mesh_map = await worker.until_online("worker", True)
        journal = json.loads(worker.texts[0])["journal"]
        await worker.socket.close()
        await mesh.client.enrol(mesh.token, "other")
        again = await resumed(mesh, answer.credential, f"{journal}:{mesh_map.revision}")
        again.map = mesh_map
        await again.until_online("worker", True)
        while again.map.revision != mesh.server.service.revision:
            await again.receive()
        assert [json.loads(text)["type"] for text in again.texts] == ["change"] * len(again.texts)
        assert '"other"' in again.texts[0]
        assert all("public_key" not in text for text in again.texts[1:]), "only changed fields are sent"
        assert again.map.nodes == mesh.server.service.map.nodes


@pytest.mark.parametrize(
    "held", ["", "x", ":", "JOURNAL:", "JOURNAL:-1", "JOURNAL:1", "JOURNAL:99999999", "other:REVISION"]
)
async def test_an_agent_with_another_map_gets_a_whole_one(tmp_path: Path, held: str) -> None:
    async with running_mesh(tmp_path) as mesh:
        answer, worker = await joined(mesh, "worker")
        mesh_map = await worker.until_online("worker", True)
        journal = json.loads(worker.texts[0])["journal"]
        held = held.replace("JOURNAL", journal).replace("REVISION", str(mesh_map.revision))
        again = await resumed(mesh, answer.credential, held)
        assert await again.receive() == "map"


async def test_a_restarted_coordinator_sends_whole_maps(tmp_path: Path) -> None:
    home, head, token = make_mesh(tmp_path)
    async with running_server(home, head, token) as mesh:
        agent = await mesh.client.agent(head.credential)
        mesh_map = await agent.until_online("head", True)
        journal = json.loads(agent.texts[0])["journal"]
    async with running_server(home, head, token) as mesh:
        again = await resumed(mesh, head.credential, f"{journal}:{mesh_map.revision}")
        assert await again.receive() == "map"


async def test_a_large_map_is_packed_once_and_followed_by_what_changed(tmp_path: Path) -> None:
    labels = {f"label-{number:0100}": "x" * 500 for number in range(6)}
    async with running_mesh(tmp_path) as mesh:
        await asyncio.gather(*(mesh.client.enrol(mesh.token, f"w{number}", labels=labels) for number in range(30)))
        packed = []
        for number in range(3):
            answer = await mesh.client.enrol(mesh.token, f"late-{number}")
            agent = await resumed(mesh, answer.credential, "")
            message = read_coordinator((await agent.socket.receive(PATIENCE_S)).data)
            assert isinstance(message, PackedMap)
            packed.append(message.data)
            mesh_map = MeshMap.of(unpacked(message).map).apply(MapChange.of(message.change))
            assert answer.node_id in mesh_map.nodes
            assert mesh_map.find("w29") is not None
        assert len(set(packed)) == 1
        assert len(packed[0]) < 30_000, "thirty entries of 4 KB"
