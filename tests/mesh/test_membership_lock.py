"""A compromised coordinator: its changes of the map, and the reaction of the agents' devices.

The attacker has the coordinator's database and process; the agents, their devices and their files are their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from meshray.agent.status.snapshot import snapshot_of
from meshray.coordinator.records import Member as Record
from meshray.coordinator.registry import Registry
from meshray.coordinator.server import Server
from meshray.errors import RefusedError
from meshray.model.address import NodeName
from meshray.model.attestation import Attestation, Removals, signature_text
from meshray.model.keys import PrivateKey, PublicKey, SigningKey
from meshray.model.lock import removal_key
from meshray.model.node import HEAD, HUB, NODE_IDENTITY, STATIC, WORKER, Node
from meshray.model.token import Token

from .mesh import Member, Mesh, running_mesh, until

LOCK = SigningKey.generate()
EVIL = PrivateKey.generate().public()
WITH_AND_WITHOUT = pytest.mark.parametrize("lock", [None, LOCK], ids=["first sight", "lock"])


async def write(mesh: Mesh, change: Callable[[Registry], Registry]) -> int:
    """Write anything, as the attacker; return the map's revision from then on."""

    def step(registry: Registry) -> tuple[Registry, tuple[()], None]:
        changed = change(registry)
        return replace(changed, revision=registry.revision + 1), (), None

    await mesh.server.service._ledger.change(step)
    return mesh.server.service.revision


async def change_node(mesh: Mesh, name: str, **changes: object) -> int:
    def change(registry: Registry) -> Registry:
        member = registry.named(name)
        node = replace(member.node, **changes)  # type: ignore[arg-type]
        return replace(registry, members={**registry.members, node.id: replace(member, node=node)})

    return await write(mesh, change)


async def add_node(mesh: Mesh, node: Node) -> int:
    added = Record(node, "", "", (), 0.0)
    return await write(mesh, lambda registry: replace(registry, members={**registry.members, node.id: added}))


async def heard(mesh: Mesh, revision: int, *names: str) -> None:
    """Return whether the agents have that map, and their devices match it."""
    members = [mesh.members[name] for name in names or mesh.members]

    def all_have() -> bool:
        mesh.shake_hands()
        return all(member.agent.state.published_map.revision >= revision for member in members)

    await until(all_have, "the map came")
    for member in members:
        state, member.agent.state.device = member.agent.state.device, None
        member.agent.state.wake()
        await until(lambda member=member: member.agent.state.device is not None, "looked")  # type: ignore[misc]
        assert state is not None


def peers(member: Member) -> set[PublicKey]:
    assert member.device.state is not None
    return set(member.device.state.peers)


def own_key(member: Member) -> PublicKey:
    return member.agent.keys.private.public()


def faults(member: Member) -> dict[str, str]:
    """Return the faults of the nodes' identities in status, by node."""
    found = snapshot_of(member.agent.sources, None).complaints
    return {problem.node or "": problem.text for problem in found if problem.code == NODE_IDENTITY}


def all_signed(mesh: Mesh) -> bool:
    """Return whether every agent has the signature of every node's key and address."""
    if not mesh.whole():
        return False
    nodes = [node for member in mesh.members.values() for node in member.agent.state.published_map.nodes.values()]
    return all(node.attestation is not None and node.attestation.ip == node.ip for node in nodes)


@WITH_AND_WITHOUT
async def test_a_healthy_mesh_has_nothing_to_report(tmp_path: Path, lock: SigningKey | None) -> None:
    async with running_mesh(tmp_path, lock) as mesh:
        for name in "ab":
            await mesh.join(name)
        await until(lambda: all_signed(mesh), "signed")
        for member in mesh.members.values():
            assert faults(member) == {}
            assert not member.agent.state.pins.unsigned
            assert member.agent.state.map is member.agent.state.published_map
        await mesh.members["a"].agent.keys.rotate()
        await until(lambda: own_key(mesh.members["a"]) in peers(mesh.head), "the new key is used")
        assert faults(mesh.head) == {}


