"""The start and end of an epoch of the mesh's secrets; pairs agree even if messages are lost in between."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from meshray.coordinator import sqlite_store
from meshray.coordinator.admission import ConflictError
from meshray.coordinator.records import DropEpoch, PutEpoch, SecretEpoch, Settings
from meshray.coordinator.registry import Registry
from meshray.coordinator.secret_epochs import (
    KEEP_S,
    enrolled,
    newest,
    reduced,
    reported,
    rotated,
    rotated_without,
    shared_with,
    superseded,
)
from meshray.coordinator.sqlite_store import SqliteStore
from meshray.errors import MeshrayError
from meshray.model.address import NodeName
from meshray.model.epochs import pair_epoch
from meshray.model.keys import MeshSecret
from meshray.model.meshmap import MeshMap
from meshray.node.enrolment import Enrolment
from meshray.raynode.tokens import new_instance
from tests.unit.agent.sample import WORKER_A, enrolment

from .people import MESH, NOW, enrol, key, new_mesh, request

FIRST_EPOCH = SecretEpoch.make(1, NOW)


def fresh(now: float = NOW) -> SecretEpoch:
    return SecretEpoch.make(1, now)


def mesh_of(count: int) -> Registry:
    """Return a head and this many workers, all connected and up to date."""
    registry = replace(new_mesh(), epochs=(FIRST_EPOCH,))
    for number in range(1, count + 1):
        registry = enrol(registry, request(number, name=f"w{number}"))
        registry, _, _ = enrolled(registry, registry.members[f"id-{number}"], follows=True)
    for node_id in list(registry.members):
        registry, _, _ = registry.connected(node_id)
    return registry


def numbers(registry: Registry) -> list[int]:
    return [epoch.number for epoch in registry.epochs]


def test_a_removed_node_does_not_learn_the_new_secrets() -> None:
    registry = mesh_of(2)
    before = shared_with(registry, registry.members["id-2"], NOW)
    registry, rows, (member, rotation) = rotated_without(registry, "id-2", NOW, fresh())
    assert (member.node.name, rotation.epoch, rotation.started, rotation.away) == ("w2", 2, True, ())
    assert any(isinstance(row, PutEpoch) for row in rows)
    after = shared_with(registry, registry.members["id-1"], NOW)
    assert after.mesh[2] not in before.mesh.values()
    assert after.ray[2] not in before.ray.values()
    assert after.mesh[1] == before.mesh[1], "until all report the new one"


def test_an_epoch_ends_when_all_hold_the_next_one() -> None:
    registry, _, _ = rotated(mesh_of(1), fresh())
    assert reduced(registry, NOW)[2] is False
    registry, _, lacks = reported(registry, "id-1", 1)
    assert lacks
    for node_id in ("id-1", "head-id"):
        registry, _, lacks = reported(registry, node_id, 2)
        assert not lacks
    registry, _, _ = registry.ray_started("head-id", new_instance(2))
    registry, rows, dropped = reduced(registry, NOW)
    assert dropped and rows == (DropEpoch(1),)
    assert numbers(registry) == [2]
    assert set(shared_with(registry, registry.members["id-1"], NOW).mesh) == {2}


def test_a_node_that_is_away_holds_up_an_epoch_for_a_day_and_no_longer() -> None:
    registry, _, _ = registry_away(mesh_of(2))
    registry, _, rotation = rotated(registry, fresh())
    assert rotation.away == ("w2",)
    for node_id in ("id-1", "head-id"):
        registry, _, _ = reported(registry, node_id, 2)
    registry, _, _ = registry.ray_started("head-id", new_instance(2))
    assert numbers(reduced(registry, NOW + KEEP_S - 1)[0]) == [1, 2]
    assert numbers(reduced(registry, NOW + KEEP_S)[0]) == [2]


def registry_away(registry: Registry) -> tuple[Registry, object, object]:
    return registry.disconnected("id-2", NOW)


def test_rays_token_stays_for_as_long_as_the_ray_that_has_it() -> None:
    registry = mesh_of(1)
    registry, _, _ = registry.ray_started("head-id", "0123456789abcdef")
    for number in (2, 3):
        registry, _, _ = rotated(registry, fresh())
        for node_id in ("id-1", "head-id"):
            registry, _, _ = reported(registry, node_id, number)
        registry, _, _ = reduced(registry, NOW)
    shared = shared_with(registry, registry.members["id-1"], NOW)
    assert (set(shared.mesh), set(shared.ray)) == ({3}, {1, 3})
    registry, _, _ = registry.ray_started("head-id", new_instance(3))
    registry, _, _ = reduced(registry, NOW)
    assert set(shared_with(registry, registry.members["id-1"], NOW).ray) == {3}
    assert numbers(registry) == [3]


def test_a_head_that_may_be_starting_ray_keeps_the_token_that_it_knows() -> None:
    registry = mesh_of(0)
    registry, _, _ = registry.ray_started("head-id", "0123456789abcdef")
    for _ in range(2):
        registry, _, _ = rotated(registry, fresh())
    registry, _, _ = reported(registry, "head-id", 2)
    assert set(shared_with(registry, registry.members["head-id"], NOW).ray) == {1, 2, 3}


def test_a_static_peer_keeps_the_epoch_of_its_file() -> None:
    registry = mesh_of(1)
    registry, _, peer = registry.add_static(NodeName("phone"), key(50), "phone-id", NOW)
    registry, _, _ = enrolled(registry, peer, follows=False)
    registry, _, rotation = rotated(registry, fresh())
    assert rotation.static == ("phone",)
    for node_id in ("id-1", "head-id"):
        registry, _, _ = reported(registry, node_id, 2)
    registry, _, _ = registry.ray_started("head-id", new_instance(2))
    registry, _, _ = reduced(registry, NOW + 2 * KEEP_S)
    hub = shared_with(registry, registry.members["head-id"], NOW)
    assert (set(hub.mesh), hub.oldest) == ({1, 2}, 2)
    away, _, _ = registry.disconnected("id-1", NOW)
    assert shared_with(away, away.members["id-1"], NOW).oldest == 2, "what is retired does not come back"
    assert set(shared_with(registry, registry.members["id-1"], NOW).mesh) == {2}, "only hubs talk to it"
    assert pair_epoch(2, registry.members["phone-id"].node.secret_epoch, hub.mesh) == 1
    registry, _, (_, rotation) = rotated_without(registry, "phone-id", NOW, fresh())
    assert not rotation.started, "it never knew the mesh secret"
    assert numbers(reduced(registry, NOW)[0]) == [2]


def test_a_node_that_cannot_follow_is_named() -> None:
    registry = mesh_of(2)
    registry, _, _ = reported(registry, "id-1", None)
    with pytest.raises(ConflictError, match="w1") as caught:
        rotated(registry, fresh())
    assert caught.value.code == "agents_too_old"
    registry, _, (_, rotation) = rotated_without(registry, "id-2", NOW, fresh())
    assert (rotation.started, rotation.too_old, numbers(registry)) == (False, ("w1",), [1])
    registry, _, _ = reported(registry, "id-1", 1)
    assert rotated(registry, fresh())[2].epoch == 2


def test_the_last_node_that_cannot_follow_is_removed_and_the_secrets_change() -> None:
    registry, _, _ = reported(mesh_of(2), "id-1", None)
    assert rotated_without(registry, "id-1", NOW, fresh())[2][1].started


def test_a_machine_that_cannot_follow_enrols_only_in_the_first_epoch() -> None:
    registry = mesh_of(0)
    first = enrol(registry, request(7))
    assert enrolled(first, first.members["id-7"], follows=False)[2].node.secret_epoch == 1
    registry, _, _ = rotated(registry, fresh())
    later = enrol(registry, request(8))
    with pytest.raises(MeshrayError) as caught:
        enrolled(later, later.members["id-8"], follows=False)
    assert caught.value.code == "meshray_too_old"
    assert enrolled(later, later.members["id-8"], follows=True)[2].node.secret_epoch == 2


def test_a_copy_that_lost_an_epoch_starts_one_above_it() -> None:
    registry = mesh_of(1)
    assert superseded(registry, 1, fresh())[2] is False
    registry, rows, started = superseded(registry, 5, fresh())
    assert started and rows == (PutEpoch(newest(registry)),)
    assert numbers(registry) == [1, 6]
    registry, _, differs = reported(registry, "id-1", 5)
    assert differs


def test_hundreds_of_removals_leave_few_epochs() -> None:
    registry, _, _ = registry_away(mesh_of(2))
    for _ in range(200):
        registry, _, _ = rotated(registry, fresh())
        registry, _, _ = reported(registry, "head-id", newest(registry).number)
        registry, _, _ = registry.ray_started("head-id", new_instance(newest(registry).number))
        registry, _, _ = reduced(registry, NOW)
    assert len(numbers(registry)) <= 64


def test_epochs_are_stored_and_those_of_an_older_store_are_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, secret = tmp_path / "db", MeshSecret(bytes(32))
    with monkeypatch.context() as patch:
        patch.setattr(sqlite_store, "MIGRATIONS", sqlite_store.MIGRATIONS[:5])
        SqliteStore.create(path, Settings(MESH, 51888)).close()
    with sqlite3.connect(path) as raw:
        raw.execute("INSERT INTO setting VALUES ('mesh_secret', ?)", (secret.reveal(),))
        raw.execute("INSERT INTO setting VALUES ('ray_token', 'ray')")
        row = ("id-1", "w", "10.99.0.2", str(key(1)), '["worker"]', "[]", 0, "{}", "{}", "c", "t1", 1.0, 0, 0, 0, "[]")
        raw.execute(f"INSERT INTO node VALUES ({', '.join('?' * len(row))})", row)
    raw.close()
    file = SqliteStore.open(path)
    registry = file.load()
    assert registry.epochs == (SecretEpoch(1, secret, "ray", 0.0),)
    assert registry.named("w").node.secret_epoch == 1
    assert not registry.named("w").follows_epochs
    registry, rows, _ = reported(registry, "id-1", 1)
    file.apply(rows)
    registry, rows, _ = rotated(registry, fresh())
    file.apply(rows)
    assert file.load().epochs == registry.epochs
    assert file.load().named("w").follows_epochs
    registry, rows, _ = reported(registry, "id-1", 2)
    file.apply((*rows, DropEpoch(1)))
    assert numbers(file.load()) == [2]
    assert file.load().named("w").node.secret_epoch == 2
    file.close()


@dataclass
class FakeAgent:
    """An agent's knowledge: the epochs that it holds, and the last map that it received."""

    enrolment: Enrolment
    map: MeshMap
    #: The coordinator's messages in transit, in order.
    inbox: list[object]

    def epoch_with(self, node_id: str) -> int:
        me, other = self.map.nodes[self.enrolment.node_id], self.map.nodes[node_id]
        return pair_epoch(me.secret_epoch, other.secret_epoch, self.enrolment.mesh_secrets)


