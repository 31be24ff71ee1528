"""Joins that take an address permanently, and joins that return it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from meshray.coordinator.allocation import COOL_DOWN_S
from meshray.coordinator.records import SecretEpoch
from meshray.coordinator.registry import WITHDRAWAL_S, Registry
from meshray.coordinator.replacement import bound
from meshray.coordinator.withdrawal import withdrawn
from meshray.model.address import Endpoint, NodeName

from .people import NOW, enrol, key, new_mesh, online, request, token

FIRST_FREE = IPv4Address("10.99.0.2")


def address(registry: Registry, node_id: str) -> IPv4Address:
    return registry.members[node_id].node.ip


@pytest.mark.parametrize("take_back", [True, False])
def test_an_address_that_never_came_online_is_free_at_once(take_back: bool) -> None:
    registry = new_mesh()
    for number in range(1, 6):
        registry = enrol(registry, request(number))
        assert address(registry, f"id-{number}") == FIRST_FREE
        registry, _, _ = registry.connected(f"id-{number}")  # … and ended before the map arrived.
        registry, _, _ = registry.disconnected(f"id-{number}", NOW)
        registry, _, _ = registry.remove(f"id-{number}", NOW, take_back=take_back)


def test_a_join_that_failed_after_its_agent_was_online_gets_the_address_again_and_no_other_name_does() -> None:
    registry = online(enrol(new_mesh(token(), token("t2")), request(1)), "id-1")
    registry, _, _ = registry.remove("id-1", NOW, take_back=True)
    assert address(enrol(registry, request(2, name="other")), "id-2") == IPv4Address("10.99.0.3")
    assert address(enrol(registry, request(2, token_id="t2")), "id-2") == FIRST_FREE
    for number in range(3, 8):
        registry = online(enrol(registry, request(number)), f"id-{number}")
        assert address(registry, f"id-{number}") == FIRST_FREE
        registry, _, _ = registry.remove(f"id-{number}", NOW, take_back=True)


def test_an_address_that_a_hub_observed_is_not_reassigned_soon() -> None:
    registry = enrol(new_mesh(), request(1))
    registry, _, _ = registry.endpoints_observed("head-id", {"id-1": Endpoint("198.51.100.9", 40001)})
    registry, _, _ = registry.remove("id-1", NOW, take_back=True)
    assert address(enrol(registry, request(2, name="other")), "id-2") == IPv4Address("10.99.0.3")
    assert address(enrol(registry, request(2)), "id-2") == FIRST_FREE


def test_the_address_of_a_removed_node_stays_reserved_for_an_hour() -> None:
    registry = online(enrol(new_mesh(), request(1)), "id-1")
    late, _, _ = registry.remove("id-1", NOW + WITHDRAWAL_S + 1, take_back=True)
    left, _, _ = registry.remove("id-1", NOW)
    for after in (late, left):
        assert address(enrol(after, request(2), NOW + WITHDRAWAL_S + 2), "id-2") != FIRST_FREE


def test_a_token_for_a_name_brings_back_the_address_that_the_name_had() -> None:
    registry = online(enrol(new_mesh(), request(1, name="gpu-1")), "id-1")
    registry, _, _ = registry.remove("id-1", NOW)
    registry, _, _ = bound(registry, token("mine", uses=1, name="gpu-1"), replace_node=False)
    outsider = enrol(registry, request(2, name="gpu-1"))
    assert (outsider.members["id-2"].node.name, address(outsider, "id-2")) == ("gpu-1-2", IPv4Address("10.99.0.3"))
    mine = enrol(outsider, request(3, token_id="mine"))
    assert (mine.members["id-3"].node.name, address(mine, "id-3")) == ("gpu-1", FIRST_FREE)


def test_the_address_of_a_name_is_never_taken_from_a_node_that_has_it_by_now() -> None:
    registry = online(enrol(new_mesh(), request(1, name="gpu-1")), "id-1")
    registry, _, _ = registry.remove("id-1", NOW)
    # It has rested, it was not collected yet, and another node got it.
    registry = enrol(registry, request(2, name="other"), NOW + COOL_DOWN_S)
    assert address(registry, "id-2") == FIRST_FREE
    registry, _, _ = bound(registry, token("mine", uses=1, name="gpu-1"), replace_node=False)
    registry = enrol(registry, request(3, token_id="mine"), NOW + COOL_DOWN_S)
    assert address(registry, "id-3") == IPv4Address("10.99.0.3")


def test_a_static_peer_s_address_rests_although_no_agent_of_it_connects() -> None:
    registry, _, _ = new_mesh().add_static(NodeName("phone"), key(5), "p", NOW)
    registry, _, _ = registry.remove("p", NOW)
    assert address(enrol(registry, request(1)), "id-1") == IPv4Address("10.99.0.3")


def test_a_withdrawn_enrolment_leaves_nothing() -> None:
    registry = enrol(new_mesh(token(uses=1)), request(1))
    after, _, member = withdrawn(registry, "t1", key(1), NOW)
    assert member is not None
    assert (len(after.members), after.tokens["t1"].used, dict(after.freed)) == (1, 0, {})
    again, _, member = withdrawn(after, "t1", key(1), NOW)
    assert (again, member) == (after, None)


def test_only_the_machine_s_own_enrolment_that_never_came_online_is_withdrawn() -> None:
    registry = enrol(new_mesh(token(), token("t2")), request(1))
    assert withdrawn(registry, "t2", key(1), NOW)[2] is None, "another token"
    assert withdrawn(registry, "t1", key(2), NOW)[2] is None, "another key"
    assert withdrawn(registry, "t1", key(0), NOW)[2] is None, "the head"
    assert withdrawn(registry.connected("id-1")[0], "t1", key(1), NOW)[2] is None, "its agent is here"
    away, _, _ = online(registry, "id-1").disconnected("id-1", NOW)
    assert withdrawn(away, "t1", key(1), NOW)[2] is None, "it was up"


def test_the_address_of_a_node_that_never_came_online_goes_to_its_replacement() -> None:
    from .test_replacement import asking, join

    registry = replace(enrol(new_mesh(), request(1, name="low")), epochs=(SecretEpoch.make(1, NOW),))
    registry = enrol(registry, request(2, name="gpu-1"))
    registry, _, _ = registry.remove("id-1", NOW)
    registry, _, _ = bound(registry, token("bound", uses=1, name="gpu-1"), replace_node=True)
    assert address(join(registry, asking(3))[0], "id-3") == IPv4Address("10.99.0.3")