@WITH_AND_WITHOUT
async def test_a_swapped_key_reaches_no_device(tmp_path: Path, lock: SigningKey | None) -> None:
    async with running_mesh(tmp_path, lock) as mesh:
        victim, _ = await mesh.join("victim"), await mesh.join("other")
        await until(lambda: all_signed(mesh), "signed")
        eve = SigningKey.generate()
        shown = victim.agent.state.me.attestation
        assert shown is not None
        await victim.kill()
        for attestation in (
            shown,
            None,
            Attestation.sign(eve, mesh.token.mesh_id, EVIL, counter=99, ip=victim.agent.state.me.ip),
            replace(Attestation.sign(eve, mesh.token.mesh_id, EVIL, counter=99), identity=shown.identity),
        ):
            revision = await change_node(mesh, "victim", public_key=EVIL, attestation=attestation)
            await heard(mesh, revision, "head", "other")
            assert EVIL not in peers(mesh.head)
            assert own_key(victim) in peers(mesh.head), "the node itself is not cut off"
            for member in (mesh.head, mesh.members["other"]):
                assert list(faults(member)) == ["victim"]
                seen = member.agent.state.map.find("victim")
                assert seen is not None
                assert seen.public_key == own_key(victim)
        # Not after a restart of an agent either: the pin is on disk, and the cached map is the forged one.
        await mesh.members["other"].kill()
        other = mesh.reborn("other")
        assert list(faults_of_start(other)) == ["victim"]
        found = other.agent.state.map.find("victim")
        assert found is not None
        assert found.public_key == own_key(victim)
        other.start()
        await until(lambda: other.agent.connection.is_open, "connected")


def faults_of_start(member: Member) -> set[str]:
    return {problem.node or "" for problem in member.agent.state.pins.problems() if problem.code == NODE_IDENTITY}


@WITH_AND_WITHOUT
async def test_an_older_key_does_not_come_back(tmp_path: Path, lock: SigningKey | None) -> None:
    async with running_mesh(tmp_path, lock) as mesh:
        victim = await mesh.join("victim")
        await until(lambda: all_signed(mesh), "signed")
        before = victim.agent.state.me
        await victim.agent.keys.rotate()
        await until(lambda: own_key(victim) in peers(mesh.head) and all_signed(mesh), "the new key is used")
        await victim.kill()
        revision = await change_node(mesh, "victim", public_key=before.public_key, attestation=before.attestation)
        await heard(mesh, revision, "head")
        assert before.public_key not in peers(mesh.head)
        assert own_key(victim) in peers(mesh.head)
        assert list(faults(mesh.head)) == ["victim"]


@WITH_AND_WITHOUT
async def test_another_node_s_address_is_not_taken(tmp_path: Path, lock: SigningKey | None) -> None:
    async with running_mesh(tmp_path, lock) as mesh:
        a, b = await mesh.join("a"), await mesh.join("b")
        await until(lambda: all_signed(mesh), "signed")
        ips = a.agent.state.me.ip, b.agent.state.me.ip

        def swap(registry: Registry) -> Registry:
            one, two = registry.named("a"), registry.named("b")
            changed = {
                one.node.id: replace(one, node=replace(one.node, ip=ips[1])),
                two.node.id: replace(two, node=replace(two.node, ip=ips[0])),
            }
            return replace(registry, members={**registry.members, **changed})

        await heard(mesh, await write(mesh, swap), "head")
        state = mesh.head.device.state
        assert state is not None
        allowed = {key: {str(net) for net in peer.config.allowed_ips} for key, peer in state.peers.items()}
        assert allowed == {own_key(a): {f"{ips[0]}/32"}, own_key(b): {f"{ips[1]}/32"}}
        assert set(faults(mesh.head)) == {"a", "b"}