class Rotations(RuleBasedStateMachine):
    """A coordinator and three agents. Messages of one connection keep their order; connections break at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.registry = mesh_of(2)
        self.agents = {
            node_id: FakeAgent(
                replace(
                    enrolment(WORKER_A),
                    node_id=node_id,
                    mesh_secret=FIRST_EPOCH.mesh_secret,
                    ray_token="ray",
                    older_ray_tokens={},
                ),
                self.registry.map,
                [],
            )
            for node_id in self.registry.members
        }

    def is_online(self, node_id: str) -> bool:
        return self.registry.members[node_id].node.online

    def publish(self) -> None:
        for node_id, agent in self.agents.items():
            if self.is_online(node_id):
                agent.inbox.append(self.registry.map)

    def send(self, node_id: str) -> None:
        if self.is_online(node_id):
            self.agents[node_id].inbox.append(shared_with(self.registry, self.registry.members[node_id], self.now))

    def report(self, node_id: str) -> None:
        epoch = self.agents[node_id].enrolment.secret_epoch
        self.registry, _, differs = reported(self.registry, node_id, epoch)
        self.publish()
        if differs:
            self.send(node_id)

    def deliver(self, node_id: str) -> None:
        agent = self.agents[node_id]
        message = agent.inbox.pop(0)
        if isinstance(message, MeshMap):
            agent.map = message
            return
        before = agent.enrolment
        agent.enrolment = before.with_secrets(message, agent.map)  # type: ignore[arg-type]
        if agent.enrolment != before:
            self.report(node_id)

    ids = st.sampled_from(["head-id", "id-1", "id-2"])

    @rule(node_id=ids)
    def one_message_arrives(self, node_id: str) -> None:
        if self.agents[node_id].inbox and self.is_online(node_id):
            self.deliver(node_id)

    @rule()
    def secrets_change(self) -> None:
        self.registry, _, _ = rotated(self.registry, fresh(self.now))
        for node_id in self.agents:
            self.send(node_id)

    @rule(node_id=ids)
    def a_connection_breaks(self, node_id: str) -> None:
        self.registry, _, _ = self.registry.disconnected(node_id, self.now)
        self.agents[node_id].inbox.clear()
        self.publish()

    @rule(node_id=ids)
    def an_agent_connects(self, node_id: str) -> None:
        if not self.is_online(node_id):
            self.registry, _, _ = self.registry.connected(node_id)
            self.publish()
            self.send(node_id)
            self.report(node_id)

    @rule(after_s=st.sampled_from([1.0, KEEP_S]))
    def time_goes_by(self, after_s: float) -> None:
        self.now += after_s
        self.registry, _, dropped = reduced(self.registry, self.now)
        if dropped:
            for node_id in self.agents:
                self.send(node_id)

    @rule()
    def all_is_quiet(self) -> None:
        """When nothing is in transit, every pair uses the newest epoch, and no node holds another one."""
        for node_id in self.agents:
            self.an_agent_connects(node_id)
        self._settle()
        self.registry, _, _ = self.registry.ray_started("head-id", new_instance(newest(self.registry).number))
        self.publish()
        self._settle()
        self.time_goes_by(1.0)
        for node_id in self.agents:
            self.send(node_id)
        self._settle()
        last = newest(self.registry)
        for node_id, agent in self.agents.items():
            assert agent.enrolment.mesh_secrets == {last.number: last.mesh_secret}
            assert agent.enrolment.ray_tokens == {last.number: last.ray_token}
            assert all(agent.epoch_with(other) == last.number for other in self.agents if other != node_id)
        assert numbers(self.registry) == [last.number]

    def _settle(self) -> None:
        while any(agent.inbox for agent in self.agents.values()):
            for node_id, agent in self.agents.items():
                if agent.inbox:
                    self.deliver(node_id)
        # If all have the same map, both ends of every pair chose alike.
        for node_id, agent in self.agents.items():
            for other in self.agents:
                if other != node_id and self.is_online(other) and self.is_online(node_id):
                    assert agent.epoch_with(other) == self.agents[other].epoch_with(node_id)


TestRotations = Rotations.TestCase
TestRotations.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
