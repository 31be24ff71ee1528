"""The invariants of the registry hold for all operations in any order."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from meshray.coordinator.admission import ConflictError
from meshray.coordinator.allocation import COOL_DOWN_S, allocate
from meshray.coordinator.records import DropMember, PutMember, RowChanges, SecretEpoch
from meshray.coordinator.registry import WITHDRAWAL_S, Registry
from meshray.coordinator.replacement import bound, without_replaced
from meshray.errors import MeshrayError
from meshray.model.meshmap import MeshMap
from meshray.model.node import Node
from meshray.protocol.fields import FIRST_EPOCH
from tests.unit.model.map_changes import diff

from .people import NOW, accept_all, new_mesh, request, token


def lowest_free(registry: Registry, now: float) -> IPv4Address | None:
    """Return the address for a new node, found among all addresses; None if all are used."""
    for address in registry.mesh.network.node_half.hosts():
        entry = registry.freed.get(address)
        if address not in registry.index.addresses and (entry is None or now - entry.at >= COOL_DOWN_S):
            return address
    return None


KEYS = st.integers(0, 12)
TOKENS = {"once": 1, "thrice": 3, "many": 0}


class MeshLife(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        # 6 addresses: exhaustion and reuse happen all the time.
        self.registry: Registry = replace(
            new_mesh(*(token(name, uses=uses) for name, uses in TOKENS.items()), network="10.99.0.0/28"),
            epochs=(SecretEpoch.make(FIRST_EPOCH, NOW),),
        )
        self.stored: dict[str, Node] = {key: member.node for key, member in self.registry.members.items()}
        self.agent: MeshMap = self.registry.map
        #: Of the nodes that came online: when their addresses were freed, under which name, and whether the join
        #: failed.
        self.released: dict[IPv4Address, tuple[float, str, bool]] = {}
        self.is_taken_back = False
        self.came_online: set[str] = set()
        self.enrolled_with = dict.fromkeys(TOKENS, 0)
        self.serial = 0

    def take(self, registry: Registry, rows: RowChanges) -> None:
        for row in rows:
            if isinstance(row, PutMember):
                self.stored[row.member.node.id] = row.member.node
            elif isinstance(row, DropMember):
                left = self.stored.pop(row.node_id)
                if row.node_id in self.came_online:
                    self.released[left.ip] = self.now, left.name, self.is_taken_back
        change = diff(self.agent, registry.map)
        self.agent = self.agent.apply(change)
        self.registry = registry

    @rule(seconds=st.sampled_from([1.0, 59.0, 61.0, COOL_DOWN_S / 2, COOL_DOWN_S]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(number=KEYS, token_id=st.sampled_from(sorted(TOKENS)), exact=st.booleans(), ephemeral=st.booleans())
    def enrol(self, number: int, token_id: str, exact: bool, ephemeral: bool) -> None:
        self.serial += 1
        known = {member.node.public_key: member.node for member in self.registry.members.values()}
        asked = request(number, token_id=token_id, name=f"n{number % 3}", exact=exact, ephemeral=ephemeral)
        try:
            registry, rows, member = self.registry.enrol(
                asked,
                node_id=f"id-{self.serial}",
                credential_hash=f"c-{self.serial}",
                compare=accept_all,
                now=self.now,
            )
        except MeshrayError:
            return
        before = known.get(asked.public_key)
        if before is not None:
            assert (member.node.id, member.node.ip) == (before.id, before.ip)
        else:
            self.enrolled_with[token_id] += 1
            freed_at, name, failed = self.released.get(member.node.ip, (-COOL_DOWN_S, "", False))
            assert self.now - freed_at >= COOL_DOWN_S or (failed and name == member.node.name)
        self.take(registry, rows)

    @rule(number=st.integers(0, 20), take_back=st.booleans())
    def remove(self, number: int, take_back: bool) -> None:
        node_id = sorted(self.registry.members)[number % len(self.registry.members)]
        member = self.registry.members[node_id]
        try:
            registry, rows, _ = self.registry.remove(node_id, self.now, take_back=take_back)
        except MeshrayError:
            assert node_id == "head-id"
            return
        self.is_taken_back = take_back and self.now - member.enrolled <= WITHDRAWAL_S
        if self.is_taken_back and member.token_id in TOKENS:
            self.enrolled_with[member.token_id] -= 1
        self.take(registry, rows)
        self.is_taken_back = False

    @rule(number=st.integers(0, 20))
    def replace_node(self, number: int) -> None:
        old = self.registry.members[sorted(self.registry.members)[number % len(self.registry.members)]].node
        self.serial += 1
        record = token(f"r-{self.serial}", uses=1, name=old.name)
        try:
            registry, rows, _ = bound(self.registry, record, replace_node=True)
        except ConflictError:
            assert old.id == "head-id"
            return
        self.take(registry, rows)
        asked = request(1000 + self.serial, token_id=record.id, name="any")
        fresh = SecretEpoch.make(FIRST_EPOCH, self.now)
        registry, gone, replaced = without_replaced(registry, asked, fresh, now=self.now, wall=self.now)
        assert replaced is not None
        registry, rows, member = registry.enrol(
            asked,
            node_id=f"id-{self.serial}",
            credential_hash=f"c-{self.serial}",
            compare=accept_all,
            now=self.now,
            address=replaced.member.node.ip,
        )
        assert (replaced.member.node.id, member.node.name, member.node.ip) == (old.id, old.name, old.ip)
        self.take(registry, (*gone, *rows))

    @rule(number=st.integers(0, 20), comes=st.booleans(), gets_map=st.booleans())
    def presence(self, number: int, comes: bool, gets_map: bool) -> None:
        node_id = sorted(self.registry.members)[number % len(self.registry.members)]
        if comes:
            registry, rows, _ = self.registry.connected(node_id)
            self.take(registry, rows)
            if gets_map:
                self.came_online.add(node_id)
                registry, rows, _ = self.registry.map_received(node_id)
                self.take(registry, rows)
        else:
            registry, rows, _ = self.registry.disconnected(node_id, self.now)
            self.take(registry, rows)

    @rule()
    def collect(self) -> None:
        registry, rows, gone = self.registry.collect(self.now)
        assert all(member.node.ephemeral and not member.node.online for member in gone)
        self.take(registry, rows)

    @invariant()
    def the_lowest_free_address_is_next(self) -> None:
        try:
            found = allocate(
                self.registry.mesh.network,
                self.registry.index.addresses,
                self.registry.freed,
                self.now,
                self.registry.index.lowest,
            )
        except MeshrayError as error:
            assert error.code == "network_full" and lowest_free(self.registry, self.now) is None
        else:
            assert found == lowest_free(self.registry, self.now)

    @invariant()
    def addresses_names_and_keys_are_unique(self) -> None:
        nodes = [member.node for member in self.registry.members.values()]
        for values in ({n.ip for n in nodes}, {n.name for n in nodes}, {n.public_key for n in nodes}):
            assert len(values) == len(nodes)
        assert all(node.ip in self.registry.mesh.network.node_half for node in nodes)

    @invariant()
    def uses_are_never_overspent(self) -> None:
        for name, uses in TOKENS.items():
            assert self.registry.tokens[name].used == self.enrolled_with[name]
            assert not uses or self.enrolled_with[name] <= uses

    @invariant()
    def the_store_and_the_agents_know_the_same_nodes(self) -> None:
        assert self.agent == self.registry.map
        assert {key: node.ip for key, node in self.stored.items()} == {
            key: member.node.ip for key, member in self.registry.members.items()
        }


TestMeshLife = MeshLife.TestCase
TestMeshLife.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
