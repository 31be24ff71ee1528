"""Many real agents and the real coordinator in one process."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from meshray.agent.agent import Agent
from meshray.agent.dependencies import Dependencies
from meshray.agent.state import NodeState
from meshray.client.coordinator import RemovedFromMesh
from meshray.coordinator.certificate import make_certificate
from meshray.errors import MeshrayError
from meshray.node.enrolment import Enrolment, load_private_key
from meshray.node.map_cache import load_map
from meshray.wireguard.plan import plan
from tests.mesh.mesh import running_mesh, until


async def test_twenty_nodes_become_one_mesh(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        await asyncio.gather(*(mesh.join(f"gpu-{n}") for n in range(20)))
        await until(mesh.whole, "all see all")
        addresses = {member.agent.state.me.ip for member in mesh.members.values()}
        assert len(addresses) == 21


async def test_an_absent_coordinator_changes_no_device_and_all_reconnect(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        for name in ("a", "b"):
            await mesh.join(name)
        await until(mesh.whole, "all see all")
        before = {name: len(member.device.applied) for name, member in mesh.members.items()}
        await mesh.server.stop()
        await until(lambda: all(not m.agent.connection.is_open for m in mesh.members.values()), "the links are gone")
        assert {name: len(member.device.applied) for name, member in mesh.members.items()} == before
        await mesh.restart_coordinator()
        await until(lambda: all(m.agent.connection.is_open for m in mesh.members.values()), "all are connected again")
        await until(mesh.whole, "all see all again")


async def test_another_server_at_the_coordinators_address_is_waited_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_mesh(tmp_path) as mesh:
        await mesh.join("a")
        await until(mesh.whole, "all see all")
        files = mesh.server_home.state / "coordinator.crt", mesh.server_home.state / "coordinator.key"
        own = [file.read_text() for file in files]
        for file, text in zip(files, make_certificate(), strict=True):
            file.write_text(text)
        await mesh.members["a"].kill()
        await mesh.restart_coordinator()
        worker = mesh.reborn("a")
        worker.start()
        await until(lambda: "another certificate answered" in caplog.text, "the agent refuses the other certificate")
        for file, text in zip(files, own, strict=True):
            file.write_text(text)
        await mesh.restart_coordinator()
        await until(mesh.whole, "all see all again")
        assert worker.task is not None
        assert not worker.task.done()


async def test_a_killed_agent_comes_back_as_the_same_node_and_touches_nothing(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        worker = await mesh.join("a")
        await until(mesh.whole, "all see all")
        address, device = worker.agent.state.me.ip, worker.device
        await worker.kill()
        await until(
            lambda: not mesh.head.agent.state.map.nodes[worker.agent.state.enrolment.node_id].online, "seen as offline"
        )
        steps = len(device.applied)
        home = worker.home
        again = Agent(
            NodeState(home, Enrolment.load(home), load_map(home)), load_private_key(home), Dependencies(device)
        )
        mesh.members["a"] = replace(worker, agent=again)
        mesh.members["a"].start()
        await until(mesh.whole, "all see all again")
        assert again.state.me.ip == address
        assert len(device.applied) == steps


async def test_a_node_comes_up_from_its_cache_while_the_coordinator_is_away(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        worker = await mesh.join("a")
        await until(mesh.whole, "all see all")
        await worker.kill()
        await mesh.server.stop()
        worker.device.remove()
        home = worker.home
        state = NodeState(home, Enrolment.load(home), load_map(home))
        again = Agent(state, load_private_key(home), Dependencies(worker.device))
        mesh.members["a"] = replace(worker, agent=again)
        mesh.members["a"].start()
        await until(lambda: worker.device.state is not None and worker.device.state.up, "the device is up")
        mesh.shake_hands()
        await until(lambda: again.progress.up, "the node is up")
        await mesh.restart_coordinator()


async def test_a_drifted_device_is_repaired(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        worker = await mesh.join("a")
        await until(mesh.whole, "all see all")
        worker.device.remove()
        worker.agent.state.wake()
        await until(lambda: worker.device.state is not None and bool(worker.device.state.peers), "made again")


async def test_a_removed_node_goes_down_and_does_not_start_again(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        worker = await mesh.join("a")
        await until(mesh.whole, "all see all")
        await mesh.head.agent.state.coordinator.call("DELETE", "/v1/nodes/a")
        with pytest.raises(RemovedFromMesh):
            await worker.ended()
        assert worker.device.state is None
        assert Enrolment.load(worker.home).taken_out
        await until(lambda: not (mesh.head.device.state and mesh.head.device.state.peers), "the hub dropped its key")


async def test_an_ephemeral_node_leaves_when_it_goes_down(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        worker = await mesh.join("step-1", ephemeral=True)
        await until(mesh.whole, "all see all")
        await worker.down()
        assert worker.device.state is None
        await until(lambda: len(mesh.head.agent.state.map.nodes) == 1, "it is gone from the map")


async def test_a_node_that_was_taken_down_is_not_called_lost(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        lost, down = await mesh.join("lost"), await mesh.join("down")
        await until(mesh.whole, "all see all")
        await lost.kill()
        await down.down()

        def gone() -> bool:
            return not any(
                mesh.head.agent.state.map.nodes[who.agent.state.enrolment.node_id].online for who in (lost, down)
            )

        await until(gone, "both are offline")
        seen = mesh.head.agent.state.map.nodes
        assert seen[down.agent.state.enrolment.node_id].down
        assert not seen[lost.agent.state.enrolment.node_id].down


async def test_a_rename_reaches_all_nodes(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        worker = await mesh.join("a")
        await until(mesh.whole, "all see all")
        await mesh.head.agent.state.coordinator.call("PATCH", "/v1/nodes/a", {"name": "renamed"})
        await until(lambda: worker.agent.state.me.name == "renamed", "the new name")


async def test_a_member_is_not_an_admin(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        worker = await mesh.join("a")
        with pytest.raises(MeshrayError) as caught:
            await worker.agent.state.coordinator.call("POST", "/v1/tokens", {"uses": 1})
        assert caught.value.code == "not_admin"


async def test_a_failing_device_is_reported_and_retried(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        worker = await mesh.join("a")
        await until(mesh.whole, "all see all")
        worker.device.failing = MeshrayError("device", "the device is stuck")
        worker.agent.state.wake()
        await asyncio.sleep(0)
        worker.device.failing = None
        await mesh.join("b")
        await until(mesh.whole, "all see all")


async def test_the_same_desired_state_twice_changes_nothing(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        await mesh.join("a")
        await until(mesh.whole, "all see all")
        for member in mesh.members.values():
            desired = member.agent.reconciler.desired(member.device.state)
            assert plan(member.device.state, desired) == ()


async def test_the_head_publishes_its_ray_instance_to_all(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        worker = await mesh.join("a")
        await until(mesh.whole, "all see all")
        mesh.head.agent.report_ray_instance("first-life")

        def is_published() -> bool:
            head = worker.agent.state.map.head
            return head is not None and head.ray_instance == "first-life"

        await until(is_published, "the instance in the map")
        await mesh.restart_coordinator()
        await until(lambda: mesh.head.agent.connection.is_open, "connected again")
        await until(is_published, "the instance in the new map")
