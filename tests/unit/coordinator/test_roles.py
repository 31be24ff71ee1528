"""Heads and hubs that join, and endpoints of users."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshray.coordinator.admission import ConflictError
from meshray.coordinator.records import TokenRecord
from meshray.coordinator.registry import Registry
from meshray.errors import MeshrayError, RefusedError, UsageError
from meshray.model.address import Endpoint
from meshray.model.endpoints import MAX_ENDPOINTS
from meshray.model.enrol import EnrolRequest
from meshray.model.node import HEAD, HUB, WORKER, Versions
from meshray.protocol.codec import WireError, to_json

from .people import ENDPOINT, NOW, VERSIONS, enrol, new_mesh, request, token

OTHER = Versions("0.1.0", "2.44.0", "3.10.1")


def any_role(token_id: str = "t1", *, uses: int = 0) -> TokenRecord:
    return token(token_id, uses=uses, roles=(HEAD, HUB))


def without_head() -> Registry:
    """Return the result of `init --hub-only`."""
    registry = new_mesh(any_role(), any_role("once", uses=1), token("other"))
    first = registry.named("head")
    node = replace(first.node, roles=first.node.roles - {HEAD}, versions=Versions("0.1.0"))
    return replace(registry, members={first.node.id: replace(first, node=node)})


def asking(number: int, *roles: str, endpoints: tuple[Endpoint, ...] = (), token_id: str = "t1") -> EnrolRequest:
    asked = request(number, name=f"node-{number}", token_id=token_id)
    return replace(asked, roles=frozenset(roles), endpoints=endpoints)


def refuse_all(mine: Versions, head: Versions) -> None:
    raise MeshrayError("version_mismatch", "not the same")


def test_a_head_joins_a_mesh_without_one_and_stops_being_a_worker() -> None:
    registry = enrol(without_head(), asking(1, HEAD))
    head = registry.map.head
    assert head is not None
    assert head.name == "node-1"
    assert head.roles == {HEAD}


def test_workers_may_join_before_the_head_and_are_compared_after_it() -> None:
    registry = enrol(without_head(), replace(asking(1), versions=OTHER))
    registry, _, _ = registry.enrol(asking(2, HEAD), node_id="n", credential_hash="c", compare=refuse_all, now=NOW)
    with pytest.raises(MeshrayError, match="not the same"):
        registry.enrol(asking(3), node_id="n", credential_hash="c", compare=refuse_all, now=NOW)


def test_there_is_one_head() -> None:
    for registry, exit_path in ((new_mesh(any_role()), False), (enrol(without_head(), asking(1, HEAD)), True)):
        with pytest.raises(RefusedError) as caught:
            enrol(registry, asking(2, HEAD))
        assert caught.value.code == "head_exists"
        assert ("meshray node rm" in caught.value.hint) is exit_path


def test_a_head_that_joined_may_leave_and_another_may_come() -> None:
    registry = enrol(without_head(), asking(1, HEAD))
    registry, _, _ = registry.remove("id-1", NOW)
    assert registry.map.head is None
    assert enrol(registry, asking(2, HEAD)).map.head is not None
    with pytest.raises(ConflictError):
        registry.remove("head-id", NOW)


@pytest.mark.parametrize("role", [HEAD, HUB])
def test_only_the_same_token_brings_a_head_or_hub_back(role: str) -> None:
    asked = asking(1, role, endpoints=(ENDPOINT,), token_id="once")
    registry = enrol(enrol(without_head(), asked), asked)
    assert role in registry.members["id-1"].node.roles
    with pytest.raises(RefusedError) as caught:
        enrol(registry, asking(1, token_id="other"))
    assert caught.value.code == "key_taken"


@pytest.mark.parametrize("role", [HEAD, HUB])
def test_a_token_gives_no_role_that_it_was_not_made_for(role: str) -> None:
    other = {HEAD: HUB, HUB: HEAD}[role]
    registry = without_head()
    for granted in ((), (other,)):
        registry, _, _ = registry.add_token(token("plain", roles=granted))
        with pytest.raises(RefusedError) as caught:
            enrol(registry, asking(1, role, endpoints=(ENDPOINT,), token_id="plain"))
        assert caught.value.code == "role_not_granted"
        assert f"meshray token create --{role}" in caught.value.hint
    enrolled = enrol(registry, asking(1, other, endpoints=(ENDPOINT,), token_id="plain"))
    assert other in enrolled.members["id-1"].node.roles


@pytest.mark.parametrize("role", [HEAD, HUB])
def test_no_token_makes_a_member_more_than_it_is(role: str) -> None:
    """Not a spent token that comes once more, and not one that does give the role."""
    registry = enrol(without_head(), asking(1, token_id="once"))
    for token_id in ("once", "t1"):
        with pytest.raises(RefusedError) as caught:
            enrol(registry, asking(1, role, endpoints=(ENDPOINT,), token_id=token_id))
        assert caught.value.code == "role_not_granted"


def test_a_hub_reports_its_endpoints() -> None:
    with pytest.raises(UsageError) as caught:
        enrol(new_mesh(any_role()), asking(1, HUB))
    assert (caught.value.code, "--endpoint" in caught.value.hint) == ("hub_needs_endpoint", True)
    registry = enrol(new_mesh(any_role()), asking(1, HUB, endpoints=(ENDPOINT,)))
    assert [hub.name for hub in registry.map.hubs] == ["head", "node-1"]
    assert registry.members["id-1"].node.roles == {HUB, WORKER}


def test_given_endpoints_come_first_and_outlive_reports() -> None:
    given, found = Endpoint("gpu.example.org", 7000), Endpoint("10.0.0.5", 7000)
    registry = enrol(new_mesh(), asking(1, endpoints=(given, given)))
    assert registry.members["id-1"].node.endpoints == (given,)
    registry, _, _ = registry.reported("id-1", VERSIONS, (found, given))
    assert registry.members["id-1"].node.endpoints == (given, found)
    assert registry.members["id-1"].advertised == (given,)
    registry, _, _ = registry.reported("id-1", VERSIONS, ())
    assert registry.members["id-1"].node.endpoints == (given,)


def test_endpoints_are_bounded() -> None:
    many = tuple(Endpoint("10.0.0.5", port) for port in range(1, 60))
    assert len(enrol(new_mesh(), asking(1, endpoints=many)).members["id-1"].advertised) == MAX_ENDPOINTS


def test_the_wire_form_of_a_request() -> None:
    asked = asking(1, HUB, endpoints=(ENDPOINT, Endpoint("2001:db8::7", 51888)))
    assert EnrolRequest.from_json(to_json(asked.form())) == asked
    older = {key: value for key, value in to_json(asked.form()).items() if key not in ("roles", "endpoints")}
    assert EnrolRequest.from_json(older) == replace(asked, roles=frozenset(), endpoints=())
    with pytest.raises(WireError):
        EnrolRequest.from_json({**to_json(asked.form()), "roles": ["coordinator"]})
    with pytest.raises(UsageError):
        EnrolRequest.from_json({**to_json(asked.form()), "endpoints": ["nowhere"]})
