"""Two machines with one identity are distinguished from a restarted agent."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meshray.coordinator.takeovers import MOST_REPLACED, QUIET_S, Takeovers


def test_an_agent_that_was_replaced_and_comes_back_is_another_machine() -> None:
    takeovers = Takeovers()
    assert takeovers.connected("n1", "a", "192.0.2.1", 0.0) == ""
    assert takeovers.connected("n1", "b", "192.0.2.2", 10.0) == ""
    assert takeovers.connected("n1", "a", "192.0.2.1", 12.0) == "192.0.2.2 and 192.0.2.1"
    assert takeovers.connected("n2", "b", "192.0.2.2", 13.0) == ""
    assert takeovers.resolved(12.0 + QUIET_S) == []
    assert takeovers.connected("n1", "b", "192.0.2.2", 30.0) == "192.0.2.1 and 192.0.2.2"
    assert takeovers.resolved(30.0 + QUIET_S + 1) == ["n1"]
    assert takeovers.resolved(30.0 + QUIET_S + 2) == []


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 4)), max_size=20))
def test_restarts_and_reconnects_never_raise_the_alarm(lives: list[tuple[str, int]]) -> None:
    """Each process has an instance of its own and connects as often as its network makes it; none comes back."""
    takeovers, now = Takeovers(), 0.0
    for process, (address, times) in enumerate(lives):
        for _ in range(times):
            now += 1.0
            assert takeovers.connected("n1", f"p{process}", address, now) == ""
    assert takeovers.resolved(now + 1000) == []


def test_an_agent_that_sends_no_instance_is_not_judged() -> None:
    takeovers = Takeovers()
    assert [takeovers.connected("n1", "", f"192.0.2.{n % 2}", float(n)) for n in range(9)] == [""] * 9


def test_giving_up_the_identity_ends_the_conflict() -> None:
    for last in "ab":
        takeovers = Takeovers()
        for now, who in enumerate("abab"[: 3 if last == "a" else 4]):
            takeovers.connected("n1", who, f"192.0.2.{who}", float(now))
        assert takeovers.given_up("n1", "b")
        # The original returns, or is already connected.
        assert takeovers.connected("n1", "a", "192.0.2.a", 10.0) == ""
        assert takeovers.resolved(1000.0) == []
    assert not takeovers.given_up("n9", "a")


def test_the_memory_of_entries_is_bounded() -> None:
    takeovers = Takeovers()
    for number in range(1000):
        takeovers.connected("n1", f"i{number}", "192.0.2.1", float(number) / 100)
    assert len(takeovers._newest["n1"].replaced) <= MOST_REPLACED
    takeovers.forget("n1")
    assert not takeovers._newest
