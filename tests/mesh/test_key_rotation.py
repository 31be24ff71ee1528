"""A node's key changes, and the node stays the same: real coordinator, real agents, devices in memory.

head (hub, coordinator) ── a
                        └─ b
"""

from __future__ import annotations

import stat
import time
from dataclasses import replace
from pathlib import Path

import pytest

from meshray.agent.agent import Agent
from meshray.agent.dependencies import Dependencies
from meshray.agent.state import NodeState
from meshray.client.coordinator import proven
from meshray.errors import MeshrayError, RefusedError
from meshray.model.keys import PrivateKey
from meshray.model.token import Token
from meshray.node.enrolment import load_private_key, save_private_key

from .coordinator_harness import KEYS, enrol_request, new_key
from .coordinator_harness import running_mesh as coordinator_alone
from .mesh import Member, Mesh, running_mesh, until


def device_key(member: Member) -> PrivateKey | None:
    return member.device.state.private_key if member.device.state is not None else None


def all_know(mesh: Mesh, name: str) -> bool:
    """Return whether every other device that communicates with the node has its current key, and no old one."""
    mesh.shake_hands()
    member = mesh.members[name]
    key = member.agent.keys.private
    if device_key(member) != key or load_private_key(member.home) != key:
        return False
    others = [other for other in mesh.members.values() if other is not member]
    return all(
        other.agent.state.map.nodes[member.agent.state.enrolment.node_id].public_key == key.public() for other in others
    )


