"""Marks, tickets, and their consequences, over random histories with restores."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meshray.coordinator.certificate import make_certificate
from meshray.coordinator.records import Member, RowChanges
from meshray.coordinator.registry import Registry
from meshray.coordinator.restore.compare import Evidence, hold_addresses, readmitted, recall, record_mark, verdict
from meshray.coordinator.restore.lineage import Lineage, Mark
from meshray.coordinator.restore.ticket import Seal, Ticket, open_mark, open_ticket, sealed_mark, sealed_ticket
from meshray.errors import MeshrayError
from meshray.model.meshmap import MeshMap
from meshray.protocol.api import Restored
from meshray.protocol.codec import convert, to_json

from .people import NOW, accept_all, key, new_mesh, request, token

SEAL = Seal.from_pem(make_certificate()[1])


def written(registry: Registry, rows: RowChanges) -> Registry:
    """Write as the ledger does."""
    return replace(registry, lineage=registry.lineage.written()) if rows else registry


class Node:
    """One machine, with its agent's stored state."""

    def __init__(self, number: int, member: Member, ticket: Ticket, answer: MeshMap, mark: Mark) -> None:
        self.number = number
        self.node_id = member.node.id
        self.credential = member.credential_hash
        self.ticket = ticket
        self.map = answer
        self.mark = mark
        self.removed = self.was_removed = False


