"""UDP first, the relay if UDP fails, and back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshray.agent.paths.hub_transport import (
    FIRST_HOLD_S,
    FIRST_LIMIT_HOLD_S,
    HANDSHAKE_PATIENCE_S,
    LONGEST_HOLD_S,
    LONGEST_LIMIT_HOLD_S,
    OUTAGE_S,
    RELAPSE_S,
    HubTransport,
)
from meshray.agent.paths.liveness import DEAD_AFTER, LARGE_EVERY_S, Liveness, only_handshakes
from meshray.errors import UsageError
from meshray.linux.clock import BootSeconds
from meshray.model.path import MODES, Mode, Transport, parse_mode


def test_without_a_handshake_it_takes_the_relay_within_three_seconds() -> None:
    begun = HubTransport.start("auto", 100.0)
    assert begun.step(None, False, BootSeconds(102.9)).kind == "udp"
    assert begun.step(None, False, BootSeconds(103.0)).kind == "wss"


def test_the_session_of_an_agent_before_this_one_counts_only_while_it_is_fresh() -> None:
    begun = HubTransport.start("auto", 1000.0)
    assert begun.step(BootSeconds(900.0), False, BootSeconds(1010.0)).kind == "udp"
    assert begun.step(BootSeconds(810.0), False, BootSeconds(1003.0)).kind == "wss"


def test_it_returns_to_udp_when_udp_works_and_stays() -> None:
    relayed = HubTransport("auto", Transport.WSS, 100.0)
    assert relayed.step(BootSeconds(101.0), False, BootSeconds(150.0)) == relayed
    back = relayed.step(BootSeconds(101.0), True, BootSeconds(150.0))
    assert (back.kind, back.since) == ("udp", 150.0)
    assert back.step(BootSeconds(101.0), False, BootSeconds(160.0)).kind == "udp"


def test_a_fresh_handshake_does_not_save_a_path_on_which_no_data_passes() -> None:
    running = HubTransport.start("auto", 0.0)
    assert running.step(BootSeconds(99.0), False, BootSeconds(100.0)).kind == "udp"
    assert running.step(BootSeconds(99.0), False, BootSeconds(100.0), dead=True).kind == "wss"


def relapsed(times: int) -> HubTransport:
    """Return a transport whose UDP failed this many times, each time soon after its return.

    A relay worked meanwhile.
    """
    transport, now = HubTransport.start("auto", 0.0).step(BootSeconds(0.0), False, BootSeconds(1.0), dead=True), 1.0
    for _ in range(times):
        now = max(now, transport.hold_until) + 1
        transport = transport.step(BootSeconds(now), True, BootSeconds(now))
        assert transport.kind == "udp"
        now += 10
        transport = transport.step(BootSeconds(now), False, BootSeconds(now), dead=True)
        assert transport.kind == "wss"
    return transport


def test_intermittent_udp_is_trusted_less_each_time() -> None:
    holds = [relapsed(times).hold_until - relapsed(times).since for times in range(9)]
    assert holds[:4] == [0.0, FIRST_HOLD_S, 2 * FIRST_HOLD_S, 4 * FIRST_HOLD_S]
    assert holds[-1] == LONGEST_HOLD_S
    held = relapsed(1)
    assert held.step(None, True, BootSeconds(held.hold_until - 1)).kind == "wss"
    assert held.step(None, True, BootSeconds(held.hold_until)).kind == "udp"


def test_a_complete_network_outage_is_not_taken_for_blocked_udp() -> None:
    held = relapsed(1)
    forgiven = held.step(None, False, BootSeconds(held.since + OUTAGE_S), relay_connected=False)
    assert forgiven.step(None, True, BootSeconds(held.since + OUTAGE_S + 1)).kind == "udp"
    assert held.restart_timeout(held.since + 1).step(None, True, BootSeconds(held.since + 2)).kind == "udp"


def test_udp_that_was_fine_for_long_is_trusted_as_at_first() -> None:
    back = replace(HubTransport.start("auto", 0.0), returned=0.0, relapses=3)
    assert back.step(BootSeconds(RELAPSE_S), False, BootSeconds(RELAPSE_S + 1), dead=True).hold_until == RELAPSE_S + 1


@pytest.mark.parametrize("mode", ["udp", "wss"])
def test_a_users_choice_stays(mode: Mode) -> None:
    transport = HubTransport.start(mode, 0.0)
    for udp_alive in (False, True):
        assert transport.step(None, udp_alive, BootSeconds(500.0)) == transport
    assert transport.kind == mode


def test_modes_are_parsed() -> None:
    assert tuple(parse_mode(mode) for mode in MODES) == MODES
    with pytest.raises(UsageError, match="not a transport"):
        parse_mode("quic")


WORLDS = ["udp works", "udp is blocked", "data is eaten", "data out is eaten", "data in is eaten", "only small passes"]


@given(st.lists(st.tuples(st.sampled_from(WORLDS), st.integers(1, 400)), max_size=12))
def test_it_ends_on_a_working_transport(history: list[tuple[str, int]]) -> None:
    """A hub seen every second, for any history: the relay within seconds where no data passes by UDP, whatever the
    handshakes do; UDP where it passes, as soon as it is trusted again; and never the relay while UDP works."""
    transport, liveness, now = HubTransport.start("auto", 0.0), Liveness(), 0.0
    handshake: BootSeconds | None = None
    for world, seconds in history:
        works = world == "udp works"
        passes = works or transport.kind == "wss"
        for second in range(seconds):
            now += 1
            if passes or world != "udp is blocked":
                handshake = BootSeconds(now)
            passes = works or transport.kind == "wss"
            liveness = liveness.answered(now, large=True) if passes else liveness.unanswered()
            before = transport.kind
            transport = transport.step(handshake, works and before == "wss", BootSeconds(now), dead=liveness.is_dead)
            if transport.kind != before:
                liveness = Liveness()
            if works and now >= transport.hold_until and second > 0:
                assert transport.kind == "udp"
            if works and before == "udp":
                assert transport.kind == "udp"
            if not works and second >= DEAD_AFTER:
                assert transport.kind == "wss"


@given(st.integers(1, 60), st.integers(20, 600))
def test_the_path_does_not_flap_if_only_the_first_packets_pass(passes_s: int, minutes: int) -> None:
    """UDP passes for so many seconds after each return: fewer switches each hour than the pauses allow."""
    transport, liveness, used_s, switches = HubTransport.start("auto", 0.0), Liveness(), 0, 0
    for second in range(60 * minutes):
        on_udp = transport.kind == "udp"
        used_s = used_s + 1 if on_udp else 0
        passes = not on_udp or used_s <= passes_s
        liveness = liveness.answered(second, large=True) if passes else liveness.unanswered()
        after = transport.step(BootSeconds(second), not on_udp, BootSeconds(second), dead=liveness.is_dead)
        if after.kind != transport.kind:
            switches, liveness = switches + 1, Liveness()
        transport = after
    # Back to UDP and from it again: at once, after 1, 2, 4 … 32 minutes, then each hour.
    assert switches <= 1 + 2 * (8 + minutes // 60)


def test_a_handshake_after_the_last_data_shows_that_only_handshakes_pass() -> None:
    dead = Liveness(heard=100.0, lost=DEAD_AFTER)
    assert only_handshakes(BootSeconds(130.0), dead)
    assert not only_handshakes(BootSeconds(102.0), dead), "it may have come before all of it died"
    assert not only_handshakes(None, dead)
    assert not only_handshakes(BootSeconds(130.0), Liveness(heard=100.0))
    assert only_handshakes(BootSeconds(1.0), Liveness(lost=DEAD_AFTER)), "data never passed"


def test_large_probes_come_first_then_seldom_and_whenever_one_was_lost() -> None:
    assert Liveness().wants_large(0.0)
    heard = Liveness().answered(10.0, large=True)
    assert not heard.wants_large(10.0 + LARGE_EVERY_S - 1)
    assert heard.wants_large(10.0 + LARGE_EVERY_S)
    assert not heard.answered(15.0, large=False).wants_large(16.0)
    assert heard.unanswered().wants_large(11.0)
    assert heard.unanswered().is_uncertain


def limited(relay_kbit_s: float = 200_000.0) -> HubTransport:
    """Return the transport after a limit of 8 Mbit/s was found at 100 s and the relay's rate was measured at 103 s."""
    return HubTransport.start("auto", 0.0).compare(8000.0, 100.0).compared(relay_kbit_s, 103.0)


