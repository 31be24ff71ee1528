"""Tokens that are bound to a name, and nodes that another machine replaces."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from meshray.coordinator.admission import ConflictError, UnknownError
from meshray.coordinator.records import DropMember, PutMember, RowChanges, SecretEpoch, TokenRecord
from meshray.coordinator.registry import Registry
from meshray.coordinator.replacement import Replaced, bound, without_replaced
from meshray.coordinator.secret_epochs import enrolled
from meshray.errors import MeshrayError, RefusedError, UsageError
from meshray.model.address import Endpoint, NodeName
from meshray.model.enrol import EnrolRequest
from meshray.model.keys import SigningKey
from meshray.model.node import HEAD, HUB, STATIC
from meshray.protocol.codec import to_json
from tests.unit.model.map_changes import diff

from .people import NOW, accept_all, enrol, key, new_mesh, online, request, token

#: The mesh in which `gpu-1` (id-1) has 10.99.0.2 and `gpu-2` (id-2) has 10.99.0.3.
PLACE = IPv4Address("10.99.0.2")


def two_workers() -> Registry:
    registry = replace(new_mesh(), epochs=(SecretEpoch.make(1, NOW),))
    for number in (1, 2):
        registry = online(enrol(registry, request(number, name=f"gpu-{number}")), f"id-{number}")
        registry, _, _ = enrolled(registry, registry.members[f"id-{number}"], follows=True)
    return enrolled(registry, registry.members["head-id"], follows=True)[0]


def with_token(
    registry: Registry, name: str = "gpu-1", *, token_id: str = "bound", replace_node: bool = False
) -> Registry:
    return bound(registry, token(token_id, uses=1, name=name), replace_node=replace_node)[0]


def asking(number: int, name: str = "some-host", *, token_id: str = "bound", exact: bool = False) -> EnrolRequest:
    return request(number, token_id=token_id, name=name, exact=exact)


def join(registry: Registry, asked: EnrolRequest, now: float = NOW) -> tuple[Registry, RowChanges, Replaced | None]:
    """Join as the coordinator does in one step."""
    registry, gone, replaced = without_replaced(registry, asked, SecretEpoch.make(1, now), now=now, wall=now)
    number = int.from_bytes(asked.public_key.raw, "big")
    registry, rows, _ = registry.enrol(
        asked,
        node_id=f"id-{number}",
        credential_hash=f"c-{number}",
        compare=accept_all,
        now=now,
        address=replaced.member.node.ip if replaced is not None else None,
    )
    return registry, (*gone, *rows), replaced


def code_of(registry: Registry, asked: EnrolRequest) -> str:
    with pytest.raises(MeshrayError) as caught:
        join(registry, asked)
    assert caught.value.hint
    return caught.value.code


def test_the_node_that_joins_with_a_bound_token_gets_its_name() -> None:
    registry, _, replaced = join(with_token(two_workers(), "gpu-3"), asking(3))
    assert registry.members["id-3"].node.name == "gpu-3"
    assert replaced is None
    registry, _, _ = join(with_token(two_workers(), "gpu-3"), asking(3, "gpu-3", exact=True))
    assert registry.members["id-3"].node.name == "gpu-3"


def test_another_name_than_the_token_s_is_refused() -> None:
    for registry in (with_token(two_workers(), "gpu-3"), with_token(two_workers(), replace_node=True)):
        assert code_of(registry, asking(3, "other", exact=True)) == "token_other_name"


def test_a_bound_name_is_kept_for_the_machine_that_has_the_token() -> None:
    registry = with_token(two_workers(), "gpu-3")
    assert code_of(registry, request(4, name="gpu-3", exact=True)) == "name_taken"
    other = enrol(registry, request(4, name="gpu-3"))
    assert other.members["id-4"].node.name == "gpu-3-2"
    assert join(other, asking(3))[0].members["id-3"].node.name == "gpu-3"
    spent, _, _ = registry.revoke_token("bound")
    assert enrol(spent, request(4, name="gpu-3", exact=True)).members["id-4"].node.name == "gpu-3"


def test_a_member_does_not_become_another_by_a_bound_token() -> None:
    registry = with_token(two_workers(), replace_node=True)
    assert code_of(registry, replace(asking(2), public_key=key(2))) == "token_other_name"
    again, _, replaced = join(registry, asking(1))
    assert replaced is None, "the node itself stays itself"
    assert again.members["id-1"].node.ip == PLACE
    assert again.tokens["bound"].used == 0


def test_a_killed_join_comes_back_with_its_bound_token_under_the_name_that_it_has_now() -> None:
    registry, _, _ = join(with_token(two_workers(), "gpu-3"), asking(3))
    again, _, _ = join(registry, asking(3))
    assert again.members["id-3"].node.name == "gpu-3"
    renamed, _, _ = registry.rename("gpu-3", NodeName("big"))
    assert join(renamed, asking(3))[0].members["id-3"].node.name == "big"


@pytest.mark.parametrize("was_online", [True, False])
def test_a_replacement_takes_over_name_and_address_of_the_removed_node(was_online: bool) -> None:
    registry = two_workers()
    # 10.99.0.2 is free and lower: it must be the node's address, not any free one.
    registry, _, _ = registry.remove("id-1", NOW)
    registry = replace(registry, freed={})
    member = registry.members["id-2"]
    registry = replace(registry, members={**registry.members, "id-2": replace(member, had_map=was_online)})
    registry = with_token(registry, "gpu-2", replace_node=True)
    assert "id-2" in registry.members, "not before the new one enrols"
    before = registry.map
    after, rows, replaced = join(registry, asking(7))
    assert replaced is not None
    assert replaced.member.node.id == "id-2"
    assert "id-2" not in after.members
    assert (after.members["id-7"].node.name, after.members["id-7"].node.ip) == ("gpu-2", member.node.ip)
    assert after.tokens["bound"].is_spent
    kinds = [type(row) for row in rows]
    assert kinds.index(DropMember) < kinds.index(PutMember), "name and address are unique in the store"
    # An agent that follows the map receives both in one change.
    assert before.apply(diff(before, after.map)) == after.map


def test_a_replacement_gets_the_address_of_that_node_and_not_an_earlier_one_of_its_name() -> None:
    registry = two_workers()
    # 10.99.0.3 was gpu-1's as well, and, by a clock that was set back since, even later.
    registry, _, _ = registry.rename("gpu-1", NodeName("kept"))
    registry, _, _ = registry.rename("gpu-2", NodeName("gpu-1"))
    registry, _, _ = registry.remove("id-2", NOW + 60)
    registry, _, _ = registry.rename("kept", NodeName("gpu-1"))
    after, _, replaced = join(with_token(registry, replace_node=True), asking(7))
    assert replaced is not None
    assert after.members["id-7"].node.ip == PLACE


def test_a_replacement_that_never_comes_online_does_not_shorten_the_rest_of_the_address() -> None:
    registry, _, _ = join(with_token(two_workers(), replace_node=True), asking(7))
    registry, _, _ = registry.remove("id-7", NOW + 1, take_back=True)
    assert enrol(registry, request(8), NOW + 2).members["id-8"].node.ip != PLACE
    again, _, replaced = join(registry, asking(9), NOW + 2)
    assert (again.members["id-9"].node.name, again.members["id-9"].node.ip) == ("gpu-1", PLACE)
    assert replaced is None, "it was replaced before"


def test_a_replacement_starts_secrets_that_the_old_node_does_not_know() -> None:
    registry = with_token(two_workers(), replace_node=True)
    after, _, replaced = join(registry, asking(7))
    assert replaced is not None
    assert replaced.rotation.started
    assert [epoch.number for epoch in after.epochs] == [1, 2]
    after, _, member = enrolled(after, after.members["id-7"], follows=True)
    assert member.node.secret_epoch == 2


def test_one_token_replaces_one_node_once() -> None:
    registry = with_token(two_workers(), replace_node=True)
    registry = with_token(registry, token_id="second", replace_node=True)
    registry, _, _ = join(registry, asking(7))
    assert code_of(registry, asking(8)) == "token_used_up"
    assert code_of(registry, asking(8, token_id="second")) == "name_taken", "that is another node by now"
    assert registry.members["id-7"].node.name == "gpu-1"


def test_the_token_replaces_the_node_that_its_maker_meant_and_no_other() -> None:
    registry = with_token(two_workers(), replace_node=True)
    registry, _, _ = registry.rename("gpu-1", NodeName("kept"))
    registry, _, _ = registry.rename("gpu-2", NodeName("gpu-1"))
    assert code_of(registry, asking(7)) == "name_taken"
    registry, _, _ = registry.rename("gpu-1", NodeName("gpu-2"))
    registry, _, replaced = join(registry, asking(7))
    assert replaced is None
    assert {member.node.name for member in registry.members.values()} == {"head", "kept", "gpu-2", "gpu-1"}
    assert registry.members["id-7"].node.ip != PLACE


def test_no_request_of_a_joining_machine_replaces_a_node() -> None:
    registry = two_workers()
    plain = enrol(registry, request(7, name="gpu-1"))
    assert plain.members["id-7"].node.name == "gpu-1-2"
    assert code_of(registry, request(7, name="gpu-1", exact=True)) == "name_taken"
    shown = EnrolRequest.from_json({**to_json(request(7, name="gpu-1").form()), "replace": True, "replaces": "id-1"})
    assert join(registry, shown)[2] is None


def test_a_refused_enrolment_replaces_no_node() -> None:
    def refuse(mine: object, head: object) -> None:
        raise MeshrayError("version_mismatch", "they differ", hint="-")

    registry = with_token(two_workers(), replace_node=True)
    room, _, _ = without_replaced(registry, asking(7), SecretEpoch.make(1, NOW), now=NOW, wall=NOW)
    with pytest.raises(MeshrayError, match="differ"):
        room.enrol(asking(7), node_id="n", credential_hash="c", compare=refuse, now=NOW)
    assert "id-1" in registry.members
    revoked, _, _ = registry.revoke_token("bound")
    assert code_of(revoked, asking(7)) == "token_revoked"
    with pytest.raises(RefusedError) as caught:
        without_replaced(registry, replace(asking(7), secret="no"), SecretEpoch.make(1, NOW), now=NOW, wall=NOW)
    assert caught.value.code == "token_unknown"


def test_tokens_cannot_be_bound_to_these_nodes() -> None:
    registry = two_workers()
    registry, _, _ = registry.add_static(NodeName("phone"), key(9), "p", NOW)
    assert registry.members["p"].node.roles == {STATIC}

    def refusal(record: TokenRecord, *, replace_node: bool = True) -> MeshrayError:
        with pytest.raises(MeshrayError) as caught:
            bound(registry, record, replace_node=replace_node)
        assert caught.value.hint
        return caught.value

    for uses in (0, 2):
        assert isinstance(refusal(token(uses=uses, name="gpu-1")), UsageError)
    assert refusal(token(uses=1)).code == "replace_without_name"
    assert isinstance(refusal(token(uses=1, name="nobody")), UnknownError)
    taken = refusal(token(uses=1, name="gpu-1"), replace_node=False)
    assert (taken.code, taken.exit_code) == ("name_taken", 4)
    assert "--replace" in taken.hint
    for name in ("head", "phone"):
        assert refusal(token(uses=1, name=name)).code == "node_not_replaceable"


@pytest.mark.parametrize("role", [HEAD, HUB])
def test_a_node_that_became_head_or_hub_is_not_replaced(role: str) -> None:
    registry = with_token(two_workers(), replace_node=True)
    member = registry.members["id-1"]
    node = replace(member.node, roles=member.node.roles | {role}, endpoints=(Endpoint("192.0.2.9", 1),))
    registry = replace(registry, members={**registry.members, "id-1": replace(member, node=node)})
    with pytest.raises(ConflictError) as caught:
        join(registry, asking(7))
    assert caught.value.code == "node_not_replaceable"
    with pytest.raises(ConflictError):
        with_token(registry, replace_node=True)


def test_a_mesh_with_a_lock_requires_a_signed_removal() -> None:
    registry = two_workers()
    registry = replace(registry, mesh=replace(registry.mesh, lock=SigningKey.generate().public()))
    with pytest.raises(RefusedError) as caught:
        with_token(registry, replace_node=True)
    assert caught.value.code == "removal_not_signed"
    assert "meshray node rm gpu-1 --yes --lock FILE" in caught.value.hint
