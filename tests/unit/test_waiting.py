"""Waiting leaves the processor to what is awaited, and ends on time."""

from __future__ import annotations

import time

import pytest

from tests.lab.waiting import DeadlineError, wait_until


def test_slow_checks_take_at_most_a_third_of_the_time() -> None:
    checks = 0

    def slow() -> bool:
        nonlocal checks
        checks += 1
        time.sleep(0.05)
        return False

    with pytest.raises(DeadlineError):
        wait_until(slow, 0.6, "nothing")
    # Each of the first four takes 0.05 s and is followed by 0.1 s; the last one is made at the deadline.
    assert 2 <= checks <= 5


def test_the_last_check_is_made_at_the_deadline() -> None:
    began = time.monotonic()
    at: list[float] = []

    def look() -> bool:
        at.append(time.monotonic() - began)
        time.sleep(0.2)
        return at[-1] > 0.49

    assert wait_until(look, 0.5, "the deadline")
    assert at[-1] >= 0.5