def test_a_relay_that_is_ten_times_as_fast_replaces_limited_udp_for_an_hour() -> None:
    relayed = limited()
    assert (relayed.kind, relayed.limit is not None) == ("wss", True)
    held = relayed.step(BootSeconds(3600.0), True, BootSeconds(100.0 + FIRST_LIMIT_HOLD_S - 1))
    assert held == relayed
    back = relayed.step(BootSeconds(3600.0), True, BootSeconds(100.0 + FIRST_LIMIT_HOLD_S))
    assert (back.kind, back.limit) == ("udp", None)
    again = back.compare(8000.0, 4000.0)
    assert again.hold_until == 4000.0 + 2 * FIRST_LIMIT_HOLD_S


def test_a_relay_that_is_not_much_faster_is_left_at_once_and_not_tried_again_for_an_hour() -> None:
    back = limited(relay_kbit_s=79_000.0)
    assert (back.kind, back.limit, back.hold_until) == ("udp", None, 0.0)
    assert not back.may_compare(99.0 + FIRST_LIMIT_HOLD_S)
    assert back.compare(8000.0, 200.0) == back
    assert back.may_compare(100.0 + FIRST_LIMIT_HOLD_S)


def test_limited_udp_is_better_than_a_relay_that_fails() -> None:
    relayed, handshake = limited(), BootSeconds(490.0)
    assert relayed.step(handshake, False, BootSeconds(500.0), dead=True).kind == "udp"
    assert relayed.step(handshake, False, BootSeconds(500.0), relay_connected=False).kind == "udp"
    trying = HubTransport.start("auto", 0.0).compare(8000.0, 500.0)
    soon = BootSeconds(500.0 + HANDSHAKE_PATIENCE_S - 0.1)
    assert trying.step(handshake, False, soon, relay_connected=False) == trying