@WITH_AND_WITHOUT
async def test_a_member_does_not_become_a_hub_or_the_head(tmp_path: Path, lock: SigningKey | None) -> None:
    async with running_mesh(tmp_path, lock) as mesh:
        other = await mesh.join("other")
        await mesh.join("traitor")
        await until(lambda: all_signed(mesh), "signed")
        before = peers(other)
        await heard(mesh, await change_node(mesh, "traitor", roles=frozenset({WORKER, HUB, HEAD})), "head", "other")
        assert [hub.name for hub in other.agent.state.map.hubs] == ["head"]
        assert other.agent.state.map.head is not None
        assert other.agent.state.map.head.name == "head"
        assert peers(other) == before
        assert list(faults(other)) == ["traitor"]
        assert "head and hub" in faults(other)["traitor"]
        assert not mesh.members["traitor"].agent.state.is_hub, "it does not forward either"


def unknown_node(attestation: Attestation | None, *roles: str, ip: str = "10.99.0.77") -> Node:
    return Node("evil", NodeName("evil"), IPv4Address(ip), EVIL, frozenset(roles or (WORKER,)), attestation=attestation)


async def test_with_a_lock_a_node_without_its_signature_reaches_no_device(tmp_path: Path) -> None:
    async with running_mesh(tmp_path, LOCK) as mesh:
        other = await mesh.join("other")
        await until(lambda: all_signed(mesh), "signed")
        before = {name: peers(member) for name, member in mesh.members.items()}
        eve, mesh_id = SigningKey.generate(), mesh.token.mesh_id
        own, theirs = Attestation.sign(eve, mesh_id, EVIL, counter=1), other.agent.state.me.attestation
        assert theirs is not None
        # A token of the attacker, signed by their own lock.
        forged = Token(mesh_id, mesh.token.coordinators, mesh.token.fingerprint, "t", "s").signed(eve, (HUB,), 0)
        for shown in (
            unknown_node(None),
            unknown_node(None, STATIC),
            unknown_node(own),
            unknown_node(own, HUB, WORKER),
            unknown_node(replace(own, chain=theirs.chain), HUB),
            unknown_node(replace(own, chain=forged.endorse(eve.public())), HUB),
            unknown_node(Attestation.sign(eve, mesh_id, EVIL, counter=1, static=True), STATIC),
        ):
            await heard(mesh, await add_node(mesh, shown))
            assert {name: peers(member) for name, member in mesh.members.items()} == before
            for member in mesh.members.values():
                assert list(faults(member)) == ["evil"]
                assert member.agent.state.map.find("evil") is None


