"""A cloned disk: two agents with one identity, over the real coordinator."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from meshray.agent.agent import Agent
from meshray.agent.dependencies import Dependencies
from meshray.agent.state import NodeState
from meshray.agent.status.snapshot import snapshot_of
from meshray.agent.status.status_builder import build_status
from meshray.client.coordinator import TakenOver
from meshray.home import Home
from meshray.model.node import HUB_FORWARDS, ONE_IDENTITY
from meshray.node.enrolment import Enrolment, load_private_key
from meshray.node.map_cache import load_map
from tests.fake_device import FakeDevice

from .mesh import Member, Mesh, running_mesh, until


def clone(mesh: Mesh, name: str) -> Member:
    """Return a machine with a copy of the node's disk; it is not started yet."""
    home = mesh.members[name].home
    copy = Home(home.state.with_name(f"{name}-copy"), home.state.with_name(f"{name}-copy") / "run")
    shutil.copytree(home.state, copy.state, ignore=shutil.ignore_patterns("run"))
    device = FakeDevice()
    return Member(
        copy,
        Agent(NodeState(copy, Enrolment.load(copy), load_map(copy)), load_private_key(copy), Dependencies(device)),
        device,
    )


def faults(member: Member) -> list[str]:
    """Return the health codes about w1's identity in this node's status."""
    status = build_status(snapshot_of(member.agent.sources, None))
    return [problem.code for problem in status.health if problem.code == ONE_IDENTITY and problem.node == "w1"]


async def test_both_machines_and_the_head_report_it_and_leaving_the_copy_resolves_it(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        original, other = await mesh.join("w1"), await mesh.join("w2")
        await until(mesh.whole, "the mesh")
        copy = clone(mesh, "w1")
        copy.start()
        try:
            members = (mesh.head, original, copy)
            await until(lambda: all(faults(member) == [ONE_IDENTITY] for member in members), "all three know")
            # The node's start is refused, on both.
            for member in (original, copy):
                error = await member.agent.state.membership.conflict(lambda member=member: member.agent.state.map)  # type: ignore[misc]
                assert isinstance(error, TakenOver)
                assert "meshray leave --local" in (error.hint or "")
            assert faults(other) == []
            copy.agent.state.membership.given_up = True
            await copy.down()
        finally:
            await copy.kill()

        async def collect() -> None:
            while True:
                await mesh.server.service.collect()
                await asyncio.sleep(0.1)

        collecting = asyncio.get_running_loop().create_task(collect())
        await until(lambda: not faults(mesh.head) and not faults(original), "nobody says so any more")
        collecting.cancel()
        await until(lambda: original.agent.connection.is_open, "the original is connected")
        node = mesh.head.agent.state.map.find("w1")
        assert node is not None
        assert not node.down


async def test_a_restarted_agent_is_not_a_clone(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        await mesh.join("w1")
        await until(mesh.whole, "the mesh")
        for _ in range(3):
            # Killed: the coordinator may still hold its connection when the next one comes.
            await mesh.members["w1"].kill()
            again = mesh.reborn("w1")
            again.start()
            await until(mesh.whole, "the node again")
            assert await again.agent.state.membership.conflict(lambda again=again: again.agent.state.map) is None  # type: ignore[misc]
        assert not faults(mesh.head)


async def test_only_a_hub_reports_that_it_does_not_forward(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        worker = await mesh.join("w1")
        await until(mesh.whole, "the mesh")
        service = mesh.server.service
        text = "forwarding on meshray0 cannot be switched on: Read-only file system\x1b[2J" + "x" * 400
        await service.faults.reported(worker.agent.state.me.id, {HUB_FORWARDS: text, ONE_IDENTITY: "a and b"})
        assert service.members()[1].node.faults == {}
        await service.faults.reported(mesh.head.agent.state.me.id, {HUB_FORWARDS: text, ONE_IDENTITY: "a and b"})
        await until(lambda: bool(worker.agent.state.map.hubs[0].faults), "the map has it")
        (detail,) = worker.agent.state.map.hubs[0].faults.values()
        assert detail.isprintable()
        assert len(detail) == 200
        (problem,) = [
            one for one in build_status(snapshot_of(worker.agent.sources, None)).health if one.code == HUB_FORWARDS
        ]
        assert problem.node == "head"
        assert "on head: mount -o remount,bind,rw /proc/sys && sysctl -w" in problem.fix
        await service.faults.reported(mesh.head.agent.state.me.id, {})
        await until(lambda: not worker.agent.state.map.hubs[0].faults, "it forwards again")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the pauses of `meshray.agent.connection.coordinator_connection`."""
    monkeypatch.setattr("meshray.agent.connection.coordinator_connection._TAKEN_OVER_FIRST_S", 0.3)
    monkeypatch.setattr("meshray.agent.connection.coordinator_connection._TAKEN_OVER_S", 1.0)
    monkeypatch.setattr("meshray.coordinator.takeovers.QUIET_S", 2.0)
