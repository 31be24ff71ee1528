from __future__ import annotations

import itertools
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from meshray.coordinator.admission import ConflictError, UnknownError
from meshray.coordinator.allocation import COOL_DOWN_S, allocate
from meshray.coordinator.head_environment import environment_of, options_reported
from meshray.coordinator.member_index import TakenAddresses
from meshray.coordinator.records import MOST_REACHED, DropFreed, Freed, PutFreed, PutMember, PutRevision, PutToken
from meshray.coordinator.registry import (
    EPHEMERAL_GRACE_S,
    NEVER_ONLINE_GRACE_S,
    RESTART_GRACE_S,
    WITHDRAWAL_S,
    Registry,
)
from meshray.errors import MeshrayError, RefusedError, UsageError
from meshray.model.address import Endpoint, NodeName, OverlayNetwork
from meshray.model.enrol import EnrolRequest
from meshray.model.environment import Environment
from meshray.model.node import STATIC, WORKER, Versions

from .people import ENDPOINT, MESH, NOW, VERSIONS, accept_all, enrol, key, new_mesh, online, request, token


def refusal(registry: Registry, asked: EnrolRequest, now: float = NOW) -> str:
    with pytest.raises(RefusedError) as caught:
        enrol(registry, asked, now)
    assert caught.value.hint
    return caught.value.code


def test_the_first_node_is_head_hub_and_coordinator_with_the_lowest_address() -> None:
    head = new_mesh().named("head").node
    assert head.ip == IPv4Address("10.99.0.1")
    assert head.roles == {"head", "hub", "coordinator"}
    assert head.endpoints == (ENDPOINT,)


def test_enrolment_returns_the_rows_to_write() -> None:
    registry = new_mesh(token(uses=2))
    registry, rows, member = registry.enrol(
        request(7), node_id="n", credential_hash="c", compare=accept_all, now=NOW + 5
    )
    assert member.node.ip == IPv4Address("10.99.0.2")
    assert member.node.roles == {WORKER}
    assert member.enrolled == NOW + 5
    assert rows[0] == PutMember(member)
    assert isinstance(rows[-1], PutToken)
    assert rows[-1].token.used == 1
    assert registry.with_credential("c") == member
    assert registry.map.find("worker") == member.node


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (request(1, mesh_id="ffff"), "token_other_mesh"),
        (request(1, token_id="no"), "token_unknown"),
        (request(1, secret="wrong"), "token_unknown"),
        (request(1, token_id="expired"), "token_expired"),
        (request(1, token_id="revoked"), "token_revoked"),
        (request(1, name="head", exact=True), "name_taken"),
        (request(0), "key_taken"),
    ],
)
def test_refusals(asked: EnrolRequest, code: str) -> None:
    registry = new_mesh(token(), token("expired", expires=NOW), token("revoked"))
    registry, _, _ = registry.revoke_token("revoked")
    assert refusal(registry, asked) == code


def test_the_last_use_is_spent_once() -> None:
    registry = enrol(new_mesh(token(uses=1)), request(1))
    assert refusal(registry, request(2)) == "token_used_up"


def test_a_token_without_limit_stays_good() -> None:
    registry = new_mesh(token(uses=0))
    for number in range(1, 20):
        registry = enrol(registry, request(number))
    assert registry.tokens["t1"].used == 19


def test_the_same_key_is_the_same_node_and_spends_nothing() -> None:
    registry = enrol(new_mesh(token(uses=1)), request(1))
    before = registry.named("worker")
    registry = enrol(registry, request(1, name="other"), NOW + 60)
    after = registry.named("worker")
    assert (after.node.id, after.node.ip) == (before.node.id, before.node.ip)
    assert after.credential_hash != before.credential_hash
    assert registry.tokens["t1"].used == 1


def test_the_same_key_may_request_another_name() -> None:
    registry = enrol(new_mesh(), request(1))
    registry = enrol(registry, request(1, name="gpu", exact=True))
    assert registry.named("gpu").node.id == "id-1"
    assert refusal(registry, request(1, name="head", exact=True)) == "name_taken"


def test_a_spent_token_with_another_nodes_key_is_refused() -> None:
    registry = new_mesh(token("t1"), token("once", uses=1))
    registry = enrol(enrol(registry, request(1)), request(2, token_id="once"))
    assert refusal(registry, request(1, token_id="once")) == "token_used_up"


