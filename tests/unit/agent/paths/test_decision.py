"""The direct path to one peer: whatever the probes do, both sides soon agree on one path."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshray.agent.paths.decision import (
    DEAD_AFTER,
    DIRECT,
    HUB,
    LINGER_S,
    PROBE_ACTIVE_S,
    PROBE_TIMEOUT_S,
    REDIAL_S,
    TRIAL_S,
    TRYING,
    PairPath,
    candidates,
    spread_of,
    why_not_direct,
)
from meshray.model.address import Endpoint
from tests.unit.agent.sample import WORKER_A, WORKER_B

SEEN_A, SEEN_B = Endpoint("198.51.100.1", 51888), Endpoint("198.51.100.2", 40001)
LAN_A, LAN_B = Endpoint("192.168.7.10", 51888), Endpoint("192.168.7.11", 51888)
STEP_S = 0.05


def trying(*endpoints: Endpoint) -> PairPath:
    return PairPath().punch(endpoints or (SEEN_B,), 0.0)


def test_both_receive_packets_and_the_direct_path_carries_data() -> None:
    path = trying().answered(peer_hears=False, now=0.1)
    assert not path.carries
    assert path.hears
    assert path.pinged(peer_hears=True, now=0.2).carries


def test_after_silence_the_next_candidate_is_tried_with_a_fresh_handshake() -> None:
    path = trying(LAN_B, SEEN_B)
    later = path.tick(TRIAL_S)
    assert (path.endpoint, later.endpoint) == (LAN_B, SEEN_B)
    assert later.attempt == path.attempt + 1
    assert later.tick(2 * TRIAL_S).phase == HUB


def test_only_a_silent_candidate_is_dialled_a_second_time() -> None:
    path = trying(LAN_B, SEEN_B)
    assert not path.tick(REDIAL_S - STEP_S).redialled
    again = path.tick(REDIAL_S)
    assert (again.redialled, again.attempt, again.endpoint) == (True, path.attempt, LAN_B)
    assert again.tick(REDIAL_S + STEP_S) == again
    # Each candidate has its own two.
    later = again.tick(TRIAL_S)
    assert (later.redialled, later.tick(TRIAL_S + REDIAL_S).redialled) == (False, True)
    assert not path.answered(peer_hears=False, now=0.1).tick(REDIAL_S).redialled
    assert not again.tick(TRIAL_S).tick(2 * TRIAL_S).punch((SEEN_B,), 9.0).redialled


def test_attempts_come_less_and_less_often_and_at_once_after_a_network_change() -> None:
    path, now, waits = PairPath(), 0.0, []
    for _ in range(10):
        gave_up = now + TRIAL_S + 0.01
        path = path.punch((SEEN_B,), now).tick(gave_up)
        waits.append(path.next_try - gave_up)
        now = path.next_try
    assert waits == pytest.approx(sorted(waits))
    assert waits[0] == pytest.approx(5.0)
    assert waits[-1] == pytest.approx(300.0)
    assert not path.wants_punch(now - 1.0)
    assert path.network_changed(now - 1.0).wants_punch(now - 1.0)


def test_pairs_that_failed_together_are_not_retried_together() -> None:
    pauses = set()
    for other in range(50):
        spread = spread_of("n1", f"m{other}")
        assert spread == spread_of(f"m{other}", "n1"), "both sides choose the same moment"
        path = PairPath(spread=spread)
        for _ in range(4):
            path = path.punch((SEEN_B,), 0.0).tick(TRIAL_S)
        pauses.add(round(path.next_try - TRIAL_S))
        assert 0.8 * 40 <= path.next_try - TRIAL_S <= 1.2 * 40
    assert len(pauses) > 10


def test_an_idle_path_is_let_go_and_tried_again_at_once() -> None:
    path = trying().answered(peer_hears=True, now=0.1).let_go(200.0)
    assert (path.phase, path.endpoint, path.failures) == (HUB, None, 0)
    assert path.wants_punch(200.0)
    assert path.punch((SEEN_B,), 300.0).attempt == path.attempt + 1


def test_a_pair_that_failed_keeps_its_pause_while_it_is_idle() -> None:
    path = PairPath().punch((SEEN_B,), 0.0).tick(TRIAL_S)
    assert path.let_go(TRIAL_S + 1.0) == path
    given_up = PairPath().punch((SEEN_B,), 0.0).let_go(0.5)
    assert (given_up.phase, given_up.failures) == (HUB, 1)


def test_a_path_is_due_exactly_when_time_changes_it() -> None:
    path = PairPath()
    assert path.tick_due == math.inf
    path = path.punch((SEEN_B, LAN_B), 0.0)
    for _ in range(4):
        due = path.tick_due
        assert path.tick(due - 0.01) == path
        path = path.tick(due)
    assert path.phase == HUB
    direct = trying().answered(peer_hears=True, now=0.1)
    assert direct.tick_due == math.inf
    silent = direct.peer_left(5.0)
    for sent in range(DEAD_AFTER):
        silent = silent.unanswered(6.0, sent=5.5 + sent)
    assert silent.tick(silent.tick_due).phase == HUB
    assert silent.tick(silent.tick_due - 0.01).phase == TRYING


def test_lost_probes_move_the_data_back_to_the_hub() -> None:
    path = trying().answered(peer_hears=True, now=0.1)
    for n in range(DEAD_AFTER):
        assert path.phase == DIRECT
        path = path.unanswered(1.0 + n, sent=0.5 + n)
    assert path.phase == TRYING
    assert path.answered(peer_hears=True, now=5.0).phase == DIRECT
    assert path.tick(3.0 + LINGER_S + 0.1).phase == HUB


def test_on_another_network_a_silent_path_is_not_awaited() -> None:
    path = trying().answered(peer_hears=True, now=0.1)
    assert path.network_changed(0.2) == path
    for n in range(DEAD_AFTER):
        path = path.unanswered(1.0 + n, sent=0.5 + n)
    assert not path.wants_punch(4.0)
    assert path.network_changed(4.0).wants_punch(4.0)


def test_a_one_way_direct_path_is_abandoned_at_once() -> None:
    path = trying().answered(peer_hears=True, now=0.1)
    assert not path.pinged(peer_hears=False, now=0.2).carries
    assert not path.peer_left(0.2).carries


def test_probes_lost_before_the_last_answer_do_not_count() -> None:
    path = trying().answered(peer_hears=True, now=2.0)
    for n in range(DEAD_AFTER):
        path = path.unanswered(2.1 + n / 10, sent=1.5 + n / 10)
    assert path.carries


def test_an_inner_address_that_both_have_leads_nowhere() -> None:
    same = (Endpoint("192.168.1.10", 51888),)
    assert candidates(replace(A, endpoints=same), replace(B, endpoints=same)) == (SEEN_B,)


def test_a_punch_does_not_disturb_a_working_path() -> None:
    path = trying().answered(peer_hears=True, now=0.1)
    assert path.punch((LAN_B,), 1.0) == path


def test_late_answers_of_an_attempt_given_up_mean_nothing() -> None:
    path = trying().tick(TRIAL_S)
    assert path.answered(peer_hears=True, now=2.0) == path.pinged(peer_hears=True, now=2.0) == path


# ---- two machines and a path between them that may break in either direction


@dataclass
class Side:
    """One machine with its probes, as `meshray.agent.paths.pair_paths` runs it."""

    path: PairPath = field(default_factory=PairPath)
    next_probe: float = 0.0
    waiting: list[float] = field(default_factory=list)

    def punch(self, now: float) -> None:
        self.path = self.path.punch((SEEN_B,), now)
        self.next_probe = now


def run(a: Side, b: Side, steps: int, now: float, a_to_b: bool, b_to_a: bool) -> float:
    """Advance the time; answers need both directions. Messages arrive at once: the test is about their order."""
    for _ in range(steps):
        now = round(now + STEP_S, 3)
        for me, other, out, back in ((a, b, a_to_b, b_to_a), (b, a, b_to_a, a_to_b)):
            me.path = me.path.tick(now)
            while me.waiting and now - me.waiting[0] >= PROBE_TIMEOUT_S:
                me.path = me.path.unanswered(now, me.waiting.pop(0))
            if me.path.phase == HUB or now < me.next_probe:
                continue
            me.next_probe = now + me.path.probe_interval_s(active=True)
            if out and other.path.phase != HUB:
                other.path = other.path.pinged(me.path.hears, now)
                if back:
                    me.path = me.path.answered(other.path.hears, now)
                    continue
            me.waiting.append(now)
    return now


WAYS = st.tuples(st.integers(1, 80), st.booleans(), st.booleans(), st.booleans())


@settings(max_examples=300, deadline=None)
@given(st.lists(WAYS, max_size=12), st.booleans(), st.booleans())
def test_from_any_history_both_sides_end_on_the_same_path(
    history: list[tuple[int, bool, bool, bool]], a_to_b: bool, b_to_a: bool
) -> None:
    a, b, now = Side(), Side(), 0.0
    for steps, there, back, punched in history:
        if punched:
            a.punch(now)
            b.punch(now)
        now = run(a, b, steps, now, there, back)
    # The path does not change from here on; the coordinator lets both try once more.
    now = run(a, b, int((DEAD_AFTER * PROBE_ACTIVE_S + PROBE_TIMEOUT_S + LINGER_S + 1) / STEP_S), now, a_to_b, b_to_a)
    a.punch(now)
    b.punch(now)
    now = run(a, b, int(3.0 / STEP_S), now, a_to_b, b_to_a)
    assert a.path.carries == b.path.carries == (a_to_b and b_to_a)


@settings(max_examples=300, deadline=None)
@given(st.lists(WAYS, min_size=1, max_size=12))
def test_the_two_sides_never_disagree_for_long(history: list[tuple[int, bool, bool, bool]]) -> None:
    a, b, now, disagreed = Side(), Side(), 0.0, 0.0
    longest = DEAD_AFTER * PROBE_ACTIVE_S + PROBE_TIMEOUT_S
    for steps, there, back, punched in history:
        if punched:
            a.punch(now)
            b.punch(now)
        for _ in range(steps):
            now = run(a, b, 1, now, there, back)
            disagreed = disagreed + STEP_S if a.path.carries != b.path.carries else 0.0
            assert disagreed <= longest


def test_both_ends_detect_a_one_way_failure_within_one_probe_of_each_other() -> None:
    for a_to_b, b_to_a in ((True, False), (False, True), (False, False)):
        a, b = Side(), Side()
        a.punch(0.0)
        b.punch(0.0)
        now = run(a, b, 40, 0.0, True, True)
        assert a.path.carries
        assert b.path.carries
        fell: dict[str, float] = {}
        while len(fell) < 2 and now < 20:
            now = run(a, b, 1, now, a_to_b, b_to_a)
            for name, side in (("a", a), ("b", b)):
                if not side.path.carries:
                    fell.setdefault(name, now)
        assert abs(fell["a"] - fell["b"]) <= PROBE_ACTIVE_S + STEP_S
        assert max(fell.values()) - 2.0 < 4.0


# ---- candidates and reasons

A = replace(WORKER_A, endpoints=(LAN_A,), seen=SEEN_A)
B = replace(WORKER_B, endpoints=(LAN_B,), seen=SEEN_B)


def test_behind_two_nats_only_observed_endpoints_precede_private_addresses() -> None:
    far = replace(B, endpoints=(Endpoint("10.7.0.9", 51888),))
    assert candidates(A, far) == (SEEN_B, Endpoint("10.7.0.9", 51888))


def test_behind_one_nat_the_lan_comes_first() -> None:
    near = replace(B, seen=Endpoint(SEEN_A.host, 40001))
    assert candidates(A, near)[0] == LAN_B
    assert candidates(near, A)[0] == LAN_A


def test_both_sides_go_through_the_same_number_of_rounds_in_the_same_order() -> None:
    two = replace(A, endpoints=(LAN_A, Endpoint("2001:db8::a", 51888), Endpoint("198.51.100.77", 51888)))
    other = replace(B, endpoints=(LAN_B, Endpoint("2001:db8::b", 51888)))
    assert candidates(two, other) == (LAN_B, SEEN_B, SEEN_B, Endpoint("2001:db8::b", 51888))
    assert candidates(other, two) == (LAN_A, SEEN_A, Endpoint("198.51.100.77", 51888), Endpoint("2001:db8::a", 51888))


def test_reasons_are_named() -> None:
    failed = trying().tick(TRIAL_S)
    assert why_not_direct(A, replace(B, seen=None), failed) == "UDP filtered on the side of gpu-b: no hub sees it"
    assert why_not_direct(A, B, failed) == "symmetric NAT on the side of gpu-b: its port changes with the destination"
    kept = replace(B, seen=Endpoint("198.51.100.2", 51888))
    assert why_not_direct(A, kept, failed).startswith("no answer from 198.51.100.2:40001")
    assert why_not_direct(A, kept, PairPath()) == "not tried yet"
    assert why_not_direct(A, kept, trying()) == ""


def test_two_punches_at_the_same_moment_are_one() -> None:
    begun = PairPath().punch((SEEN_A,), 0.0)
    assert begun.punch((SEEN_A,), 0.01) == begun
    assert begun.punch((SEEN_A, SEEN_B), 0.01).attempt > begun.attempt
    assert begun.punch((SEEN_A,), 2.0).attempt > begun.attempt
