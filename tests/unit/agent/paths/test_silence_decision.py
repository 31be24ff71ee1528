from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from meshray.agent.paths.silence_decision import (
    BEAT_S,
    BEATS_PER_S,
    MACHINE_PROBE_S,
    SILENT_S,
    SUSPECT_S,
    Contact,
    Rhythm,
)

PATIENCE_S = 120.0


def after(contact: Contact, seconds: float, *, asked: bool = True) -> Contact:
    """Let time pass without a sign of life; the machine is asked as often as required."""
    now, last = contact.heard, -1e9
    while now < contact.heard + seconds:
        now += 0.25
        if asked and contact.is_suspect(now) and now - last >= contact.probe_pause_s:
            last, contact = now, contact.unanswered()
        contact = contact.step(now, PATIENCE_S)
    return contact


def test_a_node_is_silent_within_five_seconds() -> None:
    known = Contact(0.0, known=True)
    assert not after(known, 3.5).silent
    assert after(known, 4.5).silent
    assert SUSPECT_S + 2 * MACHINE_PROBE_S < 5 > SILENT_S


def test_this_nodes_own_lag_is_not_counted_as_silence() -> None:
    # No machine was asked meanwhile: this node itself did not run.
    assert not after(Contact(0.0, known=True), 100, asked=False).silent


def test_a_new_node_gets_time_to_come_up() -> None:
    assert not after(Contact(0.0), 14).silent
    assert after(Contact(0.0), 16).silent


def test_a_gap_of_the_whole_patience_is_not_the_end() -> None:
    known = Contact(0.0, known=True)
    assert after(known, PATIENCE_S - 1).silent
    # The next sign of life comes up to a handshake's pause of 5 s and a beat of 1.5 s after the path is back.
    assert not after(known, PATIENCE_S + 7).gone
    assert after(known, PATIENCE_S + 9).gone


@given(st.integers(1, 10000))
def test_a_coordinators_node_receives_a_bounded_number_of_signs_of_life(nodes: int) -> None:
    rhythm = Rhythm.of(nodes)
    assert nodes / rhythm.beat_s <= BEATS_PER_S + 1e-9 or rhythm.beat_s == BEAT_S
    # A node that answers each beat, and whose answer is late by as much as in a small mesh, is not suspected.
    contact = Contact(0.0, known=True)
    assert not contact.is_suspect(rhythm.beat_s + SUSPECT_S - BEAT_S - 0.001, rhythm)
    lost = contact.unanswered().unanswered()
    assert not lost.step(rhythm.beat_s + SILENT_S - BEAT_S - 0.001, PATIENCE_S, rhythm).silent
    assert lost.step(rhythm.beat_s + SILENT_S - BEAT_S + 0.001, PATIENCE_S, rhythm).silent
    assert Contact(0.0, known=True).closed(rhythm.beat_s, rhythm).ended


def test_killed_processes_are_given_up_early() -> None:
    ended = Contact(0.0, known=True).closed(1.0)
    assert ended.ended
    assert not after(ended, 19).gone
    assert after(ended, 21).gone


def test_a_connection_that_a_router_gives_up_later_proves_nothing() -> None:
    assert not after(Contact(0.0, known=True).closed(10.0), 60).gone


def test_a_sign_of_life_reverts_everything() -> None:
    gone = after(Contact(0.0, known=True).closed(1.0), 130)
    assert gone.answered(131.0) == Contact(131.0, known=True)
    assert gone.answered(-1.0) == gone
    # The same sign, whose age is reported a moment later.
    assert gone.answered(0.001) == gone


def test_the_last_sign_of_ended_processes_may_be_reported_after_their_end() -> None:
    ended = Contact(0.0, known=True).closed(1.5)
    assert after(ended.answered(1.4), 22).gone
    assert not after(ended.answered(1.6), 60).gone


Events = st.lists(st.sampled_from(["heard", "miss", "closed", "tick"]), max_size=60)


@given(Events)
def test_a_lost_node_is_silent_and_its_last_sign_is_old(events: Iterable[str]) -> None:
    now, contact = 0.0, Contact(0.0)
    for event in events:
        now += 1.0
        if event == "heard":
            contact = contact.answered(now)
        elif event == "miss":
            contact = contact.unanswered()
        elif event == "closed":
            contact = contact.closed(now)
        contact = contact.step(now, PATIENCE_S)
        assert contact.silent or not contact.gone
        assert not contact.silent or now - contact.heard >= SILENT_S
        assert not contact.gone or now - contact.heard >= 20