def test_a_static_peers_key_cannot_be_taken() -> None:
    registry, _, member = new_mesh().add_static(NodeName("phone"), key(5), "p", NOW)
    assert member.node.roles == {STATIC}
    assert refusal(registry, request(5)) == "key_taken"


def test_the_hint_at_a_taken_name_is_about_the_command_that_was_typed() -> None:
    registry = enrol(new_mesh(), request(1))
    with pytest.raises(RefusedError) as joined:
        enrol(registry, request(2, name="head", exact=True))
    assert joined.value.hint == "head-2 is free: --name head-2"
    with pytest.raises(RefusedError) as added:
        registry.add_static(NodeName("head"), key(5), "p", NOW)
    with pytest.raises(RefusedError) as renamed:
        registry.rename("worker", NodeName("head"))
    assert {added.value.hint, renamed.value.hint} == {"head-2 is free"}


def test_a_taken_name_gets_a_number_unless_it_was_chosen() -> None:
    registry = new_mesh()
    for number in range(1, 4):
        registry = enrol(registry, request(number))
    assert sorted(member.node.name for member in registry.members.values()) == [
        "head",
        "worker",
        "worker-2",
        "worker-3",
    ]
    longest = "x" * 63
    registry = enrol(enrol(registry, request(8, name=longest)), request(9, name=longest))
    assert all(NodeName.parse(member.node.name) for member in registry.members.values())


def test_versions_are_compared_only_for_a_node_with_ray() -> None:
    requests: list[tuple[Versions, Versions]] = []

    def refuse(mine: Versions, head: Versions) -> None:
        requests.append((mine, head))
        raise MeshrayError("version_mismatch", "they differ")

    registry = new_mesh()
    with pytest.raises(MeshrayError, match="differ"):
        registry.enrol(request(1), node_id="n", credential_hash="c", compare=refuse, now=NOW)
    registry.enrol(request(1, with_ray=False), node_id="n", credential_hash="c", compare=refuse, now=NOW)
    assert requests == [(VERSIONS, VERSIONS)]


def test_a_freed_address_rests_for_an_hour() -> None:
    registry = online(enrol(new_mesh(), request(1)), "id-1")
    registry, rows, _ = registry.remove("id-1", NOW)
    assert PutFreed(IPv4Address("10.99.0.2"), Freed(NOW, "worker")) in rows
    early = enrol(registry, request(2), NOW + COOL_DOWN_S - 1)
    assert early.named("worker").node.ip == IPv4Address("10.99.0.3")
    late = enrol(registry, request(2), NOW + COOL_DOWN_S)
    assert late.named("worker").node.ip == IPv4Address("10.99.0.2")


def test_a_join_that_failed_gives_its_use_of_the_token_back_for_a_while() -> None:
    registry = enrol(new_mesh(), request(1))
    used = registry.members["id-1"].token_id
    assert registry.tokens[used].used == 1
    taken_back, rows, _ = registry.remove("id-1", NOW + WITHDRAWAL_S, take_back=True)
    assert taken_back.tokens[used].used == 0
    assert PutToken(taken_back.tokens[used]) in rows
    assert registry.remove("id-1", NOW + WITHDRAWAL_S + 1, take_back=True)[0].tokens[used].used == 1
    assert registry.remove("id-1", NOW)[0].tokens[used].used == 1


def test_an_expired_reservation_is_forgotten() -> None:
    registry = online(enrol(new_mesh(), request(1)), "id-1")
    registry, _, _ = registry.remove("id-1", NOW)
    registry, rows, gone = registry.collect(NOW + COOL_DOWN_S)
    assert rows == (DropFreed(IPv4Address("10.99.0.2")),)
    assert gone == ()
    assert not registry.freed


def test_a_full_network_reports_the_reason() -> None:
    network = OverlayNetwork.parse("10.99.0.0/28")
    addresses = set(network.node_addresses())
    with pytest.raises(MeshrayError, match="no free address left"):
        allocate(network, addresses, {}, NOW)
    rested = IPv4Address("10.99.0.3")
    with pytest.raises(MeshrayError, match="within the past hour"):
        allocate(network, addresses - {rested}, {rested: Freed(NOW - 5)}, NOW)


