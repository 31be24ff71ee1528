"""UDP first, the relay where it is dead, and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshray.agent.paths.transport import MODES, SILENCE_S, HubTransport, Mode, parse_mode
from meshray.errors import UsageError


def test_without_a_handshake_it_takes_the_relay_within_three_seconds() -> None:
    begun = HubTransport.start("auto", 100.0)
    assert begun.step(None, False, 102.9).kind == "udp"
    assert begun.step(None, False, 103.0).kind == "wss"


def test_the_session_of_an_agent_before_this_one_counts_only_while_it_is_fresh() -> None:
    begun = HubTransport.start("auto", 1000.0)
    assert begun.step(900.0, False, 1010.0).kind == "udp"
    assert begun.step(810.0, False, 1003.0).kind == "wss"


def test_it_returns_when_udp_is_alive_and_stays() -> None:
    relayed = HubTransport("auto", "wss", 100.0)
    assert relayed.step(101.0, False, 150.0) == relayed
    back = relayed.step(101.0, True, 150.0)
    assert (back.kind, back.since) == ("udp", 150.0)
    # What was heard through the relay is older than the return; nothing new has to come at once.
    assert back.step(101.0, False, 160.0, last_heard=149.0).kind == "udp"


def test_a_hub_that_fell_silent_is_tried_through_the_relay() -> None:
    running = HubTransport.start("auto", 0.0)
    assert running.step(50.0, False, 100.0, last_heard=100.0 - SILENCE_S + 1).kind == "udp"
    assert running.step(50.0, False, 100.0, last_heard=100.0 - SILENCE_S).kind == "wss"


@pytest.mark.parametrize("mode", ["udp", "wss"])
def test_what_a_person_chose_stays(mode: Mode) -> None:
    transport = HubTransport.start(mode, 0.0)
    for udp_alive in (False, True):
        assert transport.step(None, udp_alive, 500.0) == transport
    assert transport.kind == mode


def test_modes_are_parsed() -> None:
    assert tuple(parse_mode(mode) for mode in MODES) == MODES
    with pytest.raises(UsageError, match="no transport"):
        parse_mode("quic")


@given(st.lists(st.tuples(st.sampled_from(["udp works", "udp is blocked"]), st.integers(1, 60)), max_size=12))
def test_it_ends_on_what_works(history: list[tuple[str, int]]) -> None:
    """A hub seen every second, for any history: UDP within seconds of working, never the relay while it does."""
    transport, now = HubTransport.start("auto", 0.0), 0.0
    handshake: float | None = None
    heard: float | None = None
    for world, seconds in history:
        works = world == "udp works"
        for second in range(seconds):
            now += 1
            if works or transport.kind == "wss":
                handshake, heard = now, now
            transport = transport.step(handshake, works and transport.kind == "wss", now, last_heard=heard)
            if works and second > 0:
                assert transport.kind == "udp"
            if not works and second >= SILENCE_S:
                assert transport.kind == "wss"
