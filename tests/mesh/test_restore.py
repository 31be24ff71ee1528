"""The coordinator is killed and started on an older copy of its database, as a process, with real agents.

copy ──► three more enrol ──► kill -9 ──► the copy is put back ──► start
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from meshray.client.coordinator import RemovedFromMesh
from meshray.home import Home

from .coordinator_harness import client_of
from .mesh import Member, Mesh, running_mesh, until
from .page_client import Browser

BEFORE, AFTER = ("a", "b"), ("c", "d", "e")


@dataclass
class Coordinator:
    """The real coordinator of a mesh as a separate process, on the mesh's port."""

    home: Home
    port: int
    process: asyncio.subprocess.Process | None = None
    starts: int = 0

    async def start(self) -> None:
        with (self.home.state / "coordinator.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "meshray.coordinator", "--port", str(self.port), "--listen", "127.0.0.1"),
                env={**os.environ, "MESHRAY_HOME": str(self.home.state), "MESHRAY_RUN": str(self.home.run)},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.starts += 1
        await until(lambda: self.log().count("listening on port") == self.starts, "the coordinator listens")

    async def kill(self) -> None:
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGKILL)
            await self.process.wait()

    def log(self) -> str:
        return (self.home.state / "coordinator.log").read_text()


@contextlib.asynccontextmanager
async def mesh_with_process(folder: Path) -> AsyncIterator[tuple[Mesh, Coordinator]]:
    async with running_mesh(folder) as mesh:
        await mesh.server.stop()
        coordinator = Coordinator(mesh.server_home, mesh.port)
        try:
            await coordinator.start()
            await until(mesh.whole, "the head is connected")
            yield mesh, coordinator
        finally:
            await coordinator.kill()


def backup(home: Home, to: Path) -> None:
    """Copy the database like sqlite3's backup, from the files: the coordinator has it open exclusively."""
    copies = to.with_suffix(".files")
    copies.mkdir()
    for file in home.state.glob("coordinator.db*"):
        shutil.copy(file, copies)
    with (
        contextlib.closing(sqlite3.connect(copies / home.database.name)) as source,
        contextlib.closing(sqlite3.connect(to)) as target,
    ):
        source.backup(target)


def plain_copy(home: Home, to: Path) -> None:
    """Copy ``coordinator.db`` alone, without the content of the write-ahead log."""
    shutil.copy(home.database, to)


def put_back(home: Home, copy: Path) -> None:
    for file in home.state.glob("coordinator.db*"):
        file.unlink()
    shutil.copy(copy, home.database)


async def members_online(mesh: Mesh) -> None:
    await until(mesh.whole, "everybody is online again")


def addresses(mesh: Mesh) -> dict[str, str]:
    return {name: str(member.agent.state.me.ip) for name, member in mesh.members.items()}


@pytest.mark.parametrize("copy", [backup, plain_copy])
async def test_nodes_that_the_copy_does_not_know_stay(tmp_path: Path, copy: Callable[[Home, Path], None]) -> None:
    async with mesh_with_process(tmp_path) as (mesh, coordinator):
        for name in BEFORE:
            await mesh.join(name)
        await until(mesh.whole, "two nodes")
        if copy is plain_copy:
            # The log is merged into the database when the coordinator ends.
            assert coordinator.process is not None
            coordinator.process.terminate()
            await coordinator.process.wait()
            await coordinator.start()
            await members_online(mesh)
        copy(mesh.server_home, tmp_path / "copy.db")
        for name in AFTER:
            await mesh.join(name)
        await until(mesh.whole, "five nodes")
        before = addresses(mesh)

        await coordinator.kill()
        put_back(mesh.server_home, tmp_path / "copy.db")
        await coordinator.start()
        # At once: the new node must not get an address of one of the five.
        late = await mesh.join("late")
        await members_online(mesh)

        assert addresses(mesh) == {**before, "late": str(late.agent.state.me.ip)}
        assert len(set(addresses(mesh).values())) == 7
        assert all(not member.task.done() for member in mesh.members.values() if member.task)
        report = " ".join(complaint.text for complaint in mesh.head.agent.state.membership.complaints())
        assert "older copy" in report and "c, d, e" in report
        assert "older copy" in coordinator.log() and "is a member again" in coordinator.log()
        listed = await mesh.head.agent.state.coordinator.call("GET", "/v1/nodes")
        restored = listed["restored"]
        assert isinstance(restored, dict) and restored["added"] == list(AFTER)