def test_an_address_is_found_without_a_look_at_all_others() -> None:
    class Counted(dict[IPv4Address, str]):
        looked = 0

        def __contains__(self, address: object) -> bool:
            Counted.looked += 1
            return super().__contains__(address)

    network = OverlayNetwork.parse("10.99.0.0/16")
    addresses = list(itertools.islice(network.node_addresses(), 5000))
    taken = Counted(dict.fromkeys(addresses, ""))
    lowest = TakenAddresses().after(None, addresses[0], taken)
    for gone in (addresses[3], addresses[4000]):
        del taken[gone]
        lowest = lowest.after(gone, None, taken)
    freed = {addresses[3]: Freed(NOW)}
    Counted.looked = 0
    assert allocate(network, taken, freed, NOW, lowest) == addresses[4000]
    assert allocate(network, taken, freed, NOW + COOL_DOWN_S, lowest) == addresses[3]
    taken[addresses[4000]] = ""
    lowest = lowest.after(None, addresses[4000], taken)
    assert allocate(network, taken, freed, NOW, lowest) == addresses[-1] + 1
    assert Counted.looked < 10


@pytest.mark.parametrize("clock", [NOW - 86400, NOW])
def test_a_clock_that_was_set_back_never_shortens_the_rest(clock: float) -> None:
    network = OverlayNetwork.parse("10.99.0.0/16")
    assert allocate(network, set(), {IPv4Address("10.99.0.1"): Freed(NOW)}, clock) == IPv4Address("10.99.0.2")


def test_the_head_cannot_be_removed() -> None:
    with pytest.raises(ConflictError) as caught:
        new_mesh().remove("head-id", NOW)
    assert caught.value.code == "node_is_coordinator"


def test_unknown_names_and_tokens_are_errors() -> None:
    registry = new_mesh()
    with pytest.raises(UnknownError):
        registry.named("nobody")
    with pytest.raises(UnknownError):
        registry.revoke_token("nothing")
    with pytest.raises(UnknownError):
        registry.connected("nobody")


def test_drain_is_for_workers_and_is_kept_over_another_enrolment() -> None:
    registry = enrol(new_mesh(), request(1))
    registry, rows, member = registry.drain("worker", True)
    assert member.node.drained
    assert PutMember(member) in rows
    assert registry.drain("worker", True)[1] == ()
    assert enrol(registry, request(1), NOW + 1).named("worker").node.drained
    assert not registry.drain("worker", False)[2].node.drained
    with pytest.raises(ConflictError):
        registry.drain("head", True)
    with pytest.raises(UnknownError):
        registry.drain("nobody", True)


def test_rename() -> None:
    registry = enrol(new_mesh(), request(1))
    registry, _, member = registry.rename("WORKER", NodeName("gpu"))
    assert member.node.name == "gpu"
    assert registry.rename("gpu", NodeName("gpu"))[1] == ()
    with pytest.raises(RefusedError):
        registry.rename("gpu", NodeName("head"))


def test_presence_is_observed_and_not_stored() -> None:
    registry = enrol(new_mesh(), request(1))
    revision = registry.revision
    registry, rows, _ = registry.connected("id-1")
    assert rows == ()
    assert registry.map.nodes["id-1"].online
    registry, rows, _ = registry.connected("id-1")
    assert registry.revision == revision + 1
    registry, rows, _ = registry.disconnected("id-1", NOW)
    assert (rows, registry.revision) == ((), revision + 2)


def test_advertised_endpoints_precede_reported_ones() -> None:
    other = Endpoint("198.51.100.7", 51888)
    registry, rows, _ = new_mesh().reported("head-id", VERSIONS, (other, ENDPOINT))
    assert registry.members["head-id"].node.endpoints == (ENDPOINT, other)
    newer = Versions("0.1.0", "2.61.0", "3.11.7")
    registry, rows, _ = registry.reported("head-id", newer, ())
    assert isinstance(rows[0], PutMember)
    assert registry.members["head-id"].node.endpoints == (ENDPOINT,)


PUBLIC = Endpoint("203.0.113.60", 51888)