def test_a_relay_in_use_because_udp_fails_is_not_left_for_being_slow() -> None:
    failed = HubTransport.start("auto", 0.0).step(None, False, BootSeconds(5.0))
    assert failed.compare(8000.0, 6.0) == failed
    assert failed.compared(1.0, 6.0) == failed


def test_another_network_may_not_limit_udp() -> None:
    moved = limited().restart_timeout(200.0)
    assert moved.step(BootSeconds(199.0), True, BootSeconds(201.0)).kind == "udp"


@pytest.mark.parametrize("mode", ["udp", "wss"])
def test_a_users_choice_is_not_compared(mode: Mode) -> None:
    transport = HubTransport.start(mode, 0.0)
    assert transport.compare(8000.0, 100.0) == transport


RELAYS = ["fast", "slow", "dead", "not connected"]


@given(st.lists(st.tuples(st.sampled_from(RELAYS), st.integers(1, 3 * 3600)), max_size=12))
def test_the_path_does_not_flap_where_udp_is_always_limited(history: list[tuple[str, int]]) -> None:
    """A limit is found every 10 s at which it may be, and data passes by UDP all the time."""
    transport, now, switches = HubTransport.start("auto", 0.0), 0, 0
    for relay, seconds in history:
        start = now
        for now in range(start + 10, start + seconds, 10):
            before = transport.kind
            transport = transport.compare(8000.0, now)
            switches += transport.kind != before
            before = transport.kind
            if relay in ("fast", "slow") and transport.limit is not None and transport.limit.relay_kbit_s is None:
                transport = transport.compared(100_000.0 if relay == "fast" else 10_000.0, now)
            transport = transport.step(
                BootSeconds(now),
                True,
                BootSeconds(now),
                dead=relay == "dead" and before == "wss",
                relay_connected=relay != "not connected",
            )
            switches += transport.kind != before
    holds, hold_s, at = 0, FIRST_LIMIT_HOLD_S, 0.0
    while at <= now:
        holds, at, hold_s = holds + 1, at + hold_s, min(LONGEST_LIMIT_HOLD_S, 2 * hold_s)
    assert switches <= 2 * holds