async def test_without_a_lock_an_added_node_or_hub_is_detected(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        other = await mesh.join("other")
        await until(lambda: all_signed(mesh), "signed")
        added = Attestation.sign(SigningKey.generate(), mesh.token.mesh_id, EVIL, counter=1)
        await heard(mesh, await add_node(mesh, unknown_node(added, HUB)), "other")
        assert "new hubs, which read what they forward: evil (10.99.0.77)" in " ".join(
            snapshot_of(other.agent.sources, None).notices
        )


async def test_without_a_lock_a_node_that_replaces_another_is_detected(tmp_path: Path) -> None:
    """It is removed, and one of the attacker's comes with its name and its address."""
    async with running_mesh(tmp_path) as mesh:
        victim, other = await mesh.join("victim"), await mesh.join("other")
        await until(lambda: all_signed(mesh), "signed")
        node = victim.agent.state.me
        await victim.kill()

        def without(registry: Registry) -> Registry:
            return replace(registry, members={k: m for k, m in registry.members.items() if k != node.id})

        await write(mesh, without)
        eve = Attestation.sign(SigningKey.generate(), mesh.token.mesh_id, EVIL, counter=1, ip=node.ip)
        forged = replace(node, id="evil", public_key=EVIL, attestation=eve)
        await heard(mesh, await add_node(mesh, forged), "other")
        notices = " ".join(snapshot_of(other.agent.sources, None).notices)
        assert "other identities" in notices
        assert f"victim ({node.ip}) since" in notices


async def test_a_token_without_the_locks_signature_is_refused_before_enrolment(tmp_path: Path) -> None:
    async with running_mesh(tmp_path, LOCK) as mesh:
        with pytest.raises(RefusedError) as caught:
            await mesh.join("eve", token=replace(mesh.token, endorser=None))
        assert caught.value.code == "token_not_signed"
        with pytest.raises(RefusedError) as caught:
            await mesh.join("mallory", token=mesh.token.signed(SigningKey.generate(), (), 0))
        assert caught.value.code == "token_not_signed"
        assert len(mesh.server.service.members()) == 1


async def test_a_node_removed_by_the_lock_does_not_return(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_mesh(tmp_path, LOCK) as mesh:
        gone, other = await mesh.join("gone"), await mesh.join("other")
        await until(lambda: all_signed(mesh), "signed")
        node, service = gone.agent.state.me, mesh.server.service
        removals = Removals.sign(LOCK, mesh.token.mesh_id, 1, [removal_key(node)])
        api = mesh.head.agent.state.coordinator.call
        for wrong in (
            {"epoch": 2, "signature": signature_text(removals.signature)},
            {"epoch": 1, "signature": signature_text(Removals.sign(SigningKey.generate(), "m", 1, []).signature)},
        ):
            with pytest.raises(RefusedError):
                await api("DELETE", "/v1/nodes/gone", {"removal": wrong})
        signed = {"epoch": 1, "signature": signature_text(removals.signature)}
        await api("DELETE", "/v1/nodes/gone", {"removal": signed})
        with pytest.raises(RefusedError):
            await gone.ended()
        del mesh.members["gone"]
        await heard(mesh, service.revision)
        # The attacker adds it again, and hides that it was removed.
        monkeypatch.setattr("meshray.coordinator.service.learned", lambda registry, removals: (registry, (), None))
        revision = await add_node(mesh, replace(node, online=True))
        await write(mesh, lambda registry: replace(registry, removals=None))
        await heard(mesh, revision)
        assert node.public_key not in peers(mesh.head)
        assert list(faults(mesh.head)) == ["gone"]
        await other.kill()
        again = mesh.reborn("other")
        assert again.agent.state.map.find("gone") is None
        again.start()
        await until(lambda: again.agent.connection.is_open, "connected")
        # An honest coordinator that had lost the list gets it back from any node.
        monkeypatch.undo()
        await mesh.server.stop()
        with contextlib.closing(sqlite3.connect(mesh.server_home.database)) as database, database:
            database.execute("DELETE FROM setting WHERE name = 'removals'")
        mesh.server = Server(mesh.server_home, port=mesh.port, hosts=("127.0.0.1",))
        await mesh.server.start()
        assert mesh.server.service.removals() is None
        await until(lambda: mesh.server.service.removals() == removals, "the list is back")


async def test_nodes_of_an_earlier_release_form_a_mesh_and_get_an_identity_at_their_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_mesh(tmp_path) as mesh:
        a = await mesh.join("a")
        await until(lambda: all_signed(mesh), "signed")
        # As an earlier release enrols, and as its agent reports.
        monkeypatch.setattr("meshray.node.identity.Identity.of_node", lambda home, mesh_id: None)
        older = await mesh.join("older")
        await older.kill()
        for path in (older.home.identity_key, older.home.identity):
            path.unlink()
        await change_node(mesh, "older", attestation=None)
        for path in (mesh.head.home.pins, a.home.pins):
            assert path.stat().st_mode & 0o777 == 0o600
        monkeypatch.undo()
        mesh.reborn("older").start()
        await until(lambda: all_signed(mesh), "it has an identity")
        address, key = older.agent.state.me.ip, older.agent.state.me.public_key
        assert (mesh.members["older"].agent.state.me.ip, mesh.members["older"].agent.state.me.public_key) == (
            address,
            key,
        )


async def test_a_mesh_of_nodes_without_identities_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshray.node.identity.Identity.of_node", lambda home, mesh_id: None)
    monkeypatch.setattr("meshray.node.identity.Identity.sign", lambda *arguments: None)
    async with running_mesh(tmp_path) as mesh:
        await asyncio.gather(mesh.join("a"), mesh.join("b"))
        await until(mesh.whole, "whole")
        assert set(mesh.head.agent.state.pins.unsigned) == {"head", "a", "b"}
        assert faults(mesh.head) == {}
        await mesh.members["a"].agent.keys.rotate()
        await until(lambda: own_key(mesh.members["a"]) in peers(mesh.head), "its key changes as before")