async def test_all_nodes_answer_after_the_keys_of_a_worker_and_the_hub_changed(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        a, _ = await mesh.join("a"), await mesh.join("b")
        await until(mesh.whole, "whole")
        for name in ("a", "head"):
            member = mesh.members[name]
            before = load_private_key(member.home)
            answer = await member.agent.keys.rotate()
            await until(lambda name=name: all_know(mesh, name), f"{name}'s key is known")  # type: ignore[misc]
            assert load_private_key(member.home) != before
            assert answer["public_key"] == str(load_private_key(member.home).public())
            assert not member.home.pending_key.exists()
            assert stat.S_IMODE(member.home.private_key.stat().st_mode) == 0o600
            await until(lambda: mesh.whole() and a.agent.paths.hubs.any_answering, "whole again")
        hub = mesh.head.device.state
        assert hub is not None
        assert set(hub.peers) == {mesh.members[name].agent.keys.private.public() for name in "ab"}


async def test_the_head_makes_another_node_change_its_key(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        a = await mesh.join("a")
        await until(mesh.whole, "whole")
        before = a.agent.keys.private
        body = {"nodes": ["a"], "op": "rotate_key"}
        output = await mesh.head.agent.state.coordinator.call("POST", "/v1/ask", body)
        assert a.agent.keys.private != before
        assert output["answers"] == {"a": {"public_key": str(a.agent.keys.private.public())}}
        with pytest.raises(RefusedError):
            await a.agent.state.coordinator.call("POST", "/v1/ask", {"nodes": ["head"], "op": "rotate_key"})


@pytest.mark.parametrize("crash", ["before it was told", "after it was told", "after the map was cached"])
async def test_a_crash_at_any_point_leaves_a_node_that_works(tmp_path: Path, crash: str) -> None:
    async with running_mesh(tmp_path) as mesh:
        a = await mesh.join("a")
        await until(mesh.whole, "whole")
        pending = PrivateKey.generate()
        await a.kill()
        cached = a.agent.state.map
        save_private_key(a.home, pending, pending=True)
        if crash != "before it was told":
            assert a.agent.state.identity is not None
            signed = a.agent.state.identity.sign(pending.public(), a.agent.state.me.ip)
            body = {"public_key": str(pending.public()), "attestation": signed.to_json()}
            await a.agent.state.coordinator.call("POST", "/v1/rotate", body, prove_with=pending)
        if crash == "after the map was cached":
            head, shown = mesh.head.agent, a.agent.state.enrolment.node_id
            await until(lambda: head.state.map.nodes[shown].public_key == pending.public(), "the map shows the key")
            cached = head.state.map
        again = Agent(
            NodeState(a.home, a.agent.state.enrolment, cached), load_private_key(a.home), Dependencies(a.device)
        )
        mesh.members["a"] = Member(a.home, again, a.device)
        mesh.members["a"].start()
        await until(lambda: load_private_key(a.home) == pending, "the pending key is used")
        await until(lambda: mesh.whole() and all_know(mesh, "a"), "whole again")
        assert not a.home.pending_key.exists()


async def test_a_clock_that_is_set_back_changes_the_key_and_one_set_forward_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_mesh(tmp_path) as mesh:
        a = await mesh.join("a")
        await until(mesh.whole, "whole")
        before, real, looked = a.agent.keys.private, time.time, a.agent.state.device
        monkeypatch.setattr("meshray.agent.device.key_rotation.CHECK_S", 0.02)
        monkeypatch.setattr(time, "time", lambda: real() + 3600)
        a.agent.state.wake()
        await until(lambda: a.agent.state.device is not looked, "looked at the device")
        assert a.agent.paths.hubs.any_answering
        assert a.agent.keys.private == before
        monkeypatch.setattr(time, "time", lambda: real() - 3600)
        a.agent.keys.check_map()
        await until(lambda: a.agent.keys.private != before and all_know(mesh, "a"), "a new key")
        await until(mesh.whole, "whole again")


async def test_a_coordinator_with_an_older_state_receives_the_key(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        a = await mesh.join("a")
        await until(mesh.whole, "whole")
        await a.agent.keys.rotate()
        await until(lambda: all_know(mesh, "a"), "rotated")
        # The key that an older copy of the database would show.
        older = PrivateKey.generate().public()
        a.agent.keys._not_before = 0.0
        member = next(one for one in mesh.server.service.members() if one.node.name == "a")
        shown = replace(member, node=replace(member.node, public_key=older))
        await mesh.server.service._ledger.change(lambda registry: registry.put(shown))
        await until(lambda: all_know(mesh, "a"), "the key is told again")


async def test_a_node_with_a_new_key_is_identified_by_that_key_only(tmp_path: Path) -> None:
    async with coordinator_alone(tmp_path) as mesh:
        first = enrol_request(mesh.token, "w")
        enrolled = (await mesh.client.call("POST", "/v1/enroll", first)).body
        credential, key = str(enrolled["credential"]), new_key()
        hello = await mesh.client.hello()
        other = await mesh.client.enrol(mesh.token, "other")
        taken = str(other.map.nodes[other.node_id].public_key)

        async def rotate(named: str, prove_with: str) -> tuple[int, object]:
            body = {"public_key": named}
            shown = proven(hello, "/v1/rotate", body, KEYS[prove_with])
            reply = await mesh.client.call("POST", "/v1/rotate", shown, credential)
            return reply.status, reply.body.get("error", {}).get("code", "")  # type: ignore[attr-defined]

        assert await rotate(key, new_key()) == (403, "proof_wrong")
        assert await rotate(taken, taken) == (409, "key_taken")
        assert await rotate(key, key) == (409, "hub_away"), "nobody would let the node in again"
        hub = await mesh.client.agent(mesh.head.credential)
        await hub.until_online("head", True)
        assert await rotate(key, key) == (200, "")
        assert await rotate(key, key) == (200, ""), "an answer that was lost is asked for again"
        again = await mesh.client.call("POST", "/v1/enroll", {**first, "public_key": key})
        assert again.body["node_id"] == enrolled["node_id"]
        outsider = await mesh.client.call("POST", "/v1/enroll", first)
        assert outsider.body["node_id"] != enrolled["node_id"], "the old key is nobody's any more"


async def test_a_hub_with_static_peers_keeps_its_key(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        await mesh.head.agent.state.coordinator.call("POST", "/v1/peers", {"name": "phone"})
        before = load_private_key(mesh.head.home)
        with pytest.raises(MeshrayError, match="static peers phone") as caught:
            await mesh.head.agent.keys.rotate()
        assert caught.value.code == "has_static_peers"
        assert load_private_key(mesh.head.home) == before
        assert not mesh.head.home.pending_key.exists()


async def test_setting_the_coordinators_clock_only_expires_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, ahead_s = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + ahead_s[0])
    async with running_mesh(tmp_path) as mesh:
        gone, away = await mesh.join("gone"), await mesh.join("away", ephemeral=True)
        await until(mesh.whole, "whole")
        freed = gone.agent.state.me.ip
        await mesh.head.agent.state.coordinator.call("DELETE", "/v1/nodes/gone")
        await away.kill()
        del mesh.members["away"], mesh.members["gone"]
        service = mesh.server.service
        await until(lambda: not any(m.node.online for m in service.members() if m.node.name == "away"), "away")
        ahead_s[0] = 7200.0
        await service.collect()
        assert "away" in {member.node.name for member in service.members()}
        assert (await mesh.join("new")).agent.state.me.ip != freed
        made = await mesh.head.agent.state.coordinator.call("POST", "/v1/tokens", {"ttl_s": 3600})
        ahead_s[0] += 3601.0
        with pytest.raises(RefusedError) as caught:
            await mesh.join("late", token=Token.parse(str(made["token"])))
        assert caught.value.code == "token_expired"