def test_a_hubs_reports_are_stored_and_outdated_ones_dropped() -> None:
    other, newer = Endpoint("198.51.100.7", 51888), Endpoint("198.51.100.8", 51888)
    registry, rows, _ = new_mesh().reported("head-id", VERSIONS, (other,))
    assert any(isinstance(row, PutMember) for row in rows)
    registry, rows, _ = registry.reported("head-id", VERSIONS, (newer,))
    assert registry.members["head-id"].node.endpoints == (ENDPOINT, newer)
    assert any(isinstance(row, PutMember) for row in rows)


def test_a_user_adds_an_address_which_comes_first() -> None:
    other = Endpoint("198.51.100.7", 51888)
    registry, _, _ = new_mesh().reported("head-id", VERSIONS, (other,))
    registry, rows, member = registry.advertise("head-id", (PUBLIC,))
    assert member.node.endpoints == (PUBLIC, ENDPOINT, other)
    assert isinstance(rows[0], PutMember)
    assert registry.advertise("head-id", (PUBLIC,))[1] == ()
    many = tuple(Endpoint(f"198.51.100.{number}", 51888) for number in range(16))
    with pytest.raises(UsageError, match="others take at most 16"):
        registry.advertise("head-id", many)


def test_addresses_used_by_members_are_offered_to_others() -> None:
    registry = enrol(enrol(new_mesh(), request(1)), request(2))

    def say(node: str, reached: str) -> tuple[Endpoint, ...]:
        nonlocal registry
        registry, _, _ = registry.reported(node, VERSIONS, (), (), Endpoint.parse(reached) if reached else None)
        return registry.members["head-id"].node.endpoints

    assert say("id-1", "203.0.113.60:51888") == (ENDPOINT, PUBLIC)
    assert say("id-2", "203.0.113.61:51888") == (ENDPOINT, PUBLIC, Endpoint("203.0.113.61", 51888))
    assert say("id-2", "203.0.113.60:51888") == (ENDPOINT, PUBLIC)
    assert say("id-1", "") == (ENDPOINT, PUBLIC), "another one says so still"
    registry, _, _ = registry.disconnected("id-2", NOW)
    assert registry.members["head-id"].node.endpoints == (ENDPOINT,)
    assert say("id-2", "203.0.113.60:51888") == (ENDPOINT, PUBLIC)
    registry, _, _ = registry.remove("id-2", NOW)
    assert registry.members["head-id"].node.endpoints == (ENDPOINT,)
    for useless in ("127.0.0.1:1", "192.168.1.2:51888", "10.99.0.1:51888", "head:51888", "x.local:1", "[fd00::1]:1"):
        assert say("id-1", useless) == (ENDPOINT,), useless
    assert say("head-id", "203.0.113.60:51888") == (ENDPOINT,), "its own word counts nothing"


def test_many_reporting_nodes_add_few_endpoints_to_the_head() -> None:
    registry = new_mesh()
    for number in range(1, 9):
        registry = enrol(registry, request(number))
        registry, _, _ = registry.reported(f"id-{number}", VERSIONS, (), (), Endpoint(f"203.0.113.{number}", 1))
    assert len(registry.members["head-id"].node.endpoints) == 1 + MOST_REACHED


def test_only_the_head_has_a_ray_instance() -> None:
    registry = enrol(new_mesh(), request(1))
    registry, _, _ = registry.ray_started("id-1", "x")
    registry, _, _ = registry.ray_started("head-id", "y")
    assert [node.ray_instance for node in registry.map.nodes.values()] == ["y", ""]


def ephemeral_node(*, had_map: bool) -> Registry:
    registry = enrol(new_mesh(), request(1, ephemeral=True))
    registry, _, _ = registry.connected("id-1")
    if had_map:
        registry, rows, _ = registry.map_received("id-1")
        assert len(rows) == 1
    return registry


def collected(registry: Registry, now: float) -> bool:
    return bool(registry.collect(now)[2])


def test_an_ephemeral_node_is_collected_a_minute_after_it_went_away() -> None:
    registry = ephemeral_node(had_map=True)
    assert not collected(registry, NOW + 1e6)
    registry, _, _ = registry.disconnected("id-1", NOW)
    assert not collected(registry, NOW + EPHEMERAL_GRACE_S - 1)
    assert collected(registry, NOW + EPHEMERAL_GRACE_S)
    back, _, _ = registry.connected("id-1")
    assert not collected(back, NOW + EPHEMERAL_GRACE_S)


