"""The measurements of a path are current: past outages, slow first probes and old numbers are not shown."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meshray.agent.paths.samples import (
    CLOSE,
    CLOSE_S,
    COMING_UP_S,
    INTERVAL_S,
    LATEST_S,
    RATE_FROM,
    WINDOW_S,
    History,
    Measured,
)


def history(*samples: tuple[float, float | None]) -> History:
    made = History()
    for now, rtt_ms in samples:
        made.add(rtt_ms, now)
    return made


def test_one_slow_first_probe_is_outvoted_by_the_second() -> None:
    assert history((0, 753.0), (1, 1.0)).measured(1).rtt_ms == 1.0
    assert history((0, 753.0), (1, 1.0), (2, 1.2)).measured(2).rtt_ms == 1.2


def test_the_queue_is_the_delay_above_the_shortest_round_trip() -> None:
    assert history((0, 9.0), (1, 2.0)).measured(1).queue_ms is None
    assert history((0, 90.0), (1, 2.0), (2, None), (3, 95.0)).measured(3).queue_ms == 88.0


def test_probes_lost_while_a_path_comes_up_are_not_loss() -> None:
    coming = history((0, None), (1, None), (2, None))
    assert coming.measured(COMING_UP_S - 1) == Measured()
    coming.add(1.5, 3)
    assert (coming.measured(3).loss, coming.measured(3).rtt_ms) == (0.0, 1.5)


def test_a_peer_that_never_answers_is_silent_after_a_while() -> None:
    assert history(*((second, None) for second in range(12))).measured(12).silent


def test_an_outage_is_loss_while_it_lasts_and_nothing_afterwards() -> None:
    path = history((0, 1.0), (10, None), (12, None), (17, None))
    assert (path.measured(40).loss, path.measured(40).rtt_ms, path.measured(40).silent) == (1.0, None, True)
    path.add(1.1, 41)
    assert (path.measured(41).loss, path.measured(41).rtt_ms, path.measured(41).silent) == (0.0, 1.1, False)


def test_one_lost_packet_waits_for_the_next_and_is_forgotten_within_seconds() -> None:
    path = history((0, 1.0), (30, None))
    assert (path.measured(30).loss, path.measured(30).rtt_ms) == (0.0, 1.0)
    path.add(None, 30.5)
    path.add(1.0, 31)
    path.add(None, 32)
    path.add(1.0, 33)
    path.add(None, 34)
    path.add(1.0, 35)
    assert path.measured(35).loss == 0.4
    assert path.measured(34 + WINDOW_S + 0.1).loss == 0.0


def test_one_lost_probe_of_a_few_is_not_a_loss_rate() -> None:
    path = history((0, 1.0), (1, None), (2, 1.0))
    assert path.measured(2).loss == 0.0
    for now in range(RATE_FROM - 3):
        path.add(1.0, 2.1 + now / 10)
    assert path.measured(4).loss == 1 / RATE_FROM


def test_a_number_that_is_too_old_is_not_shown() -> None:
    path = history((0, 1.0))
    assert path.measured(LATEST_S).rtt_ms == 1.0
    assert path.measured(LATEST_S + 1) == Measured()


def test_a_path_that_is_new_or_lost_a_packet_is_probed_closely_and_an_idle_one_seldom() -> None:
    path = History()
    assert path.pause_s(0) == 0.0
    for now in range(CLOSE - 1):
        path.add(1.0, now)
        assert path.pause_s(now) == CLOSE_S
    path.add(1.0, CLOSE)
    assert path.pause_s(CLOSE) == INTERVAL_S
    path.add(None, CLOSE + 30)
    assert path.pause_s(CLOSE + 30) == CLOSE_S


def test_pauses_grow_with_the_silence_up_to_those_of_an_idle_path() -> None:
    path = history((0, 1.0), (1, None), (2, None))
    assert path.is_lost
    assert [path.pause_s(now) for now in (2, 10, 30, 300)] == [1.0, 5.0, 15.0, INTERVAL_S]


samples = st.lists(st.tuples(st.floats(0.1, 40), st.one_of(st.none(), st.floats(0.1, 900))), max_size=60)


@given(samples, st.floats(0, 200))
def test_shown_values_are_seconds_old(steps: list[tuple[float, float | None]], later: float) -> None:
    path, now, sent = History(), 0.0, []
    for pause, rtt_ms in steps:
        now += pause
        path.add(rtt_ms, now)
        sent.append((now, rtt_ms))
    now += later
    measured = path.measured(now)
    answered = [(at, rtt_ms) for at, rtt_ms in sent if rtt_ms is not None]
    if measured.rtt_ms is not None:
        fresh = [rtt_ms for at, rtt_ms in answered if now - at <= LATEST_S]
        assert min(fresh) - 0.001 <= measured.rtt_ms <= max(fresh) + 0.001
    if not measured.silent and answered and measured.loss:
        # The losses beside answers are younger than the window.
        assert any(rtt_ms is None and now - at <= WINDOW_S for at, rtt_ms in sent)
    assert path.pause_s(now) <= INTERVAL_S
