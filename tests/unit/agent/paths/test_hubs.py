"""The choice of the hub's address that is dialled."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from meshray.agent.paths.hubs import PATIENCE_S, HubChoice, hub_for, ranked
from meshray.linux.clock import BootSeconds
from meshray.model.address import Endpoint
from meshray.model.node import HUB
from meshray.wireguard.config import REJECT_AFTER_S, is_fresh
from tests.unit.agent.sample import MAP, WORKER_A, WORKER_B, node

A, B, C = (Endpoint(f"192.0.2.{n}", 51888) for n in (1, 2, 3))


def test_starts_with_the_address_at_which_the_coordinator_answered() -> None:
    assert HubChoice.start((A, B, C), "192.0.2.2", 0.0).endpoint == B


def test_proceeds_to_the_next_candidate_only_after_some_silence() -> None:
    choice = HubChoice.start((A, B), "", 100.0)
    assert choice.step(None, BootSeconds(100.0 + PATIENCE_S - 0.1)).endpoint == A
    assert choice.step(None, BootSeconds(100.0 + PATIENCE_S)).endpoint == B


def test_stays_while_handshakes_are_fresh() -> None:
    choice = HubChoice.start((A, B), "", 0.0)
    assert choice.step(last_handshake=BootSeconds(1000.0), now=BootSeconds(1000.0 + REJECT_AFTER_S - 1)).endpoint == A


def test_proceeds_if_handshakes_pass_and_data_does_not() -> None:
    choice = HubChoice.start((A, B), "", 0.0)
    assert choice.step(BootSeconds(100.0), BootSeconds(100.0), dead=True).endpoint == B
    assert choice.step(BootSeconds(100.0), BootSeconds(PATIENCE_S - 0.1), dead=True).endpoint == A


def test_a_changed_list_keeps_the_address_in_use() -> None:
    choice = HubChoice.start((A, B), "", 0.0).with_candidates((C, A), 5.0)
    assert choice.endpoint == A
    assert choice.with_candidates((C,), 6.0).endpoint == C


def test_an_address_that_is_preferred_is_dialled_at_once() -> None:
    choice = HubChoice.start((A, B), "", 0.0)
    assert choice.at(B, 1.0) == HubChoice((A, B), 1, 1.0)
    assert choice.at(C, 1.0) == HubChoice((A, B, C), 2, 1.0)


def test_no_address_at_all() -> None:
    assert HubChoice.start((), "", 0.0).step(None, BootSeconds(100.0)).endpoint is None


@given(st.lists(st.sampled_from([A, B, C]), min_size=1, max_size=3, unique=True), st.floats(0, 1e6))
def test_every_address_is_tried_within_one_round(candidates: list[Endpoint], start: float) -> None:
    choice, tried, now = HubChoice.start(candidates, "", start), set(), start
    for _ in candidates:
        tried.add(choice.endpoint)
        now += PATIENCE_S + 0.001
        choice = choice.step(None, BootSeconds(now))
    assert tried == set(candidates)


def test_a_handshake_is_fresh_for_three_minutes() -> None:
    assert is_fresh(BootSeconds(0.0), BootSeconds(179.0))
    assert not is_fresh(BootSeconds(0.0), BootSeconds(180.0))
    assert not is_fresh(None, BootSeconds(0.0))


@given(st.permutations(["h1", "h2", "h3"]), st.permutations(["h1", "h2", "h3"]), st.integers(0, 3), st.integers(0, 3))
def test_both_sides_of_a_pair_use_the_same_hub(a: list[str], b: list[str], known_to_a: int, known_to_b: int) -> None:
    mine, theirs = tuple(a[:known_to_a]), tuple(b[:known_to_b])
    hubs = {name: node(0, name, id=name, roles=frozenset({HUB})) for name in ("h1", "h2", "h3")}
    one, other = replace(WORKER_A, hubs=mine), replace(WORKER_B, hubs=theirs)
    mesh_map = replace(MAP, nodes={**hubs, one.id: one, other.id: other})
    if set(mine) & set(theirs):
        assert hub_for(one, other, mesh_map.hubs, mine) == hub_for(other, one, mesh_map.hubs, theirs)


def test_a_silent_hub_is_not_listed_and_a_slightly_faster_one_changes_nothing() -> None:
    assert ranked({"h1": 10.0, "h2": 30.0}, ()) == ("h1", "h2")
    assert ranked({"h1": 10.0, "h2": 9.0}, ("h1", "h2")) == ("h1", "h2")
    assert ranked({"h1": 30.0, "h2": 9.0}, ("h1", "h2")) == ("h2", "h1")
    assert ranked({"h1": None, "h2": 90.0}, ("h1", "h2")) == ("h2",)
    assert ranked({"h1": None}, ("h1",)) == ()