async def test_passes_from_before_the_restore_are_revoked(tmp_path: Path) -> None:
    async with mesh_with_process(tmp_path) as (mesh, coordinator):
        head = mesh.head.agent.state.coordinator

        async def invite(name: str) -> str:
            body = {"name": name, "ttl_s": 3600, "level": "admin"}
            return str((await head.call("POST", "/v1/web/passes", body))["secret"])

        async with client_of(mesh.port, head.fingerprint) as client:
            browser = Browser(client)
            await browser.enter(await invite("ana"))
            later, revoked = await invite("bob"), await invite("eve")
            backup(mesh.server_home, tmp_path / "copy.db")
            await head.call("DELETE", "/v1/web/passes/eve")
            assert (await Browser(client).enter(later)).status == 303
            await mesh.join("a")
            await until(mesh.whole, "one node")

            await coordinator.kill()
            put_back(mesh.server_home, tmp_path / "copy.db")
            await coordinator.start()
            # At once: the pass that was used meanwhile must not work until the head's agent has connected.
            assert (await Browser(client).enter(later)).status == 403
            await until(lambda: "passes for the page from before were revoked" in coordinator.log(), "a restore")
            await members_online(mesh)
            assert (await browser.call("GET", "/tokens")).status == 401
            for secret in (later, revoked):
                assert (await Browser(client).enter(secret)).status == 403
            assert (await Browser(client).enter(await invite("ana"))).status == 303


async def test_a_head_that_was_put_back_as_well_believes_the_tickets(tmp_path: Path) -> None:
    async with mesh_with_process(tmp_path) as (mesh, coordinator):
        await mesh.join("a")
        await until(mesh.whole, "one node")
        backup(mesh.server_home, tmp_path / "copy.db")
        shutil.copy(mesh.server_home.map_cache, tmp_path / "map.json")
        await mesh.join("b")
        await until(mesh.whole, "two nodes")
        before = addresses(mesh)

        await mesh.head.kill()
        await coordinator.kill()
        put_back(mesh.server_home, tmp_path / "copy.db")
        shutil.copy(tmp_path / "map.json", mesh.server_home.map_cache)
        head = mesh.reborn("head")
        await coordinator.start()
        head.start()
        await members_online(mesh)

        assert addresses(mesh) == before
        assert "b (10.99.0.3) is a member again" in coordinator.log()


async def test_a_removed_node_stays_removed(tmp_path: Path) -> None:
    async with mesh_with_process(tmp_path) as (mesh, coordinator):
        gone, stays = await mesh.join("gone"), await mesh.join("stays")
        await until(mesh.whole, "two nodes")
        backup(mesh.server_home, tmp_path / "copy.db")
        await gone.kill()
        await mesh.head.agent.state.coordinator.call("DELETE", "/v1/nodes/gone")
        await until(lambda: stays.agent.state.map.find("gone") is None, "the node is gone from the map")
        await until(lambda: mesh.head.agent.state.map.find("gone") is None, "the head knows it")

        # A coordinator that was not restored: the ticket is worthless.
        assert gone.agent.state.enrolment.ticket
        with pytest.raises(RemovedFromMesh):
            await first_message(gone)

        await coordinator.kill()
        put_back(mesh.server_home, tmp_path / "copy.db")
        await coordinator.start()
        await until(lambda: "removed again: gone" in coordinator.log(), "the head's map tells who was removed")
        # The copy still had it; the head's map does not.
        with pytest.raises(RemovedFromMesh):
            await first_message(gone)
        del mesh.members["gone"]
        await members_online(mesh)


async def test_a_node_without_a_ticket_continues_and_reports_it(tmp_path: Path) -> None:
    async with mesh_with_process(tmp_path) as (mesh, coordinator):
        backup(mesh.server_home, tmp_path / "copy.db")
        node = await mesh.join("old")
        await until(mesh.whole, "one node")
        await node.kill()
        await mesh.head.kill()
        await coordinator.kill()
        put_back(mesh.server_home, tmp_path / "copy.db")
        old = mesh.reborn("old", ticket="")
        await coordinator.start()
        old.start()
        await until(lambda: bool(old.agent.state.membership.complaints()), "it says that it is not known")
        assert "does not know this node" in old.agent.state.membership.complaints()[0].text
        assert old.task is not None and not old.task.done() and old.device.state is not None
        assert not old.agent.state.enrolment.taken_out


async def first_message(member: Member) -> None:
    """Open a connection as this node; raise the meaning of its end."""
    link = await member.agent.state.coordinator.open_connection()
    try:
        async for _ in link.messages():
            return
    finally:
        await link.close()
