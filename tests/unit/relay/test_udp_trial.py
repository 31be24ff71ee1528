"""UDP is tried often at first, then rarely, and each time briefly."""

from __future__ import annotations

from meshray.relay.udp_trial import TRIAL_DATAGRAMS, TRIAL_S, Trial


def trials(trial: Trial, until_s: float, step_s: float = 0.5) -> list[float]:
    """Return the times at which something was allowed, if a trial begins as soon as it may."""
    allowed = []
    for number in range(int(until_s / step_s)):
        now = number * step_s
        if trial.is_due(now):
            trial.begin(now)
        if trial.allows(1, now):
            allowed.append(now)
    return allowed


def test_the_pauses_grow_to_a_minute() -> None:
    assert trials(Trial(), 200) == [0.0, 10.0, 30.0, 70.0, 130.0, 190.0]


def test_a_trial_is_a_few_datagrams_in_a_few_milliseconds() -> None:
    trial = Trial()
    assert trial.allows(1, 100.0) == 0
    trial.begin(100.0)
    assert trial.allows(20, 100.0) == 20
    assert trial.allows(20, 100.01) == TRIAL_DATAGRAMS - 20
    assert trial.allows(20, 100.02) == 0
    trial = Trial()
    trial.begin(100.0)
    assert trial.allows(1, 100.0) == 1
    assert trial.allows(1, 100.0 + 2 * TRIAL_S) == 0


def test_after_a_change_of_the_network_it_is_tried_at_once() -> None:
    trial = Trial()
    assert trials(trial, 100)[-1] == 70.0
    trial.reset()
    assert trial.is_due(100.0)
    trial.begin(100.0)
    assert not trial.is_due(109.0)
    assert trial.is_due(110.0)