def test_an_ephemeral_node_without_a_map_gets_time_to_start() -> None:
    registry, _, _ = ephemeral_node(had_map=False).disconnected("id-1", NOW)
    assert not collected(registry, NOW + EPHEMERAL_GRACE_S)
    assert collected(registry, NOW + NEVER_ONLINE_GRACE_S)
    assert collected(enrol(new_mesh(), request(1, ephemeral=True)), NOW + NEVER_ONLINE_GRACE_S)


def test_after_a_restart_ephemeral_nodes_get_time_to_come_back() -> None:
    registry = ephemeral_node(had_map=True).restarted(NOW)
    assert not collected(registry, NOW + RESTART_GRACE_S - 1)
    assert collected(registry, NOW + RESTART_GRACE_S)


def test_a_node_that_was_collected_and_its_late_disconnect() -> None:
    registry, _, _ = ephemeral_node(had_map=True).disconnected("id-1", NOW)
    registry, _, _ = registry.collect(NOW + EPHEMERAL_GRACE_S)
    assert registry.disconnected("id-1", NOW)[0] is registry
    assert registry.map_received("id-1")[0] is registry


def test_an_ephemeral_token_makes_ephemeral_nodes() -> None:
    registry = enrol(new_mesh(token(ephemeral=True)), request(1))
    assert registry.named("worker").node.ephemeral


def test_revisions_are_reserved_in_blocks() -> None:
    registry, rows, _ = enrol(new_mesh(), request(1)).connected("id-1")
    assert rows == ()
    reserving = 0
    for number in range(2500):
        step = registry.disconnected("id-1", NOW) if number % 2 == 0 else registry.connected("id-1")
        registry, rows = step[0], step[1]
        reserving += sum(isinstance(row, PutRevision) for row in rows)
    assert reserving == 2
    assert registry.revision <= registry.reserved


def test_only_a_hubs_report_of_an_endpoint_counts() -> None:
    registry = enrol(new_mesh(), request(1))
    worker = registry.members["id-1"].node
    where = Endpoint("198.51.100.9", 40001)
    seen, rows, _ = registry.endpoints_observed("head-id", {worker.id: where, "nobody": where})
    assert (seen.member(worker.id).node.seen, rows) == (where, ())
    assert seen.endpoints_observed("head-id", {worker.id: None})[0].member(worker.id).node.seen is None
    assert registry.endpoints_observed(worker.id, {"head-id": where})[0].member("head-id").node.seen is None


def test_a_node_that_was_taken_down_stays_down_until_it_returns() -> None:
    registry = enrol(new_mesh(token(uses=1)), request(1))
    node_id = registry.named("worker").node.id
    registry, rows, _ = registry.taken_down(node_id)
    assert rows  # It is also known after a restart of the coordinator.
    registry, _, _ = registry.disconnected(node_id, NOW)
    assert registry.named("worker").node.down
    registry, rows, _ = registry.connected(node_id)
    assert not registry.named("worker").node.down
    assert rows


def test_the_ports_that_a_node_chose_are_published_once_and_belong_to_it_alone() -> None:
    registry = enrol(new_mesh(), request(1))
    changed, _, _ = options_reported(registry, "id-1", {"metrics_export": 8500}, no_remote=True)
    assert changed.map.nodes["id-1"].ray_ports == {"metrics_export": 8500}
    assert changed.revision == registry.revision + 1
    assert options_reported(changed, "id-1", {"metrics_export": 8500}, no_remote=True) == (changed, (), None)
    assert options_reported(changed, "id-1", {}, no_remote=False)[0].map.nodes["id-1"].ray_ports == {}
    with pytest.raises(UnknownError):
        options_reported(registry, "nobody", {}, no_remote=False)


def test_a_joining_machine_learns_the_ports_of_the_mesh() -> None:
    registry = replace(new_mesh(), mesh=replace(MESH, ray_ports={"gcs": 6380}))
    answer = Environment.from_json(environment_of(registry).to_json())
    assert answer.ray_ports == {"gcs": 6380}
    assert "ray_ports" not in environment_of(new_mesh()).to_json()
