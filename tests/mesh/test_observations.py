"""The agents' reports about their paths reach the coordinator, and are forgotten with their nodes."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from meshray.coordinator.observations import Observations
from meshray.model.path import PathKind
from meshray.protocol.connection import PathReport
from tests.mesh.mesh import Member, Mesh, running_mesh, until


def observed(mesh: Mesh) -> Observations:
    return mesh.server.service.observations


def report(mesh: Mesh, member: Member) -> PathReport | None:
    return observed(mesh).report(member.agent.state.me.id)


async def test_each_agent_reports_its_paths_soon(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        one = await mesh.join("a")
        two = await mesh.join("b")
        head_id = mesh.head.agent.state.me.id
        await until(mesh.whole, "all see all")

        def all_reported() -> bool:
            reports = [report(mesh, member) for member in mesh.members.values()]
            return all(found is not None and head_id in {*found.paths, head_id} for found in reports)

        await until(all_reported, "all have reported")
        await until(lambda: head_id in getattr(report(mesh, one), "paths", {}), "the path to the hub is reported")
        mine = report(mesh, one)
        assert mine is not None
        assert mine.paths[head_id].kind == PathKind.DIRECT
        assert mine.paths[head_id].transport is not None
        assert mine.key_since is not None and abs(time.time() - mine.key_since) < 60
        assert two.agent.state.me.id in observed(mesh).nodes


async def test_a_lost_path_is_reported_at_once_and_a_removed_node_is_forgotten(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        one = await mesh.join("a")
        await until(mesh.whole, "all see all")
        head_id, node_id = mesh.head.agent.state.me.id, one.agent.state.me.id
        await until(lambda: head_id in getattr(report(mesh, one), "paths", {}), "the path to the hub is reported")
        # WireGuard forgets the handshake, as after the interface was created again.
        assert one.device.state is not None
        silent = {key: replace(peer, last_handshake=None) for key, peer in one.device.state.peers.items()}
        one.device.state = replace(one.device.state, peers=silent)
        one.agent.state.wake()
        started = time.monotonic()
        await until(lambda: head_id not in getattr(report(mesh, one), "paths", {head_id}), "the loss is reported")
        assert time.monotonic() - started < 2.0
        await mesh.server.service.remove(node_id)
        assert observed(mesh).report(node_id) is None
        assert node_id not in observed(mesh).nodes


async def test_a_new_coordinator_process_gets_all_reports_again(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        one = await mesh.join("a")
        await until(lambda: report(mesh, one) is not None, "it has reported")
        await mesh.server.stop()
        await mesh.restart_coordinator()
        await until(lambda: report(mesh, one) is not None, "it reports again")
