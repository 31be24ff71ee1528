from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshray.raynode.restart_policy import (
    LONGEST_DELAY_S,
    SOUND_LIFE_S,
    Backoff,
    Decision,
    Keep,
    Situation,
    Start,
    StayStopped,
    Stop,
    Wait,
    decide,
)

CALM = Backoff()


def of_worker(*, running: bool, joined: str = "", instance: str = "", head_answers: bool = False) -> Decision:
    return decide(Situation(False, running, joined, instance, head_answers), CALM, now=0)


def test_a_head_starts_whenever_it_does_not_run() -> None:
    assert decide(Situation(True, False, "", "", False), CALM, now=0) == Start()
    assert decide(Situation(True, True, "mine", "", False), CALM, now=0) == Keep()


def test_a_worker_waits_until_the_head_is_there_and_answers() -> None:
    assert isinstance(of_worker(running=False), Wait)
    assert isinstance(of_worker(running=False, instance="a"), Wait)
    assert of_worker(running=False, instance="a", head_answers=True) == Start()


def test_a_running_worker_is_left_alone_while_the_head_is_away() -> None:
    assert of_worker(running=True, joined="a", instance="") == Keep()
    assert of_worker(running=True, joined="a", instance="a") == Keep()


def test_a_worker_of_another_head_is_restarted() -> None:
    assert isinstance(of_worker(running=True, joined="a", instance="b"), Stop)


def test_a_change_of_the_heads_instance_is_followed_also_during_backoff() -> None:
    situation = Situation(False, True, "a", "b", True)
    assert isinstance(decide(situation, Backoff(3, not_before=100), now=0), Stop)


def test_a_drained_worker_keeps_the_ray_that_still_runs_and_starts_none() -> None:
    assert decide(Situation(False, True, "a", "a", True, drained=True), CALM, now=0) == Keep()
    assert decide(Situation(False, False, "", "a", True, drained=True), CALM, now=0) == StayStopped()
    assert (
        decide(Situation(False, False, "", "", False, drained=True), Backoff(3, not_before=9), now=0) == StayStopped()
    )


def test_consecutive_deaths_increase_the_pause_up_to_a_limit() -> None:
    backoff, now, delays = CALM, 0.0, []
    for _ in range(8):
        backoff = backoff.after_death(started=now, now=now + 1)
        delays.append(backoff.not_before - (now + 1))
        now = backoff.not_before
    assert delays == [1, 2, 4, 8, 16, 30, 30, 30]


@pytest.mark.parametrize("started", [None, 0.0])
def test_a_death_after_a_sound_life_counts_as_the_first(started: float | None) -> None:
    backoff = Backoff(6, 0).after_death(started=started, now=SOUND_LIFE_S)
    assert backoff == Backoff(1, SOUND_LIFE_S + 1)


@given(st.booleans(), st.text(max_size=2), st.booleans(), st.floats(0, 1e6), st.integers(0, 10**6), st.floats(0, 1e6))
def test_nothing_starts_before_its_time_and_no_wait_is_endless(
    head: bool, instance: str, answers: bool, now: float, deaths: int, not_before: float
) -> None:
    backoff = Backoff(deaths, not_before)
    decision = decide(Situation(head, False, "", instance, answers), backoff, now)
    if now < not_before:
        assert isinstance(decision, Wait)
    if isinstance(decision, Wait):
        assert 0 < decision.delay_s <= 1
    assert backoff.after_death(started=now, now=now).not_before - now <= LONGEST_DELAY_S + 1e-6