class Histories(RuleBasedStateMachine):
    """A coordinator, its copies and its nodes. The head's map is always the newest, unless it was restored as well."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = 0
        registry = new_mesh(token(uses=0))
        self.registry = replace(registry, lineage=self.new_run(Lineage()))
        self.registry = written(self.registry, (object(),))  # type: ignore[arg-type]
        self.now = NOW
        self.nodes: list[Node] = []
        self.copies: list[Registry] = []
        self.head_map, self.head_mark = self.registry.map, self.registry.lineage.mark(0)
        self.restores = 0
        self.number = 0

    def new_run(self, lineage: Lineage) -> Lineage:
        self.runs += 1
        return replace(lineage, run=f"run{self.runs}")

    def commit(self, registry: Registry, rows: RowChanges) -> None:
        self.now += 1
        self.registry = written(registry, rows)

    def update_head(self) -> None:
        self.head_map, self.head_mark = self.registry.map, self.registry.lineage.mark(self.registry.revision)

    def update_node(self, node: Node) -> None:
        member = self.registry.members[node.node_id]
        node.map, node.mark = self.registry.map, self.registry.lineage.mark(self.registry.revision)
        if node.ticket != Ticket.of(member, node.mark) or node.ticket.mark.timeline != node.mark.timeline:
            node.ticket = Ticket.of(member, node.mark)

    @rule(ephemeral=st.booleans())
    def enrols(self, ephemeral: bool) -> None:
        self.number += 1
        asked = request(self.number, name=f"n{self.number % 3}")
        registry, rows, member = self.registry.enrol(
            asked, node_id=f"id{self.number}", credential_hash=f"c{self.number}", compare=accept_all, now=self.now
        )
        self.commit(registry, rows)
        mark = self.registry.lineage.mark(self.registry.revision)
        self.nodes.append(Node(self.number, member, Ticket.of(member, mark), self.registry.map, mark))
        self.update_head()

    @precondition(lambda self: any(node.node_id in self.registry.members for node in self.nodes))
    @rule(data=st.data())
    def is_removed(self, data: st.DataObject) -> None:
        here = [node for node in self.nodes if node.node_id in self.registry.members]
        node = data.draw(st.sampled_from(here))
        registry, rows, _ = self.registry.remove(node.node_id, self.now)
        self.commit(registry, rows)
        node.removed = node.was_removed = True
        self.update_head()

    @precondition(lambda self: any(node.node_id in self.registry.members for node in self.nodes))
    @rule(data=st.data())
    def is_renamed(self, data: st.DataObject) -> None:
        here = [node for node in self.nodes if node.node_id in self.registry.members]
        node = data.draw(st.sampled_from(here))
        self.number += 1
        name = request(1, name=f"r{self.number}").name
        registry, rows, _ = self.registry.rename(self.registry.members[node.node_id].node.name, name)
        self.commit(registry, rows)
        self.update_node(node)
        self.update_head()

    @rule()
    def is_copied(self) -> None:
        self.copies.append(self.registry)

    @rule()
    def is_started_again(self) -> None:
        lineage = self.registry.lineage
        self.registry = replace(self.registry, lineage=self.new_run(lineage), revision=self.registry.reserved)

    @precondition(lambda self: self.copies)
    @rule(data=st.data(), head_too=st.booleans())
    def is_put_back(self, data: st.DataObject, head_too: bool) -> None:
        copy = data.draw(st.sampled_from(self.copies))
        self.restores += 1
        began = self.now = self.now + 1
        self.registry = replace(copy, lineage=self.new_run(copy.lineage), revision=copy.reserved)
        if head_too:
            self.head_map, self.head_mark = self.registry.map, self.registry.lineage.mark(0)
        # The agent of the coordinator's own machine comes first.
        if not self.registry.lineage.contains(self.head_mark):
            registry, rows, _ = recall(
                self.registry, self.head_map.nodes.values(), self.head_mark, self.now, began=began
            )
            self.commit(registry, rows)
        # Every other node finds the coordinator again before a new node enrols.
        for node in data.draw(st.permutations(self.nodes)):
            self.connects(node)
        self.update_head()

    def connects(self, node: Node) -> None:
        self.now += 1
        member = self.registry.with_credential(node.credential)
        if member is None:
            found = verdict(self.registry, Evidence(node.ticket, node.mark), node.credential)
            if found == "member":
                registry, rows, _ = readmitted(self.registry, node.ticket, self.now)
                self.commit(registry, rows)
                node.removed = False
            else:
                assert found == "removed", "with a ticket the coordinator can always update_node"
                # If one copy forgot the removal, a later copy that is restored may know it again.
                assert node.was_removed, f"{node.node_id} was never removed and is refused"
                node.removed = True
                return
        registry, rows, _ = record_mark(self.registry, node.mark, self.now)
        self.commit(registry, rows)
        node.removed = False
        self.update_node(node)

    @precondition(lambda self: any(node.removed for node in self.nodes))
    @rule(data=st.data())
    def a_removed_node_knocks(self, data: st.DataObject) -> None:
        node = data.draw(st.sampled_from([node for node in self.nodes if node.removed]))
        if self.registry.with_credential(node.credential) is not None:
            return
        found = verdict(self.registry, Evidence(node.ticket, node.mark), node.credential)
        assert found == "removed" or self.restores, "a ticket worked without a restore"

    @invariant()
    def nobody_shares_address_name_or_key(self) -> None:
        nodes = [member.node for member in self.registry.members.values()]
        assert len({node.ip for node in nodes}) == len(nodes)
        assert len({node.name for node in nodes}) == len(nodes)
        assert len({node.public_key for node in nodes}) == len(nodes)

    @invariant()
    def living_nodes_are_members_with_their_assigned_values(self) -> None:
        for node in self.nodes:
            if not node.removed:
                member = self.registry.members[node.node_id]
                assert member.credential_hash == node.credential
                assert member.node.public_key == key(node.number)


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=150, stateful_step_count=20, deadline=None)


def test_a_moment_of_another_future_is_not_in_the_past() -> None:
    copy = Lineage("a", {"a": 3})
    lost = replace(copy, run="b").written().written()
    here = replace(copy, run="c").written().written()
    assert lost.mark(0) == Mark("b", 5, 0) and here.mark(0) == Mark("c", 5, 0)
    assert not here.contains(lost.mark(0)) and not lost.contains(here.mark(0))
    assert here.contains(Mark("a", 3, 9)) and not here.contains(Mark("a", 4, 9))
    assert here.contains(Mark("", 0, 0))


def test_after_a_restore_numbers_continue_above_the_published_ones() -> None:
    registry = replace(new_mesh(), lineage=Lineage("c", {"a": 3}))
    registry, rows, is_new = record_mark(registry, Mark("b", 40, 5000), NOW)
    registry = written(registry, rows)
    assert is_new and registry.revision == 5001 and registry.reserved > 5001
    assert registry.lineage.mark(0).serial == 41
    again, rows, is_new = record_mark(registry, Mark("b", 39, 4999), NOW)
    assert not is_new and rows == () and again is registry


def test_addresses_reported_by_another_node_are_not_reassigned_soon() -> None:
    registry = new_mesh(token(uses=0))
    other = new_mesh(token(uses=0))
    for number in (1, 2):
        other, _, _ = other.enrol(
            request(number), node_id=f"x{number}", credential_hash="", compare=accept_all, now=NOW
        )
    registry, rows, count = hold_addresses(registry, other.map.nodes.values(), NOW)
    assert count == 2 == len(rows)
    _, _, member = registry.enrol(request(9), node_id="new", credential_hash="c", compare=accept_all, now=NOW + 1)
    assert str(member.node.ip) == "10.99.0.4"


def test_a_modified_ticket_is_rejected() -> None:
    member = next(iter(new_mesh().members.values()))
    ticket = Ticket.of(member, Mark("a", 7, 8))
    text = sealed_ticket(SEAL, ticket)
    found = open_ticket(SEAL, text)
    assert found == ticket and found is not None and found.mark == ticket.mark
    assert "credential" not in repr(ticket) or member.credential_hash not in repr(ticket)
    outsider = Seal.from_pem(make_certificate()[1])
    for wrong in (text[:-2] + "AA", text[2:], "", "ä", "=", sealed_mark(SEAL, ticket.mark)):
        assert open_ticket(SEAL, wrong) is None
    assert open_ticket(outsider, text) is None
    assert open_mark(SEAL, text) is None
    assert open_mark(SEAL, sealed_mark(SEAL, Mark("a", 7, 8))) == Mark("a", 7, 8)


def test_a_ticket_is_of_use_only_with_its_credential() -> None:
    registry = replace(new_mesh(), lineage=Lineage("c", {"a": 3}))
    ticket = replace(Ticket.of(next(iter(registry.members.values())), Mark("b", 9, 9)), node_id="n", public_key=key(5))
    assert verdict(registry, Evidence(ticket, ticket.mark), ticket.credential_hash) == "member"
    assert verdict(registry, Evidence(ticket, ticket.mark), "stolen") == "unknown"
    assert verdict(registry, Evidence(None, Mark("a", 2, 2)), "c") == "removed"
    assert verdict(registry, Evidence(None, None, of_another_form=True), "c") == "unknown"


@pytest.mark.parametrize("damage", [lambda v: v.pop("added"), lambda v: v.update(serial="x")])
def test_a_restore_is_read_back(damage: Callable[[dict[str, object]], object]) -> None:
    restored = Restored(1.5, 7, True, 3, ("a",), ("b", "c"))
    value = json.loads(json.dumps(to_json(restored)))
    assert convert(value, Restored) == restored
    damage(value)
    with pytest.raises((KeyError, ValueError, TypeError, MeshrayError)):
        convert(value, Restored)


def test_a_node_removed_after_the_backup_stays_removed_and_is_notified() -> None:
    past = Histories()
    past.enrols(ephemeral=False)
    copy, removed = past.registry, past.nodes[0]
    past.enrols(ephemeral=False)
    past.update_node(removed)
    past.is_started_again()
    registry, rows, _ = past.registry.remove(removed.node_id, past.now)
    past.commit(registry, rows)
    past.update_head()
    put_back = replace(copy, lineage=past.new_run(copy.lineage), revision=copy.reserved)
    registry, _, _ = recall(put_back, past.head_map.nodes.values(), past.head_mark, NOW, began=past.now + 1)
    assert registry.with_credential(removed.credential) is None
    assert verdict(registry, Evidence(removed.ticket, removed.mark), removed.credential) == "removed"
    outsider = replace(removed.mark, serial=removed.mark.serial + 100)
    assert verdict(registry, Evidence(removed.ticket, outsider), removed.credential) == "unknown"
